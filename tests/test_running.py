"""Running a program: where weights go wrong, what a trace holds, and how often it is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax

import qbs
from qbs.errors import ProgramError


def model(scale):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("fine", -(x**2))
    numpyro.factor("wrong", jnp.log(scale) + 0 * x)
    return x


PROGRAMS = {"plain": qbs.reify(model), "population": qbs.population(qbs.reify(model), 5)}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_score_that_is_nan_is_named(name, compiled, key):
    run = qbs.run(PROGRAMS[name])
    run = jax.jit(run) if compiled else run
    with pytest.raises(Exception, match=r"the score 'wrong' of .* is NaN or infinite"):
        jax.block_until_ready(run(key, -1.0).log_weight)
    with pytest.raises(Exception, match="the score 'wrong'"):
        jax.block_until_ready(run(key, np.inf).log_weight)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_score_that_made_the_weight_zero_is_named(name, key):
    drawn = qbs.run(PROGRAMS[name])(key, 0.0)
    assert drawn.log_weight == -jnp.inf
    assert drawn.impossible_at == ["wrong"]
    assert qbs.run(PROGRAMS[name])(key, 1.0).impossible_at == []
    many = jax.vmap(lambda s: qbs.run(PROGRAMS[name])(key, s))(jnp.array([0.0, 1.0, 0.0]))
    assert many.impossible_at == ["wrong"]
    assert np.isfinite(many.log_weight[1])


def test_one_nan_among_particles_is_enough(key):
    def one_wrong():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("root", jnp.sqrt(x))  # NaN for about half of the particles

    with pytest.raises(Exception, match="the score 'root'"):
        jax.block_until_ready(qbs.run(qbs.population(qbs.reify(one_wrong), 100))(key).log_weight)


def test_particles_are_not_in_the_trace_and_paths_are_kept_on_demand(key):
    def series(ys):
        def step(x, y):
            x = numpyro.sample("x", dist.Normal(0.9 * x, 1.0))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
            return x, None

        return lax.scan(step, 0.0, ys)[0]

    ys = jnp.sin(jnp.arange(6.0))
    program = qbs.reify(series)
    plain = qbs.run(qbs.population(program, 50))(key, ys)
    assert plain.trace == {}
    last, paths = qbs.run(qbs.population(qbs.traced(program), 50))(key, ys).value.value
    assert paths["x"].shape == (50, 6)
    np.testing.assert_array_equal(paths["x"][:, -1], last)
    assert len(np.unique(paths["x"][:, 0])) < len(np.unique(paths["x"][:, -1]))  # ancestors are shared


def walk_there_and_back(ys):
    """Two sites in each of two scans, one of them backwards; a score between, and more after."""

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 1.0))
        with numpyro.plate("both", 2):
            z = numpyro.sample("z", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(z.sum(), 0.5), obs=y)
        return x, z

    x, zs = lax.scan(step, 0.0, ys)
    numpyro.factor("between", -(zs[0] ** 2).sum())

    def back(w, y):
        w = numpyro.sample("w", dist.Normal(w, 1.0))
        numpyro.sample("v", dist.Normal(w, 0.5), obs=y)
        return w, x * w

    w, products = lax.scan(back, x, ys, reverse=True)
    numpyro.factor("after", -(w**2))
    return zs, products


@pytest.mark.parametrize(
    ("settings", "threshold"),
    [
        pytest.param({"num_path_nodes": 900}, 1.0, marks=pytest.mark.slow),
        ({"num_path_nodes": 900}, 0.6),
        ({"chunk_size": 7}, 0.6),
    ],
)
def test_what_saves_memory_changes_nothing(settings, threshold, key):
    """Paths from a tree, and particles in chunks, are those that are stored and evaluated whole."""
    program, ys = qbs.traced(qbs.reify(walk_there_and_back)), jnp.sin(jnp.arange(40.0))
    plain = qbs.run(qbs.population(program, 60, threshold=threshold))(key, ys)
    other = qbs.run(qbs.population(program, 60, threshold=threshold, **settings))(key, ys)
    assert float(other.log_weight) == pytest.approx(float(plain.log_weight), rel=1e-5)
    for a, b in zip(jax.tree.leaves(plain.value), jax.tree.leaves(other.value), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    (zs, products), trace = plain.value.value
    np.testing.assert_array_equal(zs, trace["z"])
    np.testing.assert_allclose(products, trace["x"][:, -1:] * trace["w"], rtol=1e-5)


def test_too_small_a_tree_of_paths_is_refused(key):
    program = qbs.population(qbs.traced(qbs.reify(walk_there_and_back)), 60, num_path_nodes=100)
    with pytest.raises(Exception, match="num_path_nodes=100 is too few"):
        jax.block_until_ready(qbs.run(program)(key, jnp.sin(jnp.arange(40.0))).log_weight)


def test_some_particles_and_some_sites_can_be_kept(key):
    program, ys = qbs.reify(walk_there_and_back), jnp.sin(jnp.arange(40.0))
    wanted = qbs.traced(program, sites=["w"])
    few = qbs.run(qbs.population(wanted, 60, num_returned=2))(key, ys).value
    assert few.log_weights.tolist() == [0.0, 0.0]
    assert {name: site.shape for name, site in few.value[1].items()} == {"w": (2, 40)}
    with pytest.raises(ProgramError, match=r"no site named \['u'\]; it has \['w', 'x', 'z'\]"):
        qbs.run(qbs.traced(program, sites=["u"]))(key, ys)


def test_a_second_run_compiles_nothing(key):
    traced = []

    def counted(y):
        traced.append(1)
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x

    program = qbs.reify(counted)
    first = qbs.run(program)(key, 0.5)
    count = len(traced)
    second = qbs.run(program)(key, 0.7)
    assert len(traced) == count
    assert first.value == second.value
    assert first.log_weight != second.log_weight


def test_a_mapped_branch_is_refused():
    """JAX makes a select of it, and the scores of both branches would count: -22 in place of -29."""

    def mapped():
        def one(y):
            lax.cond(y > 0, lambda: numpyro.factor("a", y), lambda: numpyro.factor("b", 10 * y))

        jax.vmap(one)(jnp.array([1.0, -1.0, -2.0]))

    with pytest.raises(ProgramError, match="predicate is mapped would run all its branches, with 'a', 'b'"):
        qbs.run(qbs.reify(mapped))(jax.random.key(0))


def test_a_program_serves_both_precisions(key):
    data = np.array([0.1, 0.2])

    def captured():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=data)

    program = qbs.reify(captured)
    single = qbs.log_density(program)({"x": 0.3})
    with jax.enable_x64(True):
        double = qbs.log_density(program)({"x": 0.3})
    assert (single.dtype, double.dtype) == (jnp.float32, jnp.float64)
    assert single == pytest.approx(float(double), rel=1e-6)
