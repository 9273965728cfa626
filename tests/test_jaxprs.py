"""What qbs reads of JAX's programs that is no public interface: fails loudly where a new JAX changed it."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from jax import lax

import qbs
from qbs import jaxprs
from qbs.effects import sample_p, score_p


def primitive_of(function, *args):
    """Return the one equation of a function that has a site inside."""
    closed = jax.make_jaxpr(function)(*args)
    (equation,) = [e for e in closed.jaxpr.eqns if jaxprs.has_effects(e)]
    return equation


def draw(x):
    return qbs.sample("x", dist.Normal(x, 1.0))


@jax.custom_jvp
def with_rule(x):
    return draw(x)


with_rule.defjvp(lambda primals, tangents: (draw(*primals), tangents[0]))


@jax.custom_vjp
def with_reverse_rule(x):
    return draw(x)


with_reverse_rule.defvjp(lambda x: (draw(x), None), lambda _, cotangent: (cotangent,))


CALLS = {
    "jit": jax.jit(draw),
    "checkpoint": jax.checkpoint(draw),
    "custom_jvp": with_rule,
    "custom_vjp": with_reverse_rule,
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_hold_one_jaxpr(name):
    equation = primitive_of(CALLS[name], 0.0)
    assert equation.primitive.name in jaxprs.CALLS
    inner, _ = jaxprs.open_jaxpr(next(iter(jaxprs.inner_jaxprs(equation))))
    assert len(inner.invars) == len(equation.invars)
    assert list(jaxprs.effect_names(equation)) == ["x"]


def test_scan_says_what_its_operands_are():
    def scanned(scale, xs):
        def step(carry, x):
            return carry + scale * draw(x), carry

        return lax.scan(step, 0.0, xs, reverse=True)

    equation = primitive_of(scanned, 2.0, jnp.ones(5))
    assert equation.primitive.name == "scan"
    assert jaxprs.scan_layout(equation) == (1, 1)
    assert len(equation.invars) == 3
    assert equation.params["length"] == 5
    assert equation.params["reverse"] is True
    assert {"jaxpr", "unroll"} <= set(equation.params)


def test_cond_holds_its_branches_in_order():
    equation = primitive_of(lambda x: lax.cond(x > 0, draw, lambda x: x, x), 1.0)
    assert equation.primitive.name == "cond"
    is_random = [bool(jaxprs.all_names(branch)) for branch in equation.params["branches"]]
    assert is_random == [False, True]
    assert equation.invars[0].aval.dtype == jnp.int32  # the index comes first


def test_equations_can_be_cut_out_and_evaluated():
    def program(x):
        y = jnp.sin(x) + 1.0
        qbs.score(y, name="s")
        return y * 2

    jaxpr = jax.make_jaxpr(program)(0.5).jaxpr
    score = next(i for i, e in enumerate(jaxpr.eqns) if e.primitive is score_p)
    live = jaxpr.eqns[score].invars[0]
    first = jaxprs.cut(jaxpr, score, [live])
    assert jax.core.eval_jaxpr(first, [], 0.5)[0] == pytest.approx(jnp.sin(0.5) + 1.0)
    rest = jaxprs.between(jaxpr, score, score + 1, [live])
    assert jaxprs.all_names(rest, (score_p,)) == {"s"}
    assert jaxprs.bind_equation(jaxpr.eqns[0], [0.5])[0] == pytest.approx(jnp.sin(0.5))


def test_sites_are_found_with_the_axes_of_their_scans():
    def program(xs):
        def step(carry, x):
            lax.cond(x > 0, draw, lambda x: x, x)
            return carry, qbs.sample("y", dist.Normal(jnp.zeros(2), 1.0))

        return lax.scan(step, 0.0, xs)

    sites = jaxprs.find_sites(jax.make_jaxpr(program)(jnp.ones(3)))
    assert sites["x"].in_branch
    assert (sites["y"].shape, sites["y"].num_scans, sites["y"].in_branch) == ((3, 2), 1, False)
    assert jaxprs.all_names(jax.make_jaxpr(program)(jnp.ones(3)), (sample_p,)) == {"x", "y"}
