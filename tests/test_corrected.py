"""Corrected surrogates and importance nested sampling, against closed forms; what they cannot do is said."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from closed_forms import CLOSED, eggbox, fit_in_box, narrow_gaussian, rosenbrock
from scipy import stats

import qbs
from qbs.errors import LikelihoodError
from qbs.inference.nested import Corrected, GaussianProcess, Genetic, Importance, NetworkEnsemble
from qbs.inference.nested.concave import ConcaveForm, fit_concave
from qbs.inference.nested.correction import combined, make_round
from qbs.inference.nested.known import Known
from qbs.inference.nested.peaks import hunt
from qbs.inference.nested.proposals import WeightedPoints, around, in_cube, refined
from qbs.inference.nested.student_mixture import StudentMixture, fit_mixture
from qbs.inference.nested.surrogate import FittedSurrogate, _flattened, _restored, fit_surrogate
from qbs.inference.nested.training import agreement
from qbs.inference.nested.whitening import Whitening, of_cube

SCALE = 0.1


def two_modes(x):
    """Two normalized Gaussians of standard deviation 1, eight apart, of shares 0.7 and 0.3."""
    logs = [
        math.log(share) - 0.5 * jnp.sum(x.at[0].add(shift) ** 2) for share, shift in ((0.7, -4.0), (0.3, 4.0))
    ]
    return jnp.logaddexp(*logs) - len(x) / 2 * math.log(2 * math.pi)


# --- the parts ---


def test_a_concave_form_is_found_again():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 3))
    root = np.array([[1.0, 0, 0], [0.5, 1, 0], [0, 0.3, 0.7]])
    values = -0.5 * np.sum((points @ root) ** 2, axis=1) + points @ [0.1, -0.2, 0.3]
    form = fit_concave(points, values - values.max(), 40.0)
    # The ridge, 1e-4 a point, pulls towards the standard Gaussian by about as much.
    np.testing.assert_allclose(form.curvature, -root @ root.T, atol=2e-3)
    np.testing.assert_allclose(form(points), values - values.max(), atol=5e-3)


def test_a_form_falls_off_in_every_direction():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 2))
    form = fit_concave(points, np.minimum(points[:, 0] ** 2 - points[:, 1] ** 2 - 9, 0.0), 20.0)
    assert np.linalg.eigvalsh(form.curvature).max() < 0


def test_a_surrogate_learns_a_bend_and_doubts_what_it_does_not_know():
    rng = np.random.default_rng(0)

    def bend(points):
        x, y = (points - 0.5).T * 10
        return -0.5 * x**2 - 0.5 * (y - 0.3 * x**2) ** 2

    near = np.clip(rng.normal(0.5, 0.1, size=(120, 2)), 0.01, 0.99)
    space = Whitening(np.full(2, 0.5), 0.1 * np.eye(2))
    surrogate = fit_surrogate(GaussianProcess(), near, bend(near), space, 36.0)
    fresh = np.clip(rng.normal(0.5, 0.1, size=(200, 2)), 0.01, 0.99)
    likely = bend(fresh) > -6
    lower, upper = surrogate.bounds(fresh[likely])
    assert np.sqrt(np.mean((lower - bend(fresh[likely])) ** 2)) < 0.25
    far = rng.uniform(0, 1, size=(200, 2))
    far = far[np.linalg.norm(far - 0.5, axis=1) > 0.4]
    gaps = np.subtract(*surrogate.bounds(far)[::-1])
    assert np.median(gaps) > 20 * np.median(upper - lower)


def test_a_mixture_has_its_density_and_its_draws():
    rng = np.random.default_rng(0)
    factors = np.array([[[0.05, 0.0], [0.02, 0.04]], [[0.1, 0.0], [0.0, 0.03]]])
    mixture = StudentMixture(np.log([0.3, 0.7]), np.array([[0.2, 0.3], [0.7, 0.6]]), factors)
    points = rng.uniform(size=(20, 2))
    expected = sum(
        share * stats.multivariate_t(mean, factor @ factor.T, df=5).pdf(points)
        for share, mean, factor in zip([0.3, 0.7], mixture.means, factors, strict=True)
    )
    np.testing.assert_allclose(np.exp(mixture.log_density(points)), expected, rtol=1e-10)
    drawn = mixture.draw(rng, 20000)
    # Of draws on the side of the first component: a share of 20,000, at four standard errors.
    share = np.mean(drawn @ [1, 1] < 0.9)
    exact = np.mean(mixture.draw(np.random.default_rng(1), 400_000) @ [1, 1] < 0.9)
    assert abs(share - exact) < 4 * math.sqrt(0.25 / 20000)
    np.testing.assert_allclose(drawn.mean(0), np.exp(mixture.log_shares) @ mixture.means, atol=0.01)


def test_a_proposal_integrates_to_one():
    rng = np.random.default_rng(0)
    proposal = around(Whitening(np.array([0.1, 0.8]), 0.2 * np.eye(2)))
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-4, 5, 1801)]), -1).reshape(-1, 2)
    inside = np.mean(in_cube(proposal.draw(rng, 40000)))
    density = np.exp(proposal.log_density(grid)) * (9 / 1800) ** 2
    # The grid ends where next to nothing is left of t distributions; its steps cut the edge of the cube.
    assert density.sum() == pytest.approx(1, abs=0.01)
    assert density[in_cube(grid)].sum() == pytest.approx(inside, abs=4 * math.sqrt(0.25 / 40000) + 0.005)


def test_a_mixture_of_two_far_clusters():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0.2, 0.02, (300, 2)), rng.normal(0.8, 0.02, (300, 2))])
    mixture = fit_mixture(rng, points, np.full(600, 1 / 600), 2)
    np.testing.assert_allclose(np.sort(mixture.means[:, 0]), [0.2, 0.8], atol=0.01)


def some_rest(white):
    return np.zeros(len(white)), np.full(len(white), 0.2)


# Too narrow, off its place, and off by a constant.
WRONG = FittedSurrogate(
    Whitening(np.full(2, 0.52), 0.09 * np.eye(2)),
    -2.0,
    ConcaveForm(0.0, np.array([0.4, 0.0]), -np.eye(2)),
    some_rest,
    10.0,
)


@functools.cache
def evidences_of_a_wrong_surrogate():
    def evaluate(points):
        return -0.5 * np.sum((points - 0.5) ** 2, axis=1) / SCALE**2 - 2 * math.log(
            SCALE * math.sqrt(2 * math.pi)
        )

    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        free, _ = refined(rng, WRONG, around(of_cube(2)), 2, 2000)
        rounds = [make_round(evaluate, rng, WRONG, free, 40, 4000) for _ in range(3)]
        found.append(combined(rounds, rounds))
    return found


def test_a_wrong_surrogate_makes_no_bias():
    """The mass of a Gaussian inside the cube is 1 to 1e-6."""
    found = evidences_of_a_wrong_surrogate()
    ratios = np.array([math.exp(each.log_evidence) for each in found])
    assert abs(ratios.mean() - 1) < 4 * ratios.std(ddof=1) / math.sqrt(len(ratios))
    weights = np.array([np.exp(each.log_weights).sum() / each.num_draws for each in found])
    assert abs(weights.mean() - 1) < 4 * weights.std(ddof=1) / math.sqrt(len(weights))


def test_errors_of_a_wrong_surrogate_cover():
    found = evidences_of_a_wrong_surrogate()
    scores = np.array([each.log_evidence / each.log_evidence_error for each in found])
    # No larger than told: of 40 standard normal numbers, at four standard errors.
    assert scores.std() < 1 + 4 / math.sqrt(80)
    assert np.mean([each.log_evidence_error for each in found]) < 0.1


# --- whole runs ---


@pytest.fixture(scope="module")
def corrected():
    return fit_in_box(narrow_gaussian, 2, -1, 1, Corrected())


def test_a_gaussian_in_few_calls(corrected):
    assert abs(corrected.log_evidence + 2 * math.log(2)) < 4 * corrected.log_evidence_error
    assert corrected.log_evidence_error < 0.03
    assert corrected.num_likelihood_calls < 300
    assert corrected.problems == []
    weights = np.exp(corrected.log_weights[0])
    x = corrected.samples["x"][0]
    ess = 1 / (weights**2).sum()
    assert ess >= 100
    assert np.all(np.abs(weights @ x) < 4 * SCALE / math.sqrt(ess))
    assert weights @ x[:, 0] ** 2 == pytest.approx(SCALE**2, abs=4 * math.sqrt(2 / ess) * SCALE**2)


def test_the_same_key_gives_the_same_run_and_a_run_goes_on(corrected, tmp_path):
    path = tmp_path / "run.qbs"
    stopped = fit_in_box(narrow_gaussian, 2, -1, 1, Corrected(), checkpoint=path)
    again = fit_in_box(narrow_gaussian, 2, -1, 1, Corrected(), checkpoint=path)
    for each in (stopped, again):
        assert each.log_evidence == corrected.log_evidence
        np.testing.assert_array_equal(each.samples["x"], corrected.samples["x"])


def test_a_python_likelihood_and_a_search():
    calls = []

    def slow(p):
        calls.append(p)
        return -0.5 * float(np.sum(p["x"] ** 2)) / SCALE**2

    target = qbs.Target(slow, {"x": dist.Uniform(-1, 1).expand([2]).to_event(1)}, in_jax=False)
    method = Corrected(search=Genetic(generations=5), min_ess=50)
    found = qbs.fit(target, method=method, key=jax.random.key(0), progress=False)
    truth = 2 * math.log(SCALE * math.sqrt(2 * math.pi) / 2)
    assert abs(found.log_evidence - truth) < 4 * found.log_evidence_error
    assert len(calls) - found.num_likelihood_calls in (0, 1)  # one to try the function


@pytest.mark.slow
def test_networks_as_the_surrogate():
    found = fit_in_box(narrow_gaussian, 2, -1, 1, Corrected(surrogate=NetworkEnsemble(num_steps=1000)))
    assert abs(found.log_evidence + 2 * math.log(2)) < 4 * found.log_evidence_error
    assert found.problems == []


def test_far_below_values_are_flattened_and_restored():
    values = -np.array([0.0, 3.0, 10.0, 11.0, 500.0, 1e6])
    flat = _flattened(values, 10.0)
    np.testing.assert_array_equal(flat[:3], values[:3])
    assert np.all(flat[3:] > values[3:])
    assert flat[-1] == pytest.approx(-10 - 10 * math.log(1e5))
    np.testing.assert_allclose(_restored(flat, 10.0), values)


def test_a_surrogate_stays_low_far_from_points_that_are_far_below():
    """Values of minus a thousand and more, of a few points, must not lift it elsewhere."""
    rng = np.random.default_rng(0)
    near = 0.5 + 0.01 * rng.normal(size=(40, 2))
    points = np.concatenate([near, rng.uniform(size=(10, 2))])
    values = -0.5 * np.sum((points - 0.5) ** 2, axis=1) / 0.01**2
    space = Whitening(np.full(2, 0.5), 0.01 * np.eye(2))
    fitted = fit_surrogate(GaussianProcess(), points, values, space, 36.0)
    anywhere = rng.uniform(size=(500, 2))
    is_far = np.sum((anywhere - 0.5) ** 2, axis=1) > 0.1**2
    assert fitted(anywhere[is_far]).max() < -20.0  # 50 of it at the nearest of them
    np.testing.assert_allclose(fitted(near), values[:40], atol=0.05)


def test_few_draws_tell_nothing_of_agreement():
    drawn = WeightedPoints(np.full((200, 2), 0.5), np.eye(200)[0])
    assert agreement(WRONG, WRONG, drawn) == 0.0
    assert agreement(WRONG, WRONG, drawn._replace(weights=np.full(200, 1 / 200))) == pytest.approx(1.0)


def peaks_of(*centres):
    """Return Gaussians of standard deviation 0.03 on the unit square, as high as each other."""

    def evaluate(points):
        calls.append(len(points))
        falls = [-0.5 * np.sum((points - centre) ** 2, axis=1) / 0.03**2 for centre in centres]
        return np.logaddexp.reduce(falls)

    calls = []
    return evaluate, calls


def surrogate_of_the_first(evaluate, rng):
    """Return a surrogate that knows one peak, and the points it was fitted to with some far ones."""
    near = 0.3 + 0.03 * rng.normal(size=(60, 2))
    known = Known(near, evaluate(near))
    fitted = fit_surrogate(GaussianProcess(), *known, Whitening(np.full(2, 0.3), 0.03 * np.eye(2)), 36.0)
    far = np.array([[0.65, 0.68], [0.6, 0.05], [0.05, 0.9]])
    return fitted, known.with_new(far, evaluate(far))


def test_a_hunt_climbs_to_a_peak_that_the_surrogate_does_not_know():
    evaluate, _ = peaks_of(0.3, 0.8)
    surrogate, known = surrogate_of_the_first(evaluate, np.random.default_rng(0))
    found = hunt(evaluate, surrogate, known)
    assert found.peak is not None
    np.testing.assert_allclose(found.peak, 0.8, atol=0.03)  # within a standard deviation
    assert found.below < 1.0
    assert len(found.known.points) > len(known.points)


def test_a_hunt_for_nothing_costs_two_calls_for_each_far_point():
    evaluate, calls = peaks_of(0.3)
    surrogate, known = surrogate_of_the_first(evaluate, np.random.default_rng(0))
    calls.clear()
    found = hunt(evaluate, surrogate, known)
    assert found.peak is None
    assert sum(calls) == 6


def test_an_ascent_ends_where_the_surrogate_knows_the_likelihood():
    """A banana: the top is not seen along the line from its other arm, but the way there is known."""

    def evaluate(points):
        calls.append(len(points))
        x, y = ((points - 0.5) / 0.05).T
        return -0.5 * (x / 3) ** 2 - 0.5 * ((y - 0.4 * x**2) / 0.2) ** 2

    calls: list[int] = []
    x = np.linspace(-5, 5, 60)
    arms = 0.5 + 0.05 * np.stack([x, 0.4 * x**2], axis=1)
    arms = arms[np.all(arms < 1, axis=1)] + 1e-3 * np.random.default_rng(0).normal(size=(1, 2))
    known = Known(arms, evaluate(arms))
    surrogate = fit_surrogate(GaussianProcess(), *known, Whitening(np.full(2, 0.5), 0.05 * np.eye(2)), 36.0)
    far = np.array([[0.725, 0.955]])
    known = known.with_new(far, evaluate(far))
    calls.clear()
    assert hunt(evaluate, surrogate, known).peak is None
    assert 2 < sum(calls) < 50  # an ascent was begun, and not made to its end


def test_two_peaks_are_learned():
    found = fit_in_box(two_modes, 2, -10, 10, Corrected())
    assert found.problems == []
    assert abs(found.log_evidence + 2 * math.log(20)) < 4 * found.log_evidence_error
    weights = np.exp(found.log_weights[0])
    is_first = found.samples["x"][0][:, 0] > 0
    share = float(weights @ is_first)
    assert abs(share - 0.7) < 4 * math.sqrt(0.7 * 0.3 * np.sum(weights**2))


def test_many_peaks_are_told_of():
    found = fit_in_box(eggbox, 2, 0, 10 * math.pi, Corrected(max_training=60, max_calls=100))
    assert any("not learned" in each or "another peak" in each for each in found.problems)


def test_calls_run_out():
    found = fit_in_box(rosenbrock, 5, -5, 5, Corrected(max_calls=80))
    assert any("had not learned" in problem for problem in found.problems)
    assert found.num_likelihood_calls <= 80 + 8 + 40  # a last batch, and a round


def test_fall_back():
    method = Corrected(max_training=40, fallback=Importance(min_ess=300, max_error=0.1))
    found = fit_in_box(rosenbrock, 2, -5, 5, method)
    assert any("had not learned" in reason for reason in found.provenance["fell_back"])
    assert abs(found.log_evidence + 5.8041) < 4 * found.log_evidence_error


def test_impossible_everywhere():
    for method in (Corrected(), Importance()):
        with pytest.raises(LikelihoodError, match="-inf at all of"):
            fit_in_box(lambda x: -jnp.inf + 0 * x[0], 2, 0, 1, method)


def test_flat_and_half_of_the_prior():
    flat = fit_in_box(lambda x: 0 * x[0], 2, 0, 1, Corrected())
    assert abs(flat.log_evidence) < max(4 * flat.log_evidence_error, 1e-12)
    half = fit_in_box(
        lambda x: jnp.where(x[0] < 0.5, 0.0, -jnp.inf), 2, 0, 1, Importance(min_ess=200, max_error=0.1)
    )
    assert abs(half.log_evidence + math.log(2)) < 4 * half.log_evidence_error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_error": 0.0}, "max_error"),
        ({"round_size": 5}, "round_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_calls": -1}, "max_calls"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Corrected(**settings)


def test_importance_goes_on_bit_by_bit(tmp_path):
    method = Importance(min_ess=200, max_error=0.1)
    path = tmp_path / "run.qbs"
    first = fit_in_box(narrow_gaussian, 3, -1, 1, method, checkpoint=path)
    again = fit_in_box(narrow_gaussian, 3, -1, 1, method, checkpoint=path)
    assert first.log_evidence == again.log_evidence
    assert abs(first.log_evidence + 3 * math.log(2)) < 4 * first.log_evidence_error
    assert first.problems == []


MODES = {
    "two modes, 2": (two_modes, 2, (-10.0, 10.0), -2 * math.log(20)),
    "two modes, 5": (two_modes, 5, (-10.0, 10.0), -5 * math.log(20)),
}
ROUND = {"Gaussian, 3": CLOSED["narrow Gaussian, 3"]} | MODES
NAMES = ("narrow Gaussian, 8", "Rosenbrock, 2", "Rosenbrock, 3", "shells, 2", "shells, 5")
BENT = {name: CLOSED[name] for name in NAMES}


def require_no_bias(log_likelihood, dim, box, truth, method):
    """Of 20 runs, those without a problem are right within their errors, on average too."""
    found = [fit_in_box(log_likelihood, dim, *box, method, seed=seed) for seed in range(20)]
    sure = [each for each in found if not each.problems]
    assert len(sure) >= 19
    errors = np.array([each.log_evidence - truth for each in sure])
    told = np.array([each.log_evidence_error for each in sure])
    assert abs(errors.mean()) < 3 * math.sqrt(np.mean(told**2) / len(sure))
    assert np.abs(errors / told).max() < 4
    assert np.std(errors / told) < 1 + 4 / math.sqrt(2 * len(sure))


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUND)
def test_corrected_has_no_bias(name):
    require_no_bias(*ROUND[name], Corrected())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason="17 of 20 had no problem", strict=False))
        if name == "Rosenbrock, 3"
        else name
        for name in (*ROUND, *BENT)
    ],
)
def test_importance_has_no_bias(name):
    require_no_bias(*(ROUND | BENT)[name], Importance())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Rosenbrock, 2", "narrow Gaussian, 8"])
def test_corrected_has_no_bias_where_it_is_bent(name):
    require_no_bias(*BENT[name], Corrected())
