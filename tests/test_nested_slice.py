"""Nested sampling by slices: its parts against exact draws, and evidences against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import CLOSED, fit_in_box, off_by, require_no_bias
from scipy import stats

import qbs
from qbs.errors import LikelihoodError
from qbs.inference.nested import Slice
from qbs.inference.nested.constrained import are_under_way, begin, judged, proposed
from qbs.inference.nested.contours import weighed
from qbs.inference.nested.insertion import insertion_test
from qbs.inference.nested.live_points import course, first_live
from qbs.inference.nested.problem import MAX_FIRST_DRAWS

# The fast tests run without most of the optimizations of the compiler.
QUICK = Slice(num_live=100, num_steps=8)


def cube(dim, low=0.0, high=1.0):
    return {"x": dist.Uniform(low, high).expand([dim]).to_event(1)}


def fitted(log_likelihood, dim, *, low=0.0, high=1.0, method=QUICK, seed=0):
    return fit_in_box(log_likelihood, dim, low, high, method, seed)


# --- the parts ---


def exact_run(rng, num_live, batch, levels, volume_above):
    """A run whose points are exact draws: a point is a prior volume, and the less the likelier.

    Args:
        rng: Draws them.
        num_live: Live points.
        batch: How many die at a time, or more where they tie: all that tie die before any is born.
        levels: The log likelihood by volume.
        volume_above: The volume where it is larger than a bound.
    """
    volumes, births, died = rng.uniform(size=num_live), np.full(num_live, -math.inf), []
    for _ in range(12 * num_live // batch):
        values = levels(volumes)
        bound = np.sort(values)[batch - 1]
        is_dead = values <= bound
        if is_dead.all():
            break
        died += list(zip(births[is_dead], values[is_dead], strict=True))
        fresh = rng.uniform(0, volume_above(bound), size=is_dead.sum())
        volumes = np.concatenate([volumes[~is_dead], fresh])
        births = np.concatenate([births[~is_dead], np.full(is_dead.sum(), bound)])
    died += list(zip(births, levels(volumes), strict=True))
    return np.array(died).T


def slope(rng, num_live, batch):
    return exact_run(rng, num_live, batch, lambda volume: -20 * volume, lambda bound: bound / -20)


def stairs(rng, num_live, batch):
    levels = lambda volume: np.select([volume > 0.5, volume > 0.2], [0.0, 1.0], 2.0)  # noqa: E731
    return exact_run(rng, num_live, batch, levels, {0.0: 0.5, 1.0: 0.2}.get)


def test_evidence_of_exact_draws():
    r"""\(\log L = -20 X\): \(Z = (1 - e^{-20}) / 20\); batches of ten of 100 live points."""
    rng, scores = np.random.default_rng(0), []
    for _ in range(30):
        found = weighed(*slope(rng, 100, 10), num_possible=100)
        scores.append((found.log_evidence - math.log(-math.expm1(-20) / 20)) / found.log_evidence_error)
    # Means and standard deviations of 30 standard normal numbers, at four standard errors.
    assert abs(np.mean(scores)) < 4 / math.sqrt(30)
    assert abs(np.std(scores) - 1) < 4 / math.sqrt(60)


def test_evidence_of_ties():
    """Three levels of the likelihood: those that tie die one after the other, and none is born between."""
    rng, errors, scores = np.random.default_rng(1), [], []
    truth = math.log(0.5 + 0.3 * math.e + 0.2 * math.e**2)
    for _ in range(30):
        found = weighed(*stairs(rng, 100, 10), num_possible=100)
        errors.append(found.log_evidence - truth)
        scores.append(errors[-1] / found.log_evidence_error)
    assert abs(np.mean(scores)) < 4 / math.sqrt(30)
    assert abs(np.std(scores) - 1) < 4 / math.sqrt(60)


def test_two_runs_together_are_one_of_as_many_points():
    rng = np.random.default_rng(2)
    runs = [slope(rng, 50, 1) for _ in range(2)]
    apart = [weighed(*run, num_possible=50) for run in runs]
    together = weighed(*np.concatenate(runs, axis=1), num_possible=100)
    assert together.num_alive[0] == 100
    assert together.log_evidence_error < min(each.log_evidence_error for each in apart)
    assert abs(together.log_evidence + math.log(20)) < 4 * together.log_evidence_error


def test_insertion_ranks():
    rng = np.random.default_rng(0)
    assert min(insertion_test(rng.uniform(size=4000), 500)) > 0.003
    assert insertion_test(rng.beta(1, 1.2, size=4000), 500)[0] < 1e-6
    late = np.concatenate([rng.uniform(size=3500), rng.beta(2, 1, size=500)])
    assert insertion_test(late, 500)[1] < 1e-6
    assert insertion_test(rng.beta(1, 3, size=20), 500) == (1.0, 1.0)


def test_walks_keep_the_uniform_distribution():
    """Uniform points of a disc that the cube cuts off stay uniform, however few the steps."""

    def log_likelihood(points):
        return -jnp.sum((points - jnp.array([0.2, 0.5])) ** 2, axis=-1)

    rng = np.random.default_rng(0)
    many = rng.uniform(size=(20_000, 2))
    bound = -(0.35**2)
    start = jnp.asarray(many[np.asarray(log_likelihood(many)) > bound][:2000])
    # Directions come from other points than those that walk.
    others = jnp.asarray(many[np.asarray(log_likelihood(many)) > bound][2000:2500])
    live = first_live(others, log_likelihood(others))._replace(
        bound=jnp.asarray(bound), width=jnp.asarray(1.5)
    )
    along = course(jax.random.key(1), live, len(start), 3)
    walks = begin(jax.random.key(2), start, log_likelihood(start), along)
    while bool(are_under_way(walks, along).any()):
        points, distances = proposed(walks, along)
        walks = judged(walks, along, points, distances, log_likelihood(points))
    ends = np.asarray(walks.points)
    assert np.all((ends > 0) & (ends < 1))
    assert np.all(np.asarray(walks.log_likelihoods) > bound)
    assert np.mean(np.linalg.norm(ends - start, axis=1)) > 0.1  # they have moved
    fresh = rng.uniform(size=(200_000, 2))
    fresh = fresh[np.asarray(log_likelihood(fresh)) > bound]
    for of in (lambda p: p[:, 0], lambda p: p[:, 1], log_likelihood):
        assert stats.ks_2samp(np.asarray(of(ends)), np.asarray(of(fresh))).pvalue > 1e-4


# --- evidences ---


def gaussian(x):
    return -0.5 * jnp.sum(x**2) - 0.5 * x.size * jnp.log(2 * jnp.pi)


@pytest.fixture(scope="module")
def found():
    return fitted(gaussian, 2, low=-10.0, high=10.0)


def test_a_gaussian(found):
    assert off_by(found, -2 * math.log(20)) < 4
    assert found.problems == []
    # Of the order of ESS effective draws.
    assert np.all(np.abs(found.mean("x")) < 4 / math.sqrt(found.ess))
    assert np.all(np.abs(found.sd("x") - 1) < 4 / math.sqrt(2 * found.ess))
    assert found.provenance["information"] == pytest.approx(
        2 * math.log(20) - math.log(2 * math.pi * math.e), abs=1
    )


def test_more_where_the_posterior_is(found):
    goal = 2 * int(found.ess)
    more = fitted(gaussian, 2, low=-10.0, high=10.0, method=Slice(num_live=100, num_steps=8, min_ess=goal))
    assert more.ess >= goal
    assert more.log_evidence_error < found.log_evidence_error
    assert off_by(more, -2 * math.log(20)) < 4
    assert np.all(np.abs(more.sd("x") - 1) < 4 / math.sqrt(2 * more.ess))


@pytest.mark.slow
def test_walks_some_at_a_time():
    method = Slice(num_live=200, chunk_size=7)
    assert off_by(fitted(gaussian, 3, low=-10.0, high=10.0, method=method), -3 * math.log(20)) < 4


def test_a_flat_likelihood_is_exact():
    flat = fitted(lambda x: 0.5 + 0 * x.sum(), 2)
    assert flat.log_evidence == pytest.approx(0.5, abs=1e-12)
    assert flat.log_evidence_error == pytest.approx(0.0, abs=1e-12)


def test_half_of_the_prior_is_impossible():
    half = fitted(lambda x: jnp.where(x[0] < 0.5, 0.0, -jnp.inf), 2)
    assert off_by(half, -math.log(2)) < 4
    # The share of about 200 draws.
    assert half.log_evidence_error == pytest.approx(1 / math.sqrt(200), rel=0.2)


def test_steps():
    def log_likelihood(x):
        return jnp.select([x[0] > 0.5, x[0] > 0.2], [0.0, 1.0], 2.0)

    assert off_by(fitted(log_likelihood, 2), math.log(0.5 + 0.3 * math.e + 0.2 * math.e**2)) < 4


@pytest.mark.slow
def test_two_modes_far_apart():
    """Mixture of two Gaussians 16 standard deviations apart, of shares .3 and .7."""

    def log_likelihood(x):
        terms = [
            jnp.log(share) + jnp.sum(dist.Normal(centre, 0.5).log_prob(x))
            for share, centre in ((0.3, -4), (0.7, 4))
        ]
        return jnp.logaddexp(*terms)

    posterior = fitted(log_likelihood, 2, low=-10.0, high=10.0, method=Slice(num_live=400))
    assert off_by(posterior, -2 * math.log(20)) < 4
    share = float(np.sum(posterior.weights * (posterior.samples["x"][..., 0] < 0)))
    # Of 400 points that fell into the one or the other.
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 400)


def test_discrete_sites():
    """A coin among three, after four heads in five: by enumeration."""

    def model(heads):
        which = numpyro.sample("which", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
        share = numpyro.sample("share", dist.Uniform(0.0, 1.0))
        p = share ** (1 / (1.0 + which))  # Beta(1 + which, 1), whose own quantiles take long to compile
        numpyro.sample("heads", dist.Binomial(5, p), obs=heads)

    terms = [w * stats.betabinom(5, 1 + k, 1).pmf(4) for k, w in enumerate((0.5, 0.3, 0.2))]
    posterior = qbs.fit(model, 4, method=QUICK, key=jax.random.key(0), progress=False)
    assert off_by(posterior, math.log(sum(terms))) < 4
    share = float(np.sum(posterior.weights * (posterior.samples["which"] == 2)))
    assert abs(share - terms[2] / sum(terms)) < 4 * math.sqrt(0.25 / posterior.ess)


def test_a_python_likelihood():
    python = qbs.Target(
        log_likelihood=lambda p: float(-0.5 * np.sum(np.asarray(p["x"]) ** 2) - math.log(2 * math.pi)),
        priors=cube(2, -10.0, 10.0),
    )
    method = Slice(num_live=25, num_steps=4, dlogz=0.5)
    posterior = qbs.fit(python, method=method, key=jax.random.key(0), progress=False)
    assert off_by(posterior, -2 * math.log(20)) < 4


def test_the_same_key_gives_the_same_run_and_no_run_compiles_again(found, compile_events):
    with compile_events() as events:  # blocks of any length are one program
        again, other = (fitted(gaussian, 2, low=-10.0, high=10.0, seed=seed) for seed in (0, 1))
    assert events == []
    assert again.log_evidence == found.log_evidence
    np.testing.assert_array_equal(again.samples["x"], found.samples["x"])
    assert other.log_evidence != found.log_evidence


# --- bad input ---


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_live": 0}, "num_live must be a whole number above 0"),
        ({"num_live": 10, "batch": 10}, "batch is 10; it must be below num_live, 10"),
        ({"num_steps": -1}, "num_steps must be"),
        ({"dlogz": 0.0}, "dlogz must be a number above 0"),
        ({"min_ess": 0}, "min_ess must be a whole number above 0"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        Slice(**settings)


def test_too_few_live_points():
    with pytest.raises(ValueError, match="in 3 dimensions it must be above 6"):
        fitted(gaussian, 3, method=Slice(num_live=6))


def test_nan_is_an_error_with_the_parameters():
    with pytest.raises(LikelihoodError, match=r"is nan at x = "):
        fitted(lambda x: jnp.where(x[0] < 0.02, jnp.nan, gaussian(10 * x)), 2)


def test_impossible_everywhere(monkeypatch):
    monkeypatch.setitem(MAX_FIRST_DRAWS, True, 4000)
    with pytest.raises(LikelihoodError, match="-inf at all of"):
        fitted(lambda x: -jnp.inf * jnp.sum(x + 1), 2, method=Slice(num_live=2000))


def test_calls_run_out():
    method = Slice(num_live=100, num_steps=8, max_calls=5000)
    posterior = fitted(gaussian, 2, low=-10.0, high=10.0, method=method)
    assert any("Stopped by max_calls = 5,000" in problem for problem in posterior.problems)
    assert math.isfinite(posterior.log_evidence)


# --- closed forms and quadratures, over seeds: no bias, and errors that cover ---


def funnel(x):
    return dist.Normal(0, 3).log_prob(x[0]) + dist.Normal(0, jnp.exp(x[0] / 2)).log_prob(x[1:]).sum()


NAMES = ("shells, 2", "shells, 5", "Rosenbrock, 2", "Rosenbrock, 3", "eggbox")
PROBLEMS = {
    "Gaussian, 5": (gaussian, 5, (-10.0, 10.0), -5 * math.log(20)),
    "flat": (lambda x: 0 * x.sum(), 3, (0.0, 1.0), 0.0),
} | {name: CLOSED[name] for name in NAMES}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_no_bias_and_errors_that_cover(name):
    log_likelihood, dim, (low, high), truth = PROBLEMS[name]
    posteriors = [
        fitted(log_likelihood, dim, low=low, high=high, method=Slice(num_live=300), seed=seed)
        for seed in range(20)
    ]
    if name == "flat":
        errors = np.array([posterior.log_evidence - truth for posterior in posteriors])
        assert np.abs(errors).max() < 1e-12
        return
    require_no_bias(posteriors, truth)
