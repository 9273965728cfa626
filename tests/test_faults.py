"""Faults planted into kernels are caught: by whole transition matrices, and by Geweke's test."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import binom, multivariate_normal

import qbs
from qbs.inference import mcmc
from qbs.inference.mcmc import gibbs, jump, metropolis
from qbs.inference.mcmc.green import Green
from qbs.inference.mcmc.kernel import Kernel, State, accept, report

MASSES = np.array([0.05, 0.25, 0.1, 0.45, 0.15])


def five():
    return {"x": qbs.sample("x", dist.Categorical(probs=jnp.asarray(MASSES)))}


def log_mass(position):
    return jnp.log(jnp.asarray(MASSES))[position["x"]]


def nearby(position):
    return {"x": dist.Categorical(logits=-jnp.abs(jnp.arange(5) - position["x"] - 0.3))}


def invariance(step, target=five, density=log_mass):
    transition = mcmc.as_transition(step, density) if isinstance(step, Kernel) else step
    return qbs.validate.invariant(transition, qbs.Program(target))


def require_caught(right, wrong):
    """A check passes what is right to rounding, and misses the fault by far."""
    assert right.ok, right
    assert right.max_difference < 1e-12
    assert not wrong.ok
    assert wrong.max_difference > 1e-3


def test_a_forgotten_proposal_ratio(monkeypatch):
    right = invariance(mcmc.MetropolisHastings(nearby))
    monkeypatch.setattr(metropolis, "_total", lambda _law, _value: 0.0)
    require_caught(right, invariance(mcmc.MetropolisHastings(nearby)))


def test_forgotten_auxiliary_variables(monkeypatch):
    """Metropolis-Hastings-Green that weighs the target alone: reversible jump turns back at its ends only."""
    right = invariance(BIRTH_AND_DEATH, lists, log_list)
    monkeypatch.setattr(Green, "_log_prob", lambda _self, _point: 0.0)
    require_caught(right, invariance(BIRTH_AND_DEATH, lists, log_list))


def lists():
    """Lists of up to two numbers."""
    count = qbs.sample("count", dist.Categorical(probs=jnp.array([0.2, 0.5, 0.3])))
    z = qbs.sample("z", dist.Categorical(probs=jnp.array([0.6, 0.4])).expand([2]))
    return {"count": count, "z": jnp.where(jnp.arange(2) < count, z, 0)}


def log_list(state):
    own = jnp.where(jnp.arange(2) < state["count"], jnp.log(jnp.array([0.6, 0.4]))[state["z"]], 0.0).sum()
    return jnp.log(jnp.array([0.2, 0.5, 0.3]))[state["count"]] + own


BIRTH_AND_DEATH = mcmc.reversible_jump(
    mcmc.Birth(lambda _: {"z": dist.Categorical(probs=jnp.array([0.3, 0.7]))}), slots=["z"]
)

# Sets of the numbers from 0 to 3, with one flag for each: a birth picks one of those that are not there, a
# death one of those that are.
WEIGHTS = np.array([0.3, 0.8, 0.5, 1.5])


def sets():
    return {"in": qbs.sample("in", dist.Bernoulli(probs=jnp.asarray(WEIGHTS / (1 + WEIGHTS))))}


def log_set(state):
    return jnp.sum(state["in"] * jnp.log(jnp.asarray(WEIGHTS)))


def born_or_dead(state):
    goes_up = qbs.sample("goes up", dist.Bernoulli(0.5)) == 1
    can_be = jnp.where(goes_up, state["in"] == 0, state["in"] == 1)
    is_none = ~can_be.any()
    qbs.sample("which", dist.Categorical(logits=jnp.where(can_be | is_none, 0.0, -jnp.inf)))


def toggled(state, drawn):
    return {"in": state["in"].at[drawn["which"]].set(1 - state["in"][drawn["which"]])}, {
        **drawn,
        "goes up": 1 - drawn["goes up"],
    }


def by_hand(state):
    """Birth and death whose author forgot how many each may choose among."""
    up = qbs.sample("goes up", dist.Bernoulli(0.5)) == 1
    can_be = jnp.where(up, state["in"] == 0, state["in"] == 1)
    is_none = ~can_be.any()
    which = qbs.sample("which", dist.Categorical(logits=jnp.where(can_be | is_none, 0.0, -jnp.inf)))
    new = {"in": state["in"].at[which].set(up.astype(int))}
    return accept(log_set(new) - log_set(state), new, state, "step")[0]


def test_a_forgotten_combinatorial_factor():
    require_caught(invariance(mcmc.green(born_or_dead, toggled), sets, log_set), invariance(by_hand, sets))


# A density on cells of unequal width: a map between cells stretches by the ratio of their widths.
WIDTHS = np.array([1.0, 0.5, 2.0, 0.25, 1.25])


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_forgotten_jacobian(is_complete):
    def log_density(position):
        return log_mass(position) - jnp.log(jnp.asarray(WIDTHS))[position["x"]]

    def other_cell(position, drawn):
        new = (drawn["sum"] - position["x"]) % 5
        widths = jnp.log(jnp.asarray(WIDTHS))
        stretch = widths[new] - widths[position["x"]]
        return {"x": new}, drawn, stretch if is_complete else jnp.zeros(())

    step = mcmc.green(lambda _: qbs.sample("sum", dist.DiscreteUniform(0, 4)), other_cell)
    report = invariance(step, density=log_density)
    assert report.ok == is_complete
    assert (report.max_difference < 1e-12) if is_complete else (report.max_difference > 1e-2)


def test_one_draw_for_two_choices(monkeypatch):
    """The proposal decides about its own acceptance, as with a key that is used twice."""
    monkeypatch.setitem(globals(), "MASSES", np.array([8.0, 4.0, 2.0, 4.0, 8.0]) / 26)

    def step(position, *, is_independent):
        by = qbs.sample("by", dist.DiscreteUniform(0, 19))
        new = {"x": (position["x"] + jnp.where(by < 10, 1, -1)) % 5}
        other = qbs.sample("other", dist.DiscreteUniform(0, 19)) if is_independent else by
        threshold = jnp.floor(20 * jnp.minimum(1.0, jnp.exp(log_mass(new) - log_mass(position))) + 1e-6)
        return jax.tree.map(lambda a, b: jnp.where(other < threshold, a, b), new, position)

    right = invariance(lambda position: step(position, is_independent=True))
    require_caught(right, invariance(lambda position: step(position, is_independent=False)))


def test_gibbs_with_a_wrong_conditional(monkeypatch):
    right = invariance(mcmc.Gibbs({"x": range(5)}))
    require_caught(right, invariance(mcmc.Gibbs({"x": range(4)})))  # a value is left out
    tempered = lambda values: (0.8 * values, jnp.zeros(values.shape, bool))  # noqa: E731
    monkeypatch.setattr(gibbs, "finite_or_impossible", tempered)
    require_caught(right, invariance(mcmc.Gibbs({"x": range(5)})))


class Learner(Kernel):
    """Proposes a step of the size that was accepted last, up to a step that ends its warm-up."""

    num_warmup: int

    def begin(self, position, target):
        return super().begin(position, target)._replace(inner=(jnp.ones((), int), jnp.zeros((), int)))

    def move(self, state, target, name="step"):
        size, count = state.inner
        sign = qbs.sample(f"{name}: sign", dist.Bernoulli(0.5))
        new = {"x": (state.position["x"] + jnp.where(sign == 1, size, -size)) % 5}
        (position, log_density), probability = accept(
            target(new) - state.log_density, (new, target(new)), (state.position, state.log_density), name
        )
        is_moved = position["x"] != state.position["x"]
        size = jnp.where(count < self.num_warmup, jnp.where(is_moved, 2, 1), size)
        return State(position, log_density, (size, count + 1)), report(probability)


def test_an_adaptation_that_never_stops():
    right = invariance(mcmc.repeat(Learner(0), 3))
    require_caught(right, invariance(mcmc.repeat(Learner(100), 3)))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: mcmc.RandomWalk(0.3, num_warmup=n),
        lambda n: mcmc.Slice(num_warmup=n),
        lambda n: mcmc.HitAndRun(num_warmup=n),
        lambda n: mcmc.MALA(0.3, num_warmup=n),
        lambda n: mcmc.HMC(2, 0.3, num_warmup=n),
        lambda n: mcmc.cycle(mcmc.repeat(mcmc.RandomWalk(0.3, num_warmup=n), 2), mcmc.RandomWalk(1.0)),
    ],
    ids=["random walk", "slice", "hit and run", "MALA", "HMC", "cycle"],
)
def test_adaptation_stops(make, key):
    """What a kernel has learnt changes in its warm-up, and is the same to the last bit ever after."""

    def log_density(x):
        return -0.5 * jnp.sum(x**2)

    step = make(20)
    state = step.init(key, jnp.array([0.5, -1.0]), log_density)

    def turn(state, key):
        state, _ = step.step(key, state, log_density)
        return state, learnt(state.inner)

    _, seen = jax.jit(lambda state: jax.lax.scan(turn, state, jax.random.split(key, 40)))(state)
    seen = np.concatenate([np.asarray(leaf).reshape(40, -1) for leaf in jax.tree.leaves(seen)], axis=1)
    assert np.all(seen[20:] == seen[20])
    assert np.any(seen[:20] != seen[20])


def learnt(inner):
    """Return what a kernel adapts, without positions, gradients and counters."""
    if isinstance(inner, tuple) and not hasattr(inner, "_fields"):
        return tuple(map(learnt, inner))
    names = ("mean", "covariance", "log_scale", "widths", "log_step_size")
    kept = {name: getattr(inner, name) for name in names if hasattr(inner, name)}
    if hasattr(inner, "adapt_state"):
        adapted = inner.adapt_state
        kept |= {"step_size": adapted.step_size, "inverse_mass": jax.tree.leaves(adapted.inverse_mass_matrix)}
    return kept


WALK = mcmc.RandomWalk(num_warmup=300)


@pytest.mark.parametrize(
    ("step", "least"),
    [
        (WALK, 300),
        (mcmc.repeat(WALK, 7), 43),
        (mcmc.cycle(mcmc.on_sites(mcmc.Slice(num_warmup=200), ["x"]), mcmc.RandomWalk()), 200),
        (mcmc.mixture(WALK, mcmc.RandomWalk()), 727),
        (mcmc.RandomWalk(), 0),
    ],
)
def test_chains_refuse_kernels_that_would_adapt_while_they_draw(step, least):
    assert mcmc.Chains(step, num_warmup=least).num_warmup == least
    if least:
        with pytest.raises(ValueError, match=f"num_warmup must be {least} or more, not {least - 1}"):
            mcmc.Chains(step, num_warmup=least - 1)


def test_how_long_a_kernel_in_a_mixture_adapts():
    """In 727 steps a fair coin shows heads 300 times, but once in a million times; 726 are too few."""
    assert binom.cdf(299, 727, 0.5) < 1e-6 < binom.cdf(299, 726, 0.5)


# --- two nested models: one mean, or one for each half ---

A = 0.13961665583826038  # such that two means have the probability 0.257
Y = np.concatenate([A + np.sin(np.arange(10.0)), -A + np.cos(np.arange(10.0))])


def one_or_two_means(y):
    count = numpyro.sample("count", dist.Categorical(probs=jnp.array([0.0, 0.5, 0.5])))
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0).expand([2]).mask(jnp.arange(2) < count))
    own = jnp.where((jnp.arange(20) < 10) | (count == 1), mean[0], mean[1])
    numpyro.sample("y", dist.Normal(own, 1), obs=y)


def probability_of_two():
    half = np.eye(20) + 4 * np.kron(np.eye(2), np.ones((10, 10)))
    one = multivariate_normal(np.zeros(20), np.eye(20) + 4 * np.ones((20, 20))).logpdf(Y)
    return 1 / (1 + np.exp(one - multivariate_normal(np.zeros(20), half).logpdf(Y)))


def stretch():
    return mcmc.Split(
        lambda _: {"u": dist.Normal(0.0, 0.7)},
        lambda one, u: ({"mean": one["mean"] - u["u"]}, {"mean": one["mean"] + u["u"]}),
        lambda a, b: ({"mean": 0.5 * (a["mean"] + b["mean"])}, {"u": 0.5 * (b["mean"] - a["mean"])}),
    )


@pytest.mark.slow
@pytest.mark.parametrize("is_complete", [True, False])
def test_the_effect_of_a_forgotten_jacobian(is_complete, key, monkeypatch):
    """Known: without the determinant, 2, the odds of two means are halved, and 0.257 becomes 0.148."""
    assert probability_of_two() == pytest.approx(0.257)
    odds = (1.0 if is_complete else 0.5) * 0.257 / 0.743
    if not is_complete:
        monkeypatch.setattr(jump, "_log_growth", lambda *_: jnp.zeros(()))
    jumps = mcmc.reversible_jump(stretch(), slots=["mean"], min_count=1)
    within = mcmc.on_sites(mcmc.RandomWalk(0.3), ["mean"])
    step, target = mcmc.cycle(jumps, within), mcmc.TraceTarget(qbs.reify(one_or_two_means), (jnp.asarray(Y),))
    start = {"count": jnp.asarray(1), "mean": jnp.array([0.2, 0.0])}

    def chain(key):
        def turn(state, key):
            state, _ = step.step(key, state, target)
            return state, state.position["count"] == 2

        state = step.begin(start, target)  # `init` would refuse the wrong determinant
        return jax.lax.scan(turn, state, jax.random.split(key, 2200))[1][200:].mean()

    each = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(key, 64)))
    error = each.std(ddof=1) / np.sqrt(64)
    assert abs(each.mean() - odds / (1 + odds)) < 4 * error
    assert (abs(each.mean() - 0.257) > 8 * error) != is_complete
    if not is_complete:
        with pytest.raises(eqx.EquinoxRuntimeError, match="not that of its derivative"):
            jumps.init(key, start, target)


# --- kernels with no finite target: Geweke's test ---


def scale_and_mean(num, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    log_sigma = numpyro.sample("log_sigma", dist.Normal(0.0, 0.5))
    numpyro.sample("y", dist.Normal(mu, jnp.exp(log_sigma)).expand([num]), obs=y)


def geweke(step, key):
    program = qbs.reify(scale_and_mean)

    def moved(key, parameters, num, y):
        target = mcmc.TraceTarget(program, (num, y))
        return step.step(key, step.begin(parameters, target), target)[0].position

    return qbs.validate.joint(scale_and_mean, moved, 3, key=key, observed="y", num_chains=3000)


WITHOUT_FINITE_TARGETS = {
    "random walk": mcmc.RandomWalk(0.7),
    "slice": mcmc.Slice(),
    "hit and run": mcmc.HitAndRun(),
    "elliptical slice": mcmc.EllipticalSlice(np.zeros(2), np.diag([0.25, 1.0])),
    "MALA": mcmc.MALA(0.6),
    "HMC": mcmc.HMC(4, 0.25),
    "no U-turn": mcmc.NoUTurn(0.3, max_tree_depth=4),
    "on sites": mcmc.cycle(mcmc.on_sites(mcmc.Slice(), ["mu"]), mcmc.on_sites(mcmc.MALA(0.4), ["log_sigma"])),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_FINITE_TARGETS)
def test_kernels_keep_the_joint_law(name, key):
    report = geweke(WITHOUT_FINITE_TARGETS[name], key)
    assert report.ok, report


def always(log_ratio, new, old, name):
    del log_ratio, name
    return new, jnp.ones(())


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["MALA always accepts", "slice reuses a key", "random walk tempers"])
def test_geweke_catches_planted_faults(fault, key, monkeypatch):
    if fault == "MALA always accepts":
        monkeypatch.setattr("qbs.inference.mcmc.langevin.accept", always)
        step = mcmc.MALA(0.9)
    elif fault == "slice reuses a key":
        monkeypatch.setattr("qbs.inference.mcmc.slice.draw_key", lambda _: jax.random.key(0))
        step = mcmc.Slice()
    else:
        monkeypatch.setattr(metropolis, "accept", lambda ratio, *rest: accept(0.6 * ratio, *rest))
        step = mcmc.RandomWalk(0.7)
    report = geweke(step, key)
    assert not report.ok
