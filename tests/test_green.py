"""Metropolis-Hastings-Green and reversible jump: exact on finite targets, closed form on nested models."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

import qbs
from qbs.inference import mcmc

SLOTS = 3
NUMBERS = np.array([0.1, 0.2, 0.3, 0.4])
VALUES = np.array([0.5, 0.2, 0.3])


def lists():
    """Lists of up to three integers, the first two of which are tied."""
    count = qbs.sample("count", dist.Categorical(probs=jnp.asarray(NUMBERS)))
    z = qbs.sample("z", dist.Categorical(probs=jnp.asarray(VALUES)).expand([SLOTS]))
    z = jnp.where(jnp.arange(SLOTS) < count, z, 0)
    qbs.score(jnp.where(count > 1, 0.3 * z[0] * z[1] + 0.1 * count, 0.0))
    return {"count": count, "z": z}


def log_mass(state):
    count, z = state["count"], state["z"]
    own = jnp.where(jnp.arange(SLOTS) < count, jnp.log(jnp.asarray(VALUES))[z], 0.0).sum()
    tie = jnp.where(count > 1, 0.3 * z[0] * z[1] + 0.1 * count, 0.0)
    return jnp.log(jnp.asarray(NUMBERS))[count] + own + tie


BIRTH = mcmc.Birth(lambda _: {"z": dist.Categorical(probs=np.array([0.2, 0.2, 0.6]))})
SPLIT = mcmc.Split(
    lambda _: {"u": dist.Categorical(probs=np.array([0.5, 0.25, 0.25]))},
    lambda one, u: ({"z": (one["z"] + u["u"]) % 3}, {"z": u["u"]}),
    lambda a, b: ({"z": (a["z"] - b["z"]) % 3}, {"u": b["z"]}),
)


@pytest.mark.parametrize(
    "moves",
    [
        pytest.param([BIRTH], id="birth and death"),
        pytest.param([SPLIT], id="split and merge"),
        pytest.param([BIRTH, SPLIT], id="both", marks=pytest.mark.slow),
    ],
)
def test_reversible_jump_is_invariant_exactly(moves):
    kernel = mcmc.reversible_jump(*moves, slots=["z"])
    report = qbs.validate.invariant(mcmc.as_transition(kernel, log_mass), qbs.Program(lists))
    assert report.ok, report
    assert np.abs(report.matrix - np.eye(*report.matrix.shape)).max() > 0.05


Y = np.concatenate([0.4 + np.sin(np.arange(10.0)), -0.5 + np.cos(np.arange(10.0))])


def one_or_two_means(y):
    """One mean for all, or one for each half."""
    count = numpyro.sample("count", dist.Categorical(probs=jnp.array([0.0, 0.5, 0.5])))
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0).expand([2]).mask(jnp.arange(2) < count))
    numpyro.sample(
        "y", dist.Normal(jnp.where((jnp.arange(20) < 10) | (count == 1), mean[0], mean[1]), 1), obs=y
    )


def probability_of_two():
    half = np.eye(20) + 4 * np.kron(np.eye(2), np.ones((10, 10)))
    one = multivariate_normal(np.zeros(20), np.eye(20) + 4 * np.ones((20, 20))).logpdf(Y)
    two = multivariate_normal(np.zeros(20), half).logpdf(Y)
    return 1 / (1 + np.exp(one - two))


STRETCH = mcmc.Split(
    lambda _: {"u": dist.Normal(0.0, 0.7)},
    lambda one, u: ({"mean": one["mean"] - u["u"]}, {"mean": one["mean"] + u["u"]}),
    lambda a, b: ({"mean": 0.5 * (a["mean"] + b["mean"])}, {"u": 0.5 * (b["mean"] - a["mean"])}),
)
BORN = mcmc.Birth(lambda _: {"mean": dist.Normal(0.0, 1.0)})


@pytest.mark.parametrize("moves", [[STRETCH], [BORN], [STRETCH, BORN]], ids=["split", "birth", "both"])
def test_model_probabilities_in_closed_form(moves, key):
    jumps = mcmc.reversible_jump(*moves, slots=["mean"], min_count=1)
    within = mcmc.on_sites(mcmc.RandomWalk(0.5), ["mean"])
    method = mcmc.Chains(
        mcmc.cycle(jumps, within), num_chains=16, num_warmup=200, num_draws=1000, is_unconstrained=False
    )
    posterior = qbs.fit(one_or_two_means, Y, method=method, key=key, progress=False)
    is_two = posterior.samples["count"] == 2
    each = is_two.mean(1)
    assert abs(each.mean() - probability_of_two()) < 4 * each.std(ddof=1) / np.sqrt(16)
    inert = posterior.samples["mean"][..., 1][~is_two]
    assert 0.05 < is_two.mean() < 0.95
    assert np.all(np.isfinite(inert))


def test_the_jacobian_by_automatic_differentiation_is_that_of_the_fast_path(key):
    """A split by `green` itself, without a determinant given, has the acceptance of `reversible_jump`."""

    def auxiliary(state):
        goes_up = state["count"] == 1
        qbs.sample("u", dist.Normal(0.0, 0.7).mask(goes_up))

    def involution(state, drawn):
        a, b, u = state["mean"][0], state["mean"][1], drawn["u"]
        goes_up = state["count"] == 1
        mean = jnp.where(goes_up, jnp.stack([a - u, a + u]), jnp.stack([0.5 * (a + b), b]))
        back = jnp.where(goes_up, u, 0.5 * (b - a))
        return {"count": 3 - state["count"], "mean": mean}, {"u": back}

    def exists(state):
        return {"count": True, "mean": jnp.arange(2) < state["count"]}

    target = mcmc.TraceTarget(qbs.reify(one_or_two_means), (jnp.asarray(Y),))
    kernel = mcmc.green(auxiliary, involution, exists)
    start = {"count": jnp.asarray(1), "mean": jnp.array([0.2, 0.0])}
    jumps = mcmc.cycle(kernel, mcmc.on_sites(mcmc.RandomWalk(0.5), ["mean"]))

    def chain(key):
        init_key, run_key = jax.random.split(key)

        def turn(state, key):
            state, _ = jumps.step(key, state, target)
            return state, state.position["count"] == 2

        state = jumps.init(init_key, start, target)
        return jax.lax.scan(turn, state, jax.random.split(run_key, 2500))[1][500:].mean()

    each = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(key, 16)))
    assert abs(each.mean() - probability_of_two()) < 4 * each.std(ddof=1) / np.sqrt(16)


def log_normal(x):
    return -0.5 * jnp.sum(x**2)


def step(_):
    qbs.sample("u", dist.Normal(0.0, 1.0))


FAULTS = {
    "not an involution": (lambda x, d: (x + d["u"], d), None),
    "not that of its derivative": (lambda x, d: (d["u"] * 2, {"u": x / 2}, jnp.log(2.0)), None),
    "dimensions do not match": (lambda x, d: (x, d), lambda x: x > 0),
}


def test_a_map_that_stretches_has_its_determinant(key):
    """Scaling by a factor or its inverse does not keep volume."""

    def auxiliary(_):
        qbs.sample("sign", dist.Bernoulli(0.5))

    def involution(x, drawn):
        return jnp.where(drawn["sign"] == 1, 3 * x, x / 3), {"sign": 1 - drawn["sign"]}

    kernel = mcmc.cycle(mcmc.green(auxiliary, involution), mcmc.RandomWalk(1.0))

    def chain(key):
        init_key, run_key = jax.random.split(key)
        state = kernel.init(init_key, jnp.asarray(0.3), log_normal)

        def turn(state, key):
            state, _ = kernel.step(key, state, log_normal)
            return state, state.position**2

        return jax.lax.scan(turn, state, jax.random.split(run_key, 2000))[1][200:].mean()

    each = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(key, 32)))
    assert abs(each.mean() - 1) < 4 * each.std(ddof=1) / np.sqrt(32)


@pytest.mark.parametrize("message", ["not an involution", "not that of its derivative"])
def test_wrong_maps_are_refused_before_the_run(message, key):
    involution, _ = FAULTS[message]
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        mcmc.green(step, involution).init(key, jnp.asarray(0.5), log_normal)


def test_dimensions_that_do_not_match_are_refused(key):
    def grows(state, drawn):  # creates a second number from nothing
        return {"count": 3 - state["count"], "mean": state["mean"]}, drawn

    kernel = mcmc.green(step, grows, lambda s: {"count": True, "mean": jnp.arange(2) < s["count"]})
    start = {"count": jnp.asarray(1), "mean": jnp.array([0.2, 0.0])}
    with pytest.raises(eqx.EquinoxRuntimeError, match="dimensions do not match"):
        kernel.init(key, start, lambda s: log_normal(s["mean"]))
    two = STRETCH._replace(propose=lambda _: {"u": dist.Normal(0.0, 1.0), "v": dist.Normal(0.0, 1.0)})
    jumps = mcmc.reversible_jump(two, slots=["mean"])
    with pytest.raises(ValueError, match="are 3 floating-point numbers, the two components 2"):
        jumps.init(key, start, lambda s: log_normal(s["mean"]))


def test_numbers_that_do_not_exist_must_be_left_alone(key):
    def meddles(state, drawn):
        return {**state, "mean": state["mean"].at[1].add(1.0)}, drawn

    kernel = mcmc.green(step, meddles, lambda s: {"count": True, "mean": jnp.arange(2) < s["count"]})
    start = {"count": jnp.asarray(1), "mean": jnp.array([0.2, 0.0])}
    with pytest.raises(eqx.EquinoxRuntimeError, match="neither before nor after"):
        kernel.init(key, start, lambda s: log_normal(s["mean"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mcmc.reversible_jump(slots=["z"]), "at least one pair of moves"),
        (lambda: mcmc.reversible_jump(BIRTH, slots="z"), "must be a list"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"z": jnp.zeros(3, int)}, "has no .'count'."),
        ({"count": jnp.asarray(1.0), "z": jnp.zeros(3, int)}, "must be an integer"),
        ({"count": jnp.asarray(1), "z": jnp.zeros(3, int), "w": jnp.zeros(2)}, "as many for each"),
    ],
)
def test_states_that_do_not_fit_are_refused(state, message, key):
    slots = ["z", "w"] if "w" in state else ["z"]
    with pytest.raises(ValueError, match=message):
        mcmc.reversible_jump(BIRTH, slots=slots).init(key, state, lambda s: jnp.sum(0.0 * s["z"]))
