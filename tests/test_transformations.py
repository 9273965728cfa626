"""Every transformation keeps the measure of every program of the zoo, by enumeration of all outcomes."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax

import qbs
from qbs.errors import ProgramError
from qbs.inference.transform.resampling import SCHEMES
from qbs.validate import exact, zoo

ZOO = zoo()
MOVED = {
    "coin": "coin",
    "sprinkler": "rain",
    "tree": "root",
    "rejecting": "x",
    "nested_population": "parameter",
    "loop_hmm": "x1",
    "scan_hmm": "x",
    "geometric": "heads",
    "branch_in_scan": "x",
}
THREE_VALUES = {"tree", "rejecting"}
ROWS = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.3, 0.3, 0.4]])


def moves_of(name):
    """Return an asymmetric proposal for one site of a program of the zoo."""
    site = MOVED[name]

    def proposal(now):
        if name in THREE_VALUES:
            return {site: dist.Categorical(probs=jnp.asarray(ROWS)[now[site]])}
        return {site: dist.Bernoulli(probs=0.3 + 0.5 * now[site])}

    return proposal


def drawing(name):
    """Return a proposal program that draws one site of a program of the zoo otherwise than it does."""
    site = MOVED[name]

    def draw():
        if name in THREE_VALUES:
            qbs.sample(site, dist.Categorical(jnp.array([0.1, 0.6, 0.3])))
        elif name in ("scan_hmm", "geometric", "branch_in_scan"):
            lax.scan(lambda c, _: (c, qbs.sample(site, dist.Bernoulli(0.55))), 0, None, length=3)
        else:
            qbs.sample(site, dist.Bernoulli(0.55))

    return qbs.Program(draw, f"proposal of {name}")


def check(transformation, program):
    report = exact(transformation, program, tolerance=1e-12)
    assert report.ok, report
    assert len(report.before) > 1  # there is something to tell apart


@pytest.mark.parametrize("name", ZOO)
def test_importance(name):
    check(lambda p: qbs.importance(p, drawing(name)), ZOO[name])


@pytest.mark.parametrize("name", ZOO)
def test_tempering(name):
    check(lambda p: qbs.tempered(p, [0.1, 0.4, 1.0]), ZOO[name])


@pytest.mark.parametrize("num_steps", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ZOO)
def test_metropolis(name, num_steps):
    if num_steps == 2 and name == "nested_population":
        pytest.skip("too many outcomes")
    check(lambda p: qbs.metropolis(p, moves_of(name), num_steps, sites=[MOVED[name]]), ZOO[name])


def test_metropolis_with_all_sites_traced_keeps_every_step():
    """Nothing is redrawn; each element of the history has the measure."""
    name = "sprinkler"
    whole = qbs.metropolis(ZOO[name], moves_of(name), 2, keep_all=True)
    for step in range(2):
        check(lambda p, i=step: qbs.map(whole, lambda history: history[i]), ZOO[name])


@pytest.mark.parametrize("name", ZOO)
def test_rejuvenation(name):
    at = ["y1"] if name == "loop_hmm" else None
    if name == "branch_in_scan":
        pytest.skip("its scores are in branches, where there are no moves")
    check(lambda p: qbs.rejuvenate(p, moves_of(name), 1, sites=[MOVED[name]], at=at), ZOO[name])


def large_ones_slowly(schemes):
    """Return programs of the zoo with schemes: systematic for all, the others for the large ones if slow."""
    large = ("nested_population", "branch_in_scan", "geometric", "loop_hmm")
    return [
        pytest.param(n, s, marks=pytest.mark.slow if n in large and s != "systematic" else ())
        for n in ZOO
        for s in schemes
    ]


@pytest.mark.parametrize(("name", "resample"), large_ones_slowly(SCHEMES))
def test_population(name, resample):
    check(lambda p: qbs.population(p, 2, resample=resample), ZOO[name])


@pytest.mark.parametrize("name", ["sprinkler", "scan_hmm", "tree", "branch_in_scan"])
@pytest.mark.parametrize("resample", ["systematic", "residual"])
def test_population_with_a_threshold(name, resample):
    check(lambda p: qbs.population(p, 2, resample=resample, threshold=0.8), ZOO[name])


@pytest.mark.parametrize("resample", SCHEMES)
def test_population_of_three(resample):
    check(lambda p: qbs.population(p, 3, resample=resample), qbs.reify(two_steps))


@pytest.mark.parametrize("name", ["scan_hmm", "branch_in_scan", "nested_population"])
@pytest.mark.parametrize("settings", [{"num_returned": 1}, {"num_returned": 3}, {"chunk_size": 1}])
def test_populations_that_save_memory(name, settings):
    """Trees of paths may be too small by chance: see tests/test_running.py."""
    program = qbs.traced(ZOO[name])
    check(lambda p: qbs.population(p, 2, resample="multinomial", **settings), program)


def two_steps():
    x = numpyro.sample("x0", dist.Bernoulli(0.3))
    numpyro.factor("y0", 0.8 * x)
    z = numpyro.sample("x1", dist.Bernoulli(0.2 + 0.6 * x))
    numpyro.factor("y1", -0.5 * z)
    return x, z


def flip(site):
    return lambda now: {site: dist.Bernoulli(probs=0.3 + 0.5 * now[site])}


def scores_within_branches_of_scans():
    """Particles part at a branch with two scores, in a scan, and the state goes on."""

    def step(x, gain):
        x = numpyro.sample("x", dist.Bernoulli(0.2 + 0.5 * x))

        def heavy(x):
            numpyro.factor("first", gain * x)
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.factor("second", 0.3 * z)
            return jnp.maximum(x, z)

        return lax.cond(x == 1, heavy, lambda x: x, x), x

    return lax.scan(step, 0, jnp.array([0.6, -0.9]))


def inputs_that_differ():
    """A scan over values that are not the same for all particles."""
    gains = numpyro.sample("gains", dist.Bernoulli(0.5).expand([2]))
    numpyro.factor("start", 0.4 * gains[0])

    def step(x, gain):
        x = numpyro.sample("x", dist.Bernoulli(0.3 + 0.4 * gain))
        numpyro.factor("y", 0.7 * x * gain)
        return x, x

    return lax.scan(step, 0, gains)


def backwards():
    def step(x, y):
        x = numpyro.sample("x", dist.Bernoulli(jnp.where(x == 1, 0.8, 0.3)))
        numpyro.factor("y", y * x)
        return x, x

    return lax.scan(step, 0, jnp.array([0.7, -1.4]), reverse=True)


def counts():
    """A support that is known only as long as the total count is; alone, and in a plate."""
    p = numpyro.sample("p", dist.Bernoulli(0.4))
    x = numpyro.sample("x", dist.Binomial(2, 0.2 + 0.5 * p))
    with numpyro.plate("two", 2):
        z = numpyro.sample("z", dist.Binomial(1, 0.3 + 0.5 * p))
    numpyro.factor("f", -0.3 * x * z.sum())
    return x, z


def overdispersed():
    """A family that NumPyro draws with another inside."""
    p = numpyro.sample("p", dist.Bernoulli(0.4))
    x = numpyro.sample("x", dist.BetaBinomial(1.0 + p, 2.0, 2))
    numpyro.factor("f", -0.3 * x)
    return x


HARD_ONES = (scores_within_branches_of_scans, inputs_that_differ, backwards, counts, overdispersed)
HARD = {f.__name__: f for f in HARD_ONES}


@pytest.mark.parametrize("name", HARD)
def test_populations_of_programs_that_were_hard(name):
    check(lambda p: qbs.population(p, 2, resample="systematic"), qbs.reify(HARD[name]))


def test_composites():
    """Resample-move, tempered SMC, whole paths, and a guided filter."""
    program = qbs.reify(two_steps)
    moved = lambda p: qbs.rejuvenate(p, flip("x0"), at=["y0"])  # noqa: E731
    check(lambda p: qbs.population(moved(p), 2), program)
    check(lambda p: qbs.population(moved(p), 2, threshold=0.95), program)
    check(lambda p: qbs.population(qbs.rejuvenate(qbs.tempered(p, [1.0]), flip("x0")), 2), program)
    check(lambda p: qbs.population(p, 2), qbs.traced(program))
    check(lambda p: qbs.collapse(qbs.population(qbs.population(p, 2), 2)), ZOO["coin"])
    check(lambda p: qbs.rejuvenate(p, flip("x")), qbs.reify(backwards))
    check(lambda p: qbs.metropolis(qbs.collapse(qbs.population(p, 2)), lambda now: {}), program)


def test_moves_only_after_resampling_are_biased():
    """They save time; whether a particle is moved depends on where it is, and the exact check sees it."""
    program = qbs.reify(two_steps)
    moved = qbs.rejuvenate(program, flip("x0"), at=["y0"], only_resampled=True)
    assert not exact(lambda _: qbs.population(moved, 2, threshold=0.95), program).ok
    assert exact(lambda _: qbs.population(moved, 2), program).ok


def test_smc_squared_in_small():
    """A population of parameters, each with a population inside, moved by Metropolis."""

    def outer():
        parameter = numpyro.sample("parameter", dist.Bernoulli(0.4))

        def inner():
            x = numpyro.sample("x", dist.Bernoulli(0.2 + 0.5 * parameter))
            numpyro.factor("y", 0.7 * x)

        qbs.population(qbs.reify(inner), 2, resample="multinomial")()
        return parameter

    moved = lambda p: qbs.rejuvenate(p, flip("parameter"), sites=["parameter"])  # noqa: E731
    check(moved, qbs.reify(outer))
    check(lambda p: qbs.metropolis(p, flip("parameter"), sites=["parameter"]), qbs.reify(outer))


def markov():
    """Two hidden steps after a start; what a step needs of the past is the last value."""

    def step(x, y):
        x = numpyro.sample("x", dist.Bernoulli(jnp.where(x == 1, 0.8, 0.3)))
        numpyro.factor("y", y * x)
        return x, x

    start = numpyro.sample("start", dist.Bernoulli(0.4))
    numpyro.factor("y0", 0.3 * start)
    return lax.scan(step, start, jnp.array([0.7, -1.4]))


def remembering():
    x = numpyro.sample("x0", dist.Bernoulli(0.3))
    numpyro.factor("y0", 0.8 * x)
    z = numpyro.sample("x1", dist.Bernoulli(0.2 + 0.6 * x))
    numpyro.factor("y1", -0.5 * z)
    w = numpyro.sample("x2", dist.Bernoulli(0.2 + 0.6 * x * z))
    numpyro.factor("y2", -0.5 * w)


@pytest.mark.parametrize(
    ("model", "ancestor_sampling"),
    [
        (markov, True),
        (two_steps, False),
        pytest.param(markov, False, marks=pytest.mark.slow),
        pytest.param(two_steps, True, marks=pytest.mark.slow),
    ],
)
def test_conditional_populations_keep_the_posterior_of_paths(model, ancestor_sampling):
    program = qbs.reify(model)
    before = qbs.enumerate(qbs.map(qbs.traced(program), lambda both: both[1]))()
    kernel = qbs.enumerate(qbs.conditional(program, 2, ancestor_sampling=ancestor_sampling))
    after: dict = {}
    for i, mass in enumerate(before.masses):
        for value, probability in kernel({name: leaf[i] for name, leaf in before.values.items()}).items():
            key = tuple(sorted(value.items()))
            after[key] = after.get(key, 0.0) + mass * probability
    wanted = {tuple(sorted(value.items())): mass for value, mass in before.items()}
    assert after == pytest.approx(wanted, abs=1e-12)


def test_ancestor_sampling_refuses_a_long_memory():
    program = qbs.reify(remembering)
    path = {"x0": 1, "x1": 0, "x2": 1}
    with pytest.raises(ProgramError, match=r"needs a Markov program.*'x2'"):
        qbs.enumerate(qbs.conditional(program, 2, ancestor_sampling=True))(path)
    assert qbs.enumerate(qbs.conditional(program, 2))(path).total_mass == pytest.approx(1)


def test_programs_from_programs():
    coin = ZOO["coin"]
    heads = qbs.map(coin, lambda x: 1 - x)
    assert dict(qbs.enumerate(heads)().items()) == pytest.approx({0: 0.3, 1: 0.7}, abs=1e-7)

    def then(x):
        y = qbs.sample("then", dist.Bernoulli(0.2 + 0.5 * x))
        qbs.score(0.3 * y)
        return x, y

    expected = {
        (0, 0): 0.7 * 0.8,
        (0, 1): 0.7 * 0.2 * np.exp(0.3),
        (1, 0): 0.3 * 0.3,
        (1, 1): 0.3 * 0.7 * np.exp(0.3),
    }
    assert dict(qbs.enumerate(qbs.bind(coin, then))().items()) == pytest.approx(expected, abs=1e-7)
    both = qbs.product(coin, ZOO["sprinkler"])
    single = qbs.enumerate(ZOO["sprinkler"])()
    assert qbs.enumerate(both)().total_mass == pytest.approx(single.total_mass, rel=1e-7)
    mixed = qbs.mixture([1.0, 3.0], [coin, qbs.Program(lambda: qbs.sample("other", dist.Bernoulli(0.9)))])
    assert qbs.enumerate(mixed)().expect(lambda x: x) == pytest.approx(0.25 * 0.3 + 0.75 * 0.9, abs=1e-7)
    with pytest.raises(ProgramError, match="'coin' appears twice"):
        qbs.enumerate(qbs.product(coin, coin))()


def _scan_proposal():
    qbs.sample("elsewhere", dist.Bernoulli(0.5))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: qbs.importance(p, qbs.Program(_scan_proposal)), r"draws \['elsewhere'\]"),
        (lambda p: qbs.importance(p, p), "may only draw"),
        (lambda p: qbs.tempered(p, [0.5]), "betas must increase"),
        (lambda p: qbs.tempered(p, [0.5, 0.5, 1.0]), "betas must increase"),
        (lambda p: qbs.metropolis(p, flip("x0"), sites=["none"]), "no site named 'none'"),
        (
            lambda p: qbs.metropolis(p, flip("x0"), sites=["x1"]),
            "moves 'x0', which is not among the traced|x0",
        ),
        (lambda p: qbs.metropolis(p, flip("x0"), 0), "num_steps must be a whole number"),
        (lambda p: qbs.rejuvenate(p, flip("x0"), at=["y9"]), r"no score named \['y9'\]"),
        (lambda p: qbs.population(p, 2, at=["y9"]), r"no score named \['y9'\]"),
        (lambda p: qbs.bind(p, lambda _: qbs.conditional(p, 1)), "at least 2"),
        (lambda p: qbs.mixture([1.0], [p, p]), "2 numbers, one for each program"),
        (
            lambda p: qbs.metropolis(ZOO["tree"], lambda now: {}, sites=["left"]),
            "'left' stands in a branch",
        ),
        (
            lambda p: qbs.metropolis(p, lambda now: {"x0": dist.Bernoulli(0.5).expand([2])}),
            r"proposal of 'x0' has shape \(2,\), the site \(\)",
        ),
    ],
)
def test_what_cannot_be_done_is_said(make, words):
    with pytest.raises((ProgramError, ValueError, KeyError), match=words):
        qbs.enumerate(make(qbs.reify(two_steps)))()


def _biased_systematic(name, log_weights, num_samples):
    """A planted fault: the offset is always a half."""
    shares = jnp.cumsum(jnp.exp(log_weights)) / jnp.sum(jnp.exp(log_weights))
    return jnp.searchsorted(shares, (jnp.arange(num_samples) + 0.5) / num_samples)


def test_a_biased_scheme_is_caught():
    report = exact(lambda p: qbs.population(p, 2, resample=_biased_systematic), qbs.reify(two_steps))
    assert report.max_difference > 1e-3
    assert not report.ok
