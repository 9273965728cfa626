"""Reification: unmodified NumPyro models against NumPyro, what only JAX's loops can say, and what is refused.

How near is near: both sides add the same terms, in another order and from differently compiled code. A term
comes from parts of the order of max(1, |term|) in a few roundings, and each partial sum is rounded once more,
so values may differ by some units in the last place (6e-8 in float32, 1e-16 in float64) of the sum of
max(1, |term|) over the terms. Gradients likewise, where the terms are the derivatives of those terms.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.distributions import biject_to, constraints, transforms
from numpyro.infer.reparam import (
    CircularReparam,
    ExplicitReparam,
    LocScaleReparam,
    ProjectedNormalReparam,
    TransformReparam,
)
from numpyro.infer.util import compute_log_probs
from numpyro.infer.util import log_density as numpyro_log_density

import qbs
from qbs.captured import own_constants
from qbs.effects import sample_p
from qbs.errors import ProgramError
from qbs.jaxprs import all_names

TOLERANCE = {False: 1e-6, True: 1e-12}  # with and without float64
DRAWS = np.random.default_rng(7)
Y = np.sin(np.arange(5.0))


class Case(NamedTuple):
    """A model, and what it takes to compare it.

    Attributes:
        model: What is reified.
        args: Its arguments.
        given: Values of the sites that are not placed by their support: discrete ones with a constraint.
        theirs: From a trace of ours to what NumPyro's log density takes.
        reference: The model as NumPyro can run it, where that is another one.
    """

    model: Callable
    args: tuple = ()
    given: dict = {}  # noqa: RUF012 (never changed)
    theirs: Callable = lambda trace: trace
    reference: Callable | None = None


CASES: dict[str, Case] = {}


def case(name: str, *args: Any, **more: Any) -> Callable:
    def add(model: Callable) -> Callable:
        CASES[name] = Case(model, args, **more)
        return model

    return add


# Plates.
@case("schools", Y)
def schools(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 5):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.deterministic("square", theta**2)
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


@case("nested plates")
def nested_plates():
    rows, columns = numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 2)
    with rows:
        a = numpyro.sample("a", dist.Normal(0.0, 2.0))
    with columns:
        b = numpyro.sample("b", dist.Gamma(2.0, 1.0))
    with rows, columns:
        c = numpyro.sample("c", dist.Normal(a, b))
        with numpyro.plate("deep", 4, dim=-4):
            numpyro.sample("d", dist.Laplace(c, 1.0).expand([4, 1, 3, 2]))
            numpyro.sample("e", dist.Dirichlet(jnp.ones(3)))


@case("plate stacks")
def stacks():
    with numpyro.plate_stack("s", [2, 3], rightmost_dim=-2):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([4]))
    with numpyro.plate_stack("t", [3]):
        numpyro.sample("m", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
    numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=0.3)


@case("subsample", DRAWS.normal(size=10), given={"data": np.array([1, 7, 3, 2])})
def subsampled(data):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("data", 10, subsample_size=4) as index:
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=numpyro.subsample(data, event_dim=0))
        numpyro.factor("f", 0.1 * data[index])


CASES["subsample substituted"] = Case(
    handlers.substitute(subsampled, {"data": jnp.array([1, 7, 3, 2])}), (DRAWS.normal(size=10),)
)


@case(
    "subsamples crossed",
    DRAWS.normal(size=(10, 6)),
    given={"a": np.array([1, 7, 3, 2, 9]), "b": np.array([5, 0, 2])},
)
def subsamples_crossed(data):
    with numpyro.plate("a", 10, subsample_size=5, dim=-2) as i, numpyro.plate("b", 6, subsample_size=3) as j:
        p = numpyro.param("p", jnp.arange(60.0).reshape(10, 6) / 60, event_dim=0)
        numpyro.sample("y", dist.Normal(p, 0.5), obs=data[i][:, j])
        numpyro.sample("w", dist.Normal(p, 0.5))


# Handlers.
@case("mask", np.array([0.3, np.nan, 1.0, np.nan]))
def masked(y):
    seen = ~jnp.isnan(y)
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([4]).mask(seen))
    with handlers.mask(mask=seen), numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        numpyro.sample("b", dist.Beta(2.0, 1.0))
    with handlers.mask(mask=False):
        numpyro.sample("off", dist.Exponential(1.0))
        numpyro.factor("f", 3.0)
    with handlers.mask(mask=True):
        numpyro.sample("on", dist.Exponential(1.0))
    numpyro.sample("vector", dist.Normal(jnp.zeros((4, 3)), 1.0).mask(seen[:, None]).to_event(1))
    numpyro.sample("e", dist.Dirichlet(jnp.ones(3)).expand([4]).mask(seen))


@case("obs_mask", np.array([0.3, 0.0, 1.0, 0.0]), np.array([True, False, True, False]))
def partly_observed(y, seen):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)


@case("get_mask")
def reads_mask():
    if numpyro.get_mask() is None:
        numpyro.factor("outside", 1.5)
    with handlers.mask(mask=False):
        assert numpyro.get_mask() is False
        numpyro.factor("inside", 100.0)


@case("scale", Y)
def scaled(y):
    with handlers.scale(scale=jnp.arange(1.0, 6.0)), handlers.scale(scale=0.5), numpyro.plate("n", 5):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
    with handlers.scale(scale=2.5):
        numpyro.factor("f", x.sum())
        g = numpyro.sample("g", dist.Gamma(2.0, 1.0))
        numpyro.sample("k", dist.Poisson(g))
    with handlers.scale(scale=jnp.arange(1.0, 4.0)):
        numpyro.sample("one", dist.Normal(0.0, 1.0))


@case("block", Y)
def blocked(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with handlers.block(hide=["y", "aux"]):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        numpyro.factor("aux", 7.0)
        numpyro.sample("seen", dist.Normal(x, 1.0), obs=1.0)
    with handlers.block(expose=["z"]):
        numpyro.factor("hidden", 7.0)
        numpyro.sample("z", dist.Normal(x, 1.0), obs=0.2)
    with handlers.block(), handlers.seed(rng_seed=1):
        noise = numpyro.sample("noise", dist.Normal(0, 1))
    with handlers.block(expose_types=["deterministic"]), handlers.substitute(data={"w": 0.4}):
        w = numpyro.sample("w", dist.Normal(0, 1))
    numpyro.factor("end", noise * x * w)


CASES["condition"] = Case(handlers.condition(schools, {"theta": jnp.arange(5.0)}), (Y,))
CASES["condition by function"] = Case(
    handlers.condition(schools, condition_fn=lambda site: jnp.ones(5) if site["name"] == "theta" else None),
    (Y,),
)
CASES["do"] = Case(handlers.do(schools, {"mu": 0.5}), (Y,))
CASES["substitute"] = Case(handlers.substitute(schools, {"mu": 1.3, "theta": Y}), (Y,))
CASES["substitute by function"] = Case(
    handlers.substitute(schools, substitute_fn=lambda site: Y if site["name"] == "theta" else None), (Y,)
)


def recorded(**values):
    """Return a trace of latent sites with these values."""
    site = {"type": "sample", "is_observed": False, "infer": {}}
    return {name: {"name": name, "value": value, **site} for name, value in values.items()}


CASES["replay"] = Case(handlers.replay(schools, recorded(mu=1.3, theta=Y)), (Y,))
CASES["block but some"] = Case(handlers.block(schools, expose=["mu", "tau", "theta"]), (Y,))
CASES["uncondition"] = Case(handlers.uncondition(schools), (Y,))
CASES["infer_config"] = Case(handlers.infer_config(schools, lambda site: {"note": 1}), (Y,))
CASES["seed around"] = Case(handlers.seed(schools, 3), (Y,))
CASES["block by function"] = Case(
    handlers.block(schools, hide_fn=lambda site: site["name"] in ("square", "y")), (Y,)
)


@case("scope", Y)
def scoped(y):
    with handlers.scope(prefix="a"):
        schools(y)
    with handlers.scope(prefix="b", divider="."), handlers.scope(prefix="c"):
        schools(y)


@case("trace inside", Y)
def traced(y):
    with handlers.trace() as trace:
        schools(y)
    theta = trace["theta"]
    numpyro.factor("f", theta["fn"].log_prob(theta["value"] + 1.0).sum() + trace["mu"]["value"])


CASES["loc-scale reparam"] = Case(handlers.reparam(schools, {"theta": LocScaleReparam(0)}), (Y,))
CASES["reparam with a lifted parameter"] = Case(
    handlers.lift(
        handlers.reparam(schools, {"theta": LocScaleReparam()}), {"theta_centered": dist.Uniform(0, 1)}
    ),
    (Y,),
)


@case("reparam", given={"v_unwrapped": np.array(0.7)})
def reparametrized():
    loc = numpyro.sample("loc", dist.Normal(0, 1))
    config = {
        "t": TransformReparam(),
        "p": ProjectedNormalReparam(),
        "v": CircularReparam(),
        "e": ExplicitReparam(transforms.SoftplusTransform().inv),
        "s": LocScaleReparam(0.3, shape_params=["df"]),
    }
    log_scale = [transforms.AffineTransform(loc, 2.0), transforms.ExpTransform()]
    with handlers.reparam(config=config):
        t = numpyro.sample("t", dist.TransformedDistribution(dist.Normal(0, 1).expand([3]), log_scale))
        p = numpyro.sample("p", dist.ProjectedNormal(jnp.stack([loc, 1.0])))
        v = numpyro.sample("v", dist.VonMises(loc, 2.0))
        e = numpyro.sample("e", dist.Gamma(3.0, 2.0))
        s = numpyro.sample("s", dist.StudentT(4.0, loc, 2.0).expand([2]))
    numpyro.factor("f", -0.1 * (jnp.log(t).sum() + p.sum() + v + e + s.sum()))


def parameters():
    a = numpyro.param("a", 1.0)
    b = numpyro.param("b", jnp.ones(3), constraint=constraints.positive)
    numpyro.sample("y", dist.Normal(a * b, numpyro.param("c", 0.7)), obs=jnp.zeros(3))
    return numpyro.param("a", 1.0)


CASES["param"] = Case(parameters)
CASES["param substituted"] = Case(handlers.substitute(parameters, {"c": 0.2, "a": 3.0}))
CASES["lift"] = Case(
    handlers.lift(parameters, {"a": dist.Normal(0, 1), "b": dist.Gamma(2.0, 1.0).expand([3]).to_event(1)})
)


@case("deterministic, factor", Y)
def factors(y):
    x = numpyro.sample("x", dist.Normal(0, 1).expand([5]).to_event(1))
    square = numpyro.deterministic("square", x**2)
    numpyro.factor("vector", -jnp.abs(square - y))
    with numpyro.plate("n", 5):
        numpyro.factor("in plate", 0.1 * square)
        numpyro.deterministic("also", square)
    assert numpyro.deterministic("tree", {"a": x, "b": (square, 3.0), "c": "word"})["c"] == "word"


# Arguments, keys, names, shapes.
@case(
    "arguments",
    {"x": DRAWS.normal(size=5), "y": [DRAWS.normal(size=5), None]},
    2,
    0.5,
    "log",
    True,
    None,
    np.float64(1.5),
    np.array(2),
    np.array(["a", "b"]),
)
def arguments(data, num, noise, kind, flag, nothing, factor, whole, labels):
    assert nothing is None
    assert flag is True
    assert list(labels) == ["a", "b"]
    x = [numpyro.sample(f"x{i}", dist.Normal(0, math.sqrt(noise))) for i in range(num)]
    scale = {"log": jnp.log1p, "exp": jnp.exp}[kind](noise)
    numpyro.sample("y", dist.Normal(sum(x) * data["x"], scale * factor), obs=data["y"][0])
    numpyro.factor("z", whole * x[0])


def keywords(y, *, scale, num=2):
    for i in range(num):
        x = numpyro.sample(f"x{i}", dist.Normal(0, scale))
    numpyro.sample("y", dist.Normal(x, scale), obs=y)


CASES["keywords"] = Case(functools.partial(keywords, scale=jnp.array(2.0), num=3), (Y,))


class Settings:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, y):
        x = numpyro.sample("x", dist.Normal(0, self.scale))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    def method(self, y):
        return self(y)


CASES["callable object"] = Case(Settings(2.0), (Y,))
CASES["method"] = Case(Settings(2.0).method, (Y,))


@case("sample_shape", DRAWS.normal(size=(3, 2)))
def sample_shapes(y):
    x = numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0), sample_shape=(3,))
    with handlers.scale(scale=2.0):
        numpyro.sample("w", dist.Dirichlet(jnp.ones(2)), sample_shape=(3, 4))
    with numpyro.plate("p", 3, dim=-2):
        numpyro.sample("v", dist.Normal(0.0, 1.0), sample_shape=(2,))
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y + x, sample_shape=(3, 2))


@case("keys")
def keyed():
    x = numpyro.sample("x", dist.Normal(0, 1), rng_key=jax.random.key(3))
    with handlers.seed(rng_seed=2):
        key = numpyro.prng_key()
        numpyro.sample("y", dist.Normal(x, 1.0), obs=jax.random.normal(key))
        numpyro.sample("z", dist.Normal(x, 1.0))


@case("names")
def names():
    a = numpyro.sample('it\'s "ä/ß" \n {x} %s', dist.Normal(0, 1))
    b = numpyro.sample("", dist.Normal(a, 1))
    numpyro.deterministic("δ", b)
    numpyro.factor("a/b/c", b)
    scan(lambda c, _: (numpyro.sample("§ 'q'", dist.Normal(c, 1.0)), None), 0.0, None, length=2)


def inner(s, y):
    a = numpyro.sample("a", dist.Normal(0, s))
    numpyro.sample("y", dist.Normal(a, 1.0), obs=y)
    return a


def outer(part, y):
    s = numpyro.sample("s", dist.Exponential(1.0))
    with handlers.scale(scale=2.0), numpyro.plate("p", 5), handlers.mask(mask=jnp.arange(5) < 3):
        a = part(s, y)
    with handlers.scope(prefix="again"), handlers.condition(data={"a": 0.3}):
        part(s, y)
    numpyro.sample("end", dist.Normal(a.sum(), 1.0), obs=0.0)


CASES["program in a model"] = Case(
    functools.partial(outer, qbs.reify(inner)), (Y,), reference=functools.partial(outer, inner)
)


@case("checkpoint, custom_jvp", Y)
def derivatives(y):
    @jax.custom_jvp
    def leaky(x):
        return jnp.where(x > 0, x, 0.1 * x)

    leaky.defjvp(lambda primals, tangents: (leaky(*primals), 3.0 * tangents[0]))
    x = numpyro.sample("x", dist.Normal(0, 1))
    curve = jax.checkpoint(lambda x: jnp.sin(x) ** 2)
    numpyro.sample("y", dist.Normal(curve(x) + leaky(x), 1.0), obs=y)


# Loops and branches.
def walk(y):
    scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))

    def step(previous, observed):
        x = numpyro.sample("x", dist.Normal(0.9 * previous, scale))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=observed)
        return x, x

    numpyro.deterministic("last", scan(step, 0.0, y)[0])


CASES["scan"] = Case(walk, (Y,))
CASES["scale around scan"] = Case(handlers.scale(walk, 2.0), (Y,))
CASES["block around scan"] = Case(handlers.block(walk, hide=["y"]), (Y,))
CASES["infer_config, mask, scale and scope around scan"] = Case(
    handlers.scope(
        handlers.infer_config(
            handlers.mask(handlers.scale(walk, 0.5), mask=jnp.array(True)), lambda site: {"note": 1}
        ),
        "in",
    ),
    (Y,),
    theirs=lambda trace: trace | {"x": trace["in/x"]},  # what NumPyro hands on to a scan has no prefix
)


@case("substitute around scan", Y)
def walk_substituted(y):
    return handlers.substitute(walk, {"scale": 1.2, "x": jnp.arange(5.0)})(y)


@case("replay around scan", Y, reference=walk_substituted)  # NumPyro replays a scan only under a seed
def walk_replayed(y):
    return handlers.replay(walk, recorded(scale=1.2, x=jnp.arange(5.0)))(y)


@case("substitute and condition inside, by site and by function", Y)
def scan_given(y):
    def step(c, y):
        x = numpyro.sample("x", dist.Normal(c, 1.0))
        with numpyro.plate("n", 2):
            numpyro.sample("z", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return numpyro.sample("free", dist.Normal(x, 1.0)), None

    with (
        handlers.substitute(data={"x": jnp.linspace(0, 1, 5)}),
        handlers.condition(condition_fn=lambda site: jnp.ones(2) if site["name"] == "z" else None),
    ):
        scan(step, 0.0, y)


@case("plates in a scan", DRAWS.normal(size=(6, 3)))
def plates_in_scan(y, scan=scan):
    rho = numpyro.sample("rho", dist.Uniform(-1, 1))

    def step(carry, y):
        x, tree = carry
        with numpyro.plate("series", 3):
            x = numpyro.sample("x", dist.Normal(rho * x, tree["s"]))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
            with numpyro.plate("inner", 2, dim=-2):
                numpyro.sample("z", dist.Normal(x, 1.0))
        numpyro.deterministic("twice", 2 * x)
        return (x, {"s": tree["s"] * 1.1}), x

    scan(step, (jnp.zeros(3), {"s": 0.5}), y)


# In a reversed scan NumPyro counts the values that it is given in the order of execution, from the end; those
# that it reports it counts from the start, as qbs does for both.
@case("scan in reverse", Y, theirs=lambda trace: {**trace, "x": trace["x"][::-1]})
def backwards(y, scan=scan):
    s = numpyro.sample("s", dist.Exponential(1.0))

    def step(c, y):
        x = numpyro.sample("x", dist.Normal(c, s))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, x

    numpyro.deterministic("all", scan(step, 0.0, y, reverse=True)[1])


CASES["condition around scan in reverse"] = Case(
    handlers.condition(backwards, {"x": jnp.linspace(0, 1, 5)}), (Y,)
)


@case("scan of a length")
def no_inputs():
    def step(carry, _):
        x = numpyro.sample("x", dist.Normal(carry["m"], 1.0))
        return {"m": 0.5 * x + carry["k"], "k": carry["k"]}, None

    carry, _ = scan(step, {"m": 1.0, "k": jnp.array(2.0)}, None, length=4)
    numpyro.factor("end", carry["m"])


@case("scan with history", DRAWS.normal(size=6))
def history(y):
    def step(carry, y):
        x = numpyro.sample("x", dist.Normal(carry[0] + 0.3 * carry[1], 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return (x, carry[0]), None

    scan(step, (0.0, 0.0), y, history=2)


@case("cond in a scan", DRAWS.normal(size=6))
def cond_in_scan(y, scan=scan, cond=cond):
    def step(c, y):
        k = numpyro.sample("k", dist.Bernoulli(0.4))
        x = cond(
            k == 1,
            lambda m: numpyro.sample("x", dist.Normal(m, 1.0)),
            lambda m: numpyro.sample("x", dist.Normal(0.0, 3.0)),
            c,
        )
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


@case("nested conds")
def nested_conds(cond=cond):
    a = numpyro.sample("a", dist.Normal(0, 1))

    def near(m):
        x = numpyro.sample("x", dist.Normal(m, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=0.3)
        return numpyro.deterministic("d", 2 * x)

    def far(m):
        x = numpyro.sample("x", dist.Normal(m, 5.0))
        numpyro.sample("y", dist.Normal(0.0, 2.0), obs=0.3)
        return numpyro.deterministic("d", 3 * x)

    return cond(a > 0, lambda m: cond(m > 1, near, far, m), lambda m: cond(m < -1, far, near, m), a)


CASES["condition around conds"] = Case(handlers.condition(nested_conds, {"x": 0.4}))


@case("hidden Markov model", DRAWS.normal(size=8), given={"z": np.array([0, 2, 1, 1, 0, 2, 2, 0])})
def hidden_markov(y):
    with numpyro.plate("states", 3):
        transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones(3)))
        loc = numpyro.sample("loc", dist.Normal(0, 3))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(transition[z]), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)
        return z, z

    scan(step, 0, y)


@case("AR(2)", DRAWS.normal(size=20))
def autoregression(y):
    a1, a2 = numpyro.sample("a1", dist.Normal(0, 1)), numpyro.sample("a2", dist.Normal(0, 1))
    c, s = numpyro.sample("c", dist.Normal(0, 1)), numpyro.sample("s", dist.HalfNormal(1))

    def step(carry, _):
        mean = c + a1 * carry[0] + a2 * carry[1]
        return (numpyro.sample("y", dist.Normal(mean, s)), carry[0]), mean

    with handlers.condition(data={"y": y[2:]}):
        scan(step, (y[1], y[0]), jnp.arange(2, 20))


# Loops and branches of JAX itself, which NumPyro cannot run: against models without them.
for model, jax_own in (
    (plates_in_scan, {"scan": lax.scan}),
    (backwards, {"scan": functools.partial(lax.scan, unroll=2)}),
    (cond_in_scan, {"scan": lax.scan, "cond": lax.cond}),
    (nested_conds, {"cond": lax.cond}),
):
    name, known = next((name, known) for name, known in CASES.items() if known.model is model)
    CASES[f"{name}, JAX's own"] = known._replace(model=functools.partial(model, **jax_own), reference=model)


def mapped_written_out(y):
    shift, scale = jnp.arange(3.0), jnp.arange(1.0, 3.0)
    a = numpyro.sample("a", dist.Normal(numpyro.sample("loc", dist.Normal(0, 2)) + shift, 1.0))
    m = numpyro.sample("m", dist.MultivariateNormal(jnp.zeros(2), (1 + shift)[:, None, None] * jnp.eye(2)))
    g = numpyro.sample("g", dist.Gamma(2.0, 1.0))  # it does not depend on what is mapped
    numpyro.factor("f", g)
    b = numpyro.sample("b", dist.Normal((a + g)[:, None], scale))
    numpyro.sample("y", dist.Normal(b * m.sum(-1, keepdims=True), scale), obs=y.T)


@case("vmap in vmap", DRAWS.normal(size=(2, 3)), reference=mapped_written_out)
def mapped(y):
    loc = numpyro.sample("loc", dist.Normal(0, 2))

    def column(shift, ys):
        a = numpyro.sample("a", dist.Normal(loc + shift, 1.0))
        m = numpyro.sample("m", dist.MultivariateNormal(jnp.zeros(2), (1 + shift) * jnp.eye(2)))
        g = numpyro.sample("g", dist.Gamma(2.0, 1.0))
        numpyro.factor("f", g)

        def cell(scale, y):
            b = numpyro.sample("b", dist.Normal(a + g, scale))
            numpyro.sample("y", dist.Normal(b * m.sum(), scale), obs=y)

        jax.vmap(cell)(jnp.arange(1.0, 3.0), ys)

    jax.vmap(column, in_axes=(0, 1))(jnp.arange(3.0), y)


def paths(y, start, scale, scan):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, scale))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, x

    return scan(step, start, y)


def paths_side_by_side(y):
    paths(y, jnp.arange(3.0), numpyro.sample("scale", dist.Exponential(1.0)), scan)


@case("scan in vmap", DRAWS.normal(size=(4, 3)), reference=paths_side_by_side)
def scan_in_vmap(y):
    scale = numpyro.sample("scale", dist.Exponential(1.0))
    one = functools.partial(paths, scale=scale, scan=lax.scan)
    _, x = jax.vmap(one, in_axes=(1, 0), out_axes=(0, 1))(y, jnp.arange(3.0))
    assert x.shape == y.shape


def free(name, *shape):
    return numpyro.sample(name, dist.ImproperUniform(constraints.real, (), shape))


def stairs_written_out(y):
    level, x = free("level", 3), free("x", 3, 4)
    ends = jnp.concatenate([jnp.zeros(1), x[:-1, -1]])
    numpyro.sample("level's", dist.Normal(ends, 2.0), obs=level)
    numpyro.sample("x's", dist.Normal(jnp.concatenate([level[:, None], x[:, :-1]], 1), 0.5), obs=x)
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


@case("scan in scan", DRAWS.normal(size=(3, 4)), reference=stairs_written_out)
def stairs(y):
    def row(level, ys):
        return paths(ys, numpyro.sample("level", dist.Normal(level, 2.0)), 0.5, lax.scan)

    lax.scan(row, 0.0, y)


def calls_written_out(y):
    a = numpyro.sample("a", dist.Exponential(1.0))
    b = numpyro.sample("b", dist.Exponential(a))
    last, _ = paths(y, a, b, scan)
    scan(lambda z, i: (numpyro.sample("z", dist.Normal(z + i, 1.0)),) * 2, last, jnp.arange(3))
    numpyro.sample("w", dist.Normal(jnp.arange(3.0), b))


@case("jit, checkpoint, fori_loop, map", Y, reference=calls_written_out)
def calls(y):
    @functools.partial(jax.jit, static_argnums=1)
    def draw(rate, name):
        return numpyro.sample(name, dist.Exponential(rate))

    a = draw(1.0, "a")
    b = draw(a, "b")
    last, _ = jax.checkpoint(
        lambda y: paths(y, a, b, lambda step, *rest: lax.scan(jax.checkpoint(step), *rest))
    )(y)
    lax.fori_loop(0, 3, lambda i, z: numpyro.sample("z", dist.Normal(z + i, 1.0)), last)
    lax.map(lambda loc: numpyro.sample("w", dist.Normal(loc, b)), jnp.arange(3.0))


def branches_written_out():
    signs = {name: numpyro.sample(name, dist.Normal(0, 1)) for name in ("+", "----")}
    for name, m in signs.items():
        numpyro.sample(f"x{name}", dist.Normal(m, 1.0).mask(m > 0))
        numpyro.factor(f"f{name}", jnp.where(m > 0, m, 3.0))
    k = numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))
    numpyro.sample("u", dist.Normal(jnp.arange(3.0)[k], 1.0 + k))
    is_above, scale = signs["+"] > 0, jnp.arange(1.0, 4.0)
    numpyro.sample("w", dist.Normal(jnp.where(is_above, scale, 0.0), jnp.where(is_above, 1.0, scale)))


@case("cond, switch, cond in vmap", reference=branches_written_out)
def branches():
    signs = {name: numpyro.sample(name, dist.Normal(0, 1)) for name in ("+", "----")}
    for name, m in signs.items():

        def above(m, name=name):
            numpyro.factor(f"f{name}", m)
            return numpyro.sample(f"x{name}", dist.Normal(m, 1.0))

        def below(m, name=name):
            numpyro.factor(f"f{name}", 3.0)
            return m

        lax.cond(m > 0, above, below, m)
    k = numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))
    lax.switch(k, [lambda i=i: numpyro.sample("u", dist.Normal(float(i), 1.0 + i)) for i in range(3)])

    def either(scale):
        return lax.cond(
            signs["+"] > 0,
            lambda: numpyro.sample("w", dist.Normal(scale, 1.0)),
            lambda: numpyro.sample("w", dist.Normal(0.0, scale)),
        )

    jax.vmap(either)(jnp.arange(1.0, 4.0))


# Models of applications.
@case("stochastic volatility", DRAWS.normal(size=30))
def volatility(returns):
    step = numpyro.sample("step", dist.Exponential(5.0))
    s = numpyro.sample("s", dist.GaussianRandomWalk(scale=step, num_steps=30))
    nu = numpyro.sample("nu", dist.Exponential(0.1))
    numpyro.sample("r", dist.StudentT(df=nu, loc=0.0, scale=jnp.exp(s)), obs=returns)


@case("logistic regression", DRAWS.normal(size=(3000, 4)), DRAWS.integers(0, 2, size=3000))
def logistic(x, y):
    b = numpyro.sample("b", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
    with numpyro.plate("n", 3000):
        numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


@case(
    "hierarchical regression",
    DRAWS.normal(size=(40, 2)),
    DRAWS.integers(0, 4, size=40),
    DRAWS.normal(size=40),
)
def hierarchical(x, group, y):
    mu = numpyro.sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
    corr = numpyro.sample("corr", dist.LKJCholesky(2, 2.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0).expand([2]).to_event(1))
    with numpyro.plate("groups", 4):
        b = numpyro.sample("b", dist.MultivariateNormal(mu, scale_tril=tau[:, None] * corr))
    s = numpyro.sample("s", dist.InverseGamma(2.0, 1.0))
    with numpyro.plate("n", 40):
        numpyro.sample("y", dist.Normal((x * b[group]).sum(-1), jnp.sqrt(s)), obs=y)


@case("Gaussian process", DRAWS.normal(size=(12, 2)), DRAWS.normal(size=12))
def gaussian_process(x, y):
    variance = numpyro.sample("variance", dist.LogNormal(0.0, 1.0))
    length = numpyro.sample("length", dist.LogNormal(0.0, 0.5))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    squares = jnp.sum((x[:, None] - x[None]) ** 2, -1)
    kernel = variance * jnp.exp(-0.5 * squares / length**2) + (noise + 0.1) * jnp.eye(12)
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(12), covariance_matrix=kernel), obs=y)


# Distributions.
@case("mixtures", DRAWS.normal(size=20))
def mixtures(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    loc = numpyro.sample("loc", dist.Normal(0, 3).expand([3]).to_event(1))
    mixture = dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(loc, 1.0))
    x = numpyro.sample("x", mixture)
    with numpyro.plate("n", 20):
        numpyro.sample("y", mixture, obs=y)
    parts = [dist.Normal(x, 1.0), dist.StudentT(3.0, 0.0, 1.0)]
    numpyro.sample("general", dist.MixtureGeneral(dist.Categorical(jnp.array([0.3, 0.7])), parts))
    vectors = dist.MultivariateNormal(jnp.zeros((3, 2)), jnp.eye(2))
    numpyro.sample("vector", dist.MixtureSameFamily(dist.Categorical(w), vectors))


@case("transformed")
def transformed():
    base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    x = numpyro.sample("x", dist.TransformedDistribution(dist.Normal(0, 1), transforms.SigmoidTransform()))
    numpyro.sample("ordered", dist.TransformedDistribution(base, transforms.OrderedTransform()))
    numpyro.sample("simplex", dist.TransformedDistribution(base, transforms.StickBreakingTransform()))
    lower = jnp.eye(2) + jnp.tril(jnp.full((2, 2), x), -1)
    flow = [
        transforms.LowerCholeskyAffine(jnp.ones(2), lower),
        transforms.PermuteTransform(jnp.array([1, 0])),
    ]
    numpyro.sample("flow", dist.TransformedDistribution(base, flow))
    power = transforms.PowerTransform(-1.0)
    numpyro.sample("power", dist.TransformedDistribution(dist.Gamma(2.0, 1.0), power))
    numpyro.sample("folded", dist.FoldedDistribution(dist.Normal(x, 1.0)))
    numpyro.sample("gumbel", dist.Gumbel(x, 2.0))
    numpyro.sample("kumaraswamy", dist.Kumaraswamy(2.0, 1.0 + x))
    numpyro.sample("y", dist.LogNormal(x, 1.0), obs=2.0)


@case("counts", DRAWS.multinomial(10, [0.2, 0.3, 0.5], size=4))
def counts(y):
    a = numpyro.sample("a", dist.Gamma(2.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.DirichletMultinomial(a, 10), obs=y)
    numpyro.sample("m", dist.Multinomial(10, a / a.sum()), obs=y[0])
    numpyro.sample("bb", dist.BetaBinomial(a[0], a[1], 12), obs=5)
    numpyro.sample("nb", dist.NegativeBinomial2(a[0], a[1]), obs=5)
    numpyro.sample("gp", dist.GammaPoisson(a[0], a[1]), obs=2)
    numpyro.sample("geometric", dist.Geometric(logits=a[0]), obs=2)


@case("discrete latents", given={"m": np.array([1, 3, 2]), "dm": np.array([0, 2, 5])})
def discrete():
    k = numpyro.sample("k", dist.Categorical(logits=jnp.arange(3.0)))
    n = numpyro.sample("n", dist.Poisson(2.0 + k))
    b = numpyro.sample("b", dist.Binomial(10, 0.3))
    p = numpyro.sample("p", dist.Beta(1.0 + b, 2.0 + n))
    numpyro.sample("u", dist.DiscreteUniform(0, 4))
    numpyro.sample("o", dist.OrderedLogistic(p, jnp.array([0.0, 1.0])))
    numpyro.sample("m", dist.Multinomial(6, jnp.ones(3) / 3))
    numpyro.sample("dm", dist.DirichletMultinomial(jnp.ones(3), 7))
    numpyro.sample("nb", dist.NegativeBinomialLogits(5, 0.3))
    numpyro.sample("flag", dist.BernoulliProbs(p))


@case("zero-inflated", DRAWS.poisson(2.0, size=10))
def zero_inflated(y):
    gate = numpyro.sample("gate", dist.Beta(1.0, 1.0))
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("n", 10):
        numpyro.sample("y", dist.ZeroInflatedPoisson(gate, rate), obs=y)
        numpyro.sample("nb", dist.ZeroInflatedNegativeBinomial2(rate, 2.0, gate=gate), obs=y)
        numpyro.sample("z", dist.ZeroInflatedDistribution(dist.Poisson(rate), gate=gate))


@case("truncated", DRAWS.uniform(1, 2, size=5))
def truncated(y):
    low = numpyro.sample("low", dist.TruncatedNormal(0.0, 1.0, low=-2.0, high=0.5))
    numpyro.sample("cauchy", dist.TruncatedCauchy(0.0, 1.0, low=low))
    numpyro.sample("laplace", dist.TruncatedDistribution(dist.Laplace(0.0, 1.0), high=1.0))
    numpyro.sample("y", dist.TruncatedNormal(low, 1.0, low=0.5, high=2.5), obs=y)
    numpyro.sample("uniform", dist.Uniform(low, 3.0).expand([2]))


@case("improper")
def improper():
    x = numpyro.sample("x", dist.ImproperUniform(constraints.greater_than(0.5), (), ()))
    o = numpyro.sample("o", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
    with numpyro.plate("n", 2):
        p = numpyro.sample("p", dist.ImproperUniform(constraints.positive, (), ()))
    numpyro.sample("y", dist.Normal(x + o.sum() + p, 1.0), obs=jnp.zeros(2))


@case("delta", given={"d": np.arange(3.0), "e": np.ones(2)})
def delta():
    m = numpyro.sample("m", dist.Normal(0, 1))
    numpyro.sample("d", dist.Delta(jnp.arange(3.0), log_density=0.5, event_dim=1))
    numpyro.sample("e", dist.Delta(jnp.ones(2), log_density=jnp.array([0.2, 0.3])))
    numpyro.sample("f", dist.Delta(1.0, log_density=m), obs=1.0)


@case("multivariate", DRAWS.normal(size=(3, 4)))
def multivariate(y):
    s = numpyro.sample("s", dist.Exponential(1.0))
    factor = s * jnp.ones((4, 2)) + jnp.arange(8.0).reshape(4, 2)
    low_rank = dist.LowRankMultivariateNormal(jnp.zeros(4), factor, jnp.ones(4) + s)
    numpyro.sample("x", low_rank)
    with numpyro.plate("n", 3):
        numpyro.sample("y", low_rank, obs=y)
        numpyro.sample("t", dist.MultivariateStudentT(4.0, jnp.zeros(2), jnp.eye(2) * s))


@case("state space", DRAWS.normal(size=(6, 2)))
def state_space(y):
    s = numpyro.sample("s", dist.Exponential(1.0))
    transition = jnp.array([[0.9, 0.1], [0.0, 0.8]])
    noise = jnp.eye(2) * (0.1 + s)
    x = numpyro.sample("x", dist.GaussianStateSpace(6, transition, covariance_matrix=noise))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(2), obs=y)
    field = dist.EulerMaruyama(jnp.arange(5.0), lambda x, t: (-x, jnp.ones_like(x)), dist.Normal(0.0, 1.0))
    numpyro.sample("path", field)


@case("matrices", given={"lkj": np.array([[1.0, 0.2, -0.1], [0.2, 1.0, 0.3], [-0.1, 0.3, 1.0]])})
def matrices():
    w = numpyro.sample("w", dist.Wishart(5.0, jnp.eye(3)))
    rows = jnp.linalg.cholesky(jnp.eye(3) + 0.1 * w)
    numpyro.sample("mn", dist.MatrixNormal(jnp.zeros((3, 2)), rows, jnp.eye(2)))
    numpyro.sample("lkj", dist.LKJ(3, 1.5))
    numpyro.sample("cholesky", dist.LKJCholesky(3, 1.5))
    neighbours = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    numpyro.sample("car", dist.CAR(jnp.zeros(3), 0.5, 1.0, neighbours))


@case("angles", given={"loc": np.array([0.6, 0.8])})
def angles():
    loc = numpyro.sample("loc", dist.ProjectedNormal(jnp.array([1.0, 2.0])))
    numpyro.sample("v", dist.VonMises(jnp.arctan2(loc[0], loc[1]), 2.0))
    pair = dist.SineBivariateVonMises(0.1, 0.2, 2.0, 3.0, 0.5)
    numpyro.sample("pair", pair, obs=jnp.array([0.3, -0.2]))


BY_LOCATION = (
    dist.Cauchy,
    dist.Gumbel,
    dist.Laplace,
    dist.Levy,
    dist.Logistic,
    dist.LogNormal,
    dist.Normal,
    dist.SoftLaplace,
)
BY_SHAPE = (
    dist.Beta,
    dist.Gamma,
    dist.Gompertz,
    dist.InverseGamma,
    dist.Kumaraswamy,
    dist.Pareto,
    dist.VonMises,
    dist.Weibull,
)
BY_SCALE = (dist.Chi2, dist.Exponential, dist.HalfCauchy, dist.HalfNormal)


@case("univariate")
def univariate():
    """Each family with all its parameters latent."""
    a, b = (numpyro.sample(name, dist.Exponential(1.0)) for name in ("a", "b"))
    for family in (*BY_LOCATION, *BY_SHAPE):
        numpyro.sample(family.__name__, family(a, b))
    for family in BY_SCALE:
        numpyro.sample(family.__name__, family(a))
    numpyro.sample("AsymmetricLaplace", dist.AsymmetricLaplace(a, b, 1 + a))
    numpyro.sample("BetaProportion", dist.BetaProportion(a / (a + b), 1 + b))
    numpyro.sample("LogUniform", dist.LogUniform(a, a + b))
    numpyro.sample("RelaxedBernoulli", dist.RelaxedBernoulliLogits(b, logits=a))
    numpyro.sample("StudentT", dist.StudentT(1 + a, a, b))
    numpyro.sample("TruncatedNormal", dist.TruncatedNormal(a, b, low=-a, high=a + b))
    numpyro.sample("Uniform", dist.Uniform(-a, b))


def _place(given: dict) -> Callable:
    """Return a `substitute_fn` that gives each latent site a value in its support, another in every step."""

    def place(site):
        name = site["name"]
        if name in given and not site.get("is_observed", False):
            return jnp.asarray(given[name])
        if site["type"] != "sample" or site["is_observed"]:
            return None
        fn, start = site["fn"], len(name) + site["infer"].get("_scan_current_index", 0)
        shape = tuple(site["kwargs"]["sample_shape"]) + fn.shape()
        if fn.support.is_discrete:
            return jnp.broadcast_to(start % 2, shape)
        transform = biject_to(fn.support)
        free = transform.inverse_shape(shape)
        return transform(0.7 * jnp.sin(start + jnp.arange(math.prod(free), dtype=float)).reshape(free))

    return place


def _latents(model: Callable, args: tuple, given: dict) -> dict[str, np.ndarray]:
    trace = handlers.trace(handlers.substitute(model, substitute_fn=_place(given))).get_trace(*args)
    latent = [n for n, site in trace.items() if site["type"] == "sample" and not site["is_observed"]]
    return {name: trace[name]["value"] for name in latent} | given


def _split(args: tuple) -> tuple[list, Callable]:
    """Return the arrays among arguments, and how to put them back."""
    leaves, structure = jax.tree.flatten(args)
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray) and leaf.dtype.kind != "U"]

    def back(arrays):
        whole = list(leaves)
        for i, array in zip(where, arrays, strict=True):
            whole[i] = array
        return jax.tree.unflatten(structure, whole)

    return [leaves[i] for i in where], back


# LLVM's own optimization is most of the time that these tests take.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def compare(this: Case) -> dict[bool, tuple[float, float]]:
    """Return the largest relative differences of value and gradient, by precision."""
    arrays, back = _split(this.args)
    program, reference = qbs.reify(this.model), this.reference or this.model
    differences = {}
    with jax.enable_x64(True):
        own = own_constants(reference)
        latent = jax.jit(lambda arrays: _latents(own, back(arrays), this.given))(arrays)
        sites = all_names(program.stage(*this.args).jaxpr, {sample_p})  # NumPyro has no others, or it fails
        latent = {name: np.asarray(latent[name]) for name in sites}
        floats = {k: v for k, v in latent.items() if v.dtype.kind == "f"}
        others = {k: v for k, v in latent.items() if k not in floats}
        floats["no site"] = np.zeros(())  # there may be no other number to differentiate by

        def terms(floats, arrays):
            given = this.theirs(floats | jax.tree.map(jnp.asarray, others))
            found, _ = compute_log_probs(own, back(arrays), {}, given, sum_log_prob=False)
            terms = jnp.concatenate([jnp.zeros(1), *[jnp.ravel(term) for term in found.values()]])
            return terms, terms

        slopes, values = _jit(jax.jacfwd(terms, has_aux=True))(floats, arrays)
        size = np.maximum(np.abs(values), 1.0).sum()
        sizes = jax.tree.map(lambda slope: 1.0 + np.abs(slope).sum(0), slopes)
    for precision in (False, True):
        with jax.enable_x64(precision):
            own = own_constants(reference)

            def ours(floats, others, arrays):
                return qbs.log_density(program)(floats | others, *back(arrays))

            def theirs(floats, others, arrays, own=own):
                given = this.theirs(floats | others)
                return numpyro_log_density(own, back(arrays), {}, given)[0] + 0.0

            (a, da), (b, db) = (_jit(jax.value_and_grad(f))(floats, others, arrays) for f in (ours, theirs))
            assert np.isfinite(b)
            apart = jax.tree.map(lambda x, y, size: np.max(np.abs(x - y) / size, initial=0.0), da, db, sizes)
            differences[precision] = float(abs(a - b) / size), max([0.0, *map(float, apart.values())])
    return differences


# Much to compile; what they show, others show as well.
SLOW = (
    "counts",
    "matrices",
    "Gaussian process",
    "univariate",
    "stochastic volatility",
    "multivariate",
    "transformed",
    "mixtures",
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES]
)
def test_log_density_is_numpyros(name):
    for precision, (value, gradient) in compare(CASES[name]).items():
        assert value <= TOLERANCE[precision], f"value, float{64 if precision else 32}"
        assert gradient <= TOLERANCE[precision], f"gradient, float{64 if precision else 32}"


# What is refused.
def x():
    return numpyro.sample("x", dist.Normal(0.0, 1.0))


def twice_as_a_note():
    numpyro.deterministic("x", x())


def twice_observed():
    x()
    numpyro.sample("x", dist.Normal(0.0, 1.0), obs=0.0)


def twice_with_a_loop():
    lax.scan(lambda carry, _: (carry + x(), None), x(), None, length=2)


def loop_of_a_drawn_length():
    n = numpyro.sample("n", dist.Poisson(3.0))
    lax.fori_loop(0, n, lambda _, total: total + x(), 0.0)


def while_it_scores():
    def score(i):
        numpyro.factor("f", 1.0)
        return i + 1

    lax.while_loop(lambda i: i < 3, score, 0)


@jax.custom_batching.custom_vmap
def custom(loc):
    return numpyro.sample("x", dist.Normal(loc, 1.0))


custom.def_vmap(lambda size, batched, loc: (custom(loc), batched[0]))


def derivative():
    jax.grad(lambda loc: numpyro.sample("x", dist.Normal(loc, 1.0)))(0.0)


def drawn_shape():
    with numpyro.plate("p", numpyro.sample("n", dist.Poisson(3.0))):
        x()


def drawn_choice():
    if x() > 0:
        numpyro.factor("f", 1.0)


def drawn_selection():
    v = numpyro.sample("v", dist.Normal(0.0, 1.0).expand([3]))
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=v[v > 0])


def shapes_by_branch():
    coin = numpyro.sample("coin", dist.Bernoulli(0.5))
    wide = dist.Normal(0.0, 1.0).expand([2])
    lax.cond(coin == 1, x, lambda: numpyro.sample("x", wide).sum())


def hidden_draw():
    numpyro.sample("mu", dist.Normal(0, 1))
    handlers.block(x)()


def key_for_nothing():
    jax.random.normal(numpyro.prng_key())


def series_too_short():
    with handlers.condition(data={"x": jnp.ones(3)}):
        scan(lambda carry, _: (x(), None), 0.0, None, length=5)


class Forgetful(dist.Distribution):
    support = constraints.real

    def __init__(self, shift):
        self.shift = shift
        super().__init__()

    def sample(self, key, sample_shape=()):
        return self.shift + jax.random.normal(key, sample_shape)


def drift_of_a_latent():
    rate = numpyro.sample("rate", dist.Exponential(1.0))
    path = dist.EulerMaruyama(jnp.arange(4.0), lambda x, t: (-rate * x, 1.0), dist.Normal(0.0, 1.0))
    numpyro.sample("path", path)


REFUSED = {
    drift_of_a_latent: "'path' holds a function that closes over values of the program",
    lambda: numpyro.sample("x", dist.ImproperUniform(constraints.real, (), ())): "cannot draw .* site 'x'",
    twice_as_a_note: "'x' appears twice in 'twice_as_a_note'",
    twice_observed: "'x' appears twice",
    twice_with_a_loop: "'x' appears twice",
    loop_of_a_drawn_length: "primitive 'while' around 'x'",
    while_it_scores: "primitive 'while' around 'f'",
    lambda: custom(0.0): "primitive 'custom_vmap_call' around 'x'",
    derivative: "at or after site 'x': .*rule for 'sample'",
    drawn_shape: "at or after site 'n': .*must not depend on what is drawn",
    drawn_choice: "at or after site 'x': .*must not depend on what is drawn",
    drawn_selection: "at or after site 'v': .*must not depend on what is drawn",
    shapes_by_branch: "'x' has different shapes in the branches of a lax.cond",
    hidden_draw: "prng_key, after site 'mu', .*handlers.block",
    key_for_nothing: "prng_key, before the first site",
    series_too_short: r"condition around a scan of length 5 gives site 'x', .*of shape \(3,\)",
    lambda: numpyro.sample("x", Forgetful(1.0)): "'x': Forgetful has lost a part of itself",
}


@pytest.mark.parametrize(("model", "words"), REFUSED.items(), ids=[m.__name__ for m in REFUSED])
def test_what_is_refused_is_named(model, words, key):
    with pytest.raises(ProgramError, match=words):
        qbs.run(qbs.reify(model))(key)


def everywhere():
    lax.scan(lambda loc, _: (numpyro.sample("scanned", dist.Normal(loc, 1.0)), None), 0.0, None, length=3)
    jax.vmap(lambda loc: numpyro.sample("mapped", dist.Normal(loc, 1.0)))(jnp.zeros(2))
    coin = numpyro.sample("coin", dist.Bernoulli(0.5))
    normal = functools.partial(dist.Normal, 0.0, 1.0)
    lax.cond(coin == 1, lambda: numpyro.sample("in", normal()), lambda: numpyro.sample("out", normal()))


TRACE = {"scanned": np.zeros(3), "mapped": np.zeros(2), "coin": 1, "in": 0.0, "out": 0.0}


def test_what_a_trace_lacks_is_named_and_what_is_no_site_ignored():
    at = qbs.log_density(qbs.reify(everywhere))
    expected = 6 * -0.5 * math.log(2 * math.pi) - math.log(2)  # "out" is not reached
    assert at(TRACE | {"nowhere": np.ones(7)}) == pytest.approx(expected, rel=1e-6)
    for name in TRACE:
        with pytest.raises(ProgramError, match=f"no value for site '{name}'"):
            at({site: value for site, value in TRACE.items() if site != name})


@pytest.mark.parametrize(
    ("name", "shape", "given"), [("scanned", (), (3, 1)), ("mapped", (2,), (3,)), ("out", (), (1,))]
)
def test_a_value_of_the_wrong_shape_is_named(name, shape, given):
    has = given[1:] if name == "scanned" else given
    words = re.escape(f"site '{name}' has shape {shape}; the value given for it has {has}")
    with pytest.raises(ProgramError, match=words):
        qbs.log_density(qbs.reify(everywhere))(TRACE | {name: np.zeros(given)})


@pytest.mark.parametrize("given", [(), (2,), (4, 3)])
def test_a_scanned_value_of_the_wrong_length_is_named(given):
    with pytest.raises(
        ProgramError, match=f"'scanned' is drawn at each of 3 steps, .* {re.escape(str(given))}"
    ):
        qbs.log_density(qbs.reify(everywhere))(TRACE | {"scanned": np.zeros(given)})


def test_a_custom_derivative_around_a_score_is_refused_and_its_value_is_not(key):
    @jax.custom_jvp
    def scored(a):
        numpyro.factor("s", -(a**2))
        return a

    scored.defjvp(lambda values, tangents: (scored(*values), 100 * tangents[0]))

    def model():
        numpyro.factor("t", scored(numpyro.sample("a", dist.Normal(0.0, 1.0))))

    density = qbs.log_density(qbs.reify(model))
    assert density({"a": 0.5}) == pytest.approx(-0.125 - 0.5 * math.log(2 * math.pi) - 0.25 + 0.5)
    with pytest.raises(ProgramError, match="no derivative through the custom derivative rule around 's'"):
        jax.grad(lambda a: density({"a": a}))(0.5)
