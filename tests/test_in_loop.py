"""The published in-loop method: its switch, its networks, and that its results say what they are worth."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

import qbs
from qbs.errors import LikelihoodError
from qbs.inference.nested import Dynesty, InLoop, Slice, learned_likelihood
from qbs.inference.nested.in_loop_slices import run_on_slices
from qbs.inference.nested.learned_likelihood import LearnedLikelihood, Switching, Training
from qbs.inference.nested.network_tuning import CHOICES, LARGEST, decoded, tuned
from qbs.inference.nested.scaled_network import Limits, Recipe, train
from qbs.inference.progress import ProgressLine

KEY = jax.random.key(0)
TRUTH = -2 * math.log(20)  # of the normalised Gaussian of width 1 in U(-10, 10)^2
SMALL = {
    "num_live": 60,
    "dlogz": 0.5,
    "start_iterations": 100,
    "start_dlogz": 1e-9,
    "num_random": 40,
    "width": 16,
    "activation": "tanh",
    "learning_rate": 0.01,
    "batch_size": 32,
    "max_validation_loss": 0.05,
    "update_interval": 50,
}
SAMPLERS = pytest.mark.parametrize("sampler", ["dynesty", "slice"])


def log_normal(parameters):
    return -0.5 * jnp.sum(parameters["x"] ** 2) - jnp.log(2 * jnp.pi)


PRIORS = {"x": dist.Uniform(-10, 10).expand([2]).to_event(1)}
GAUSSIAN = qbs.Target(log_normal, PRIORS)


def fitted(target=GAUSSIAN, key=KEY, checkpoint=None, **settings):
    method = InLoop(**SMALL | settings)
    return qbs.fit(target, method=method, key=key, progress=False, checkpoint=checkpoint)


@functools.cache
def whole(sampler):
    return fitted(sampler=sampler)


@functools.cache
def untrained(sampler):
    return fitted(sampler=sampler, start_iterations=10**9)


def require_same(found, wanted):
    assert found.log_evidence == wanted.log_evidence
    assert found.num_likelihood_calls == wanted.num_likelihood_calls
    assert found.problems == wanted.problems
    np.testing.assert_array_equal(found.samples["x"], wanted.samples["x"])
    np.testing.assert_array_equal(found.log_weights, wanted.log_weights)


# --- the method ---


@SAMPLERS
def test_a_result_says_what_it_is_worth_and_comes_again(sampler):
    found = whole(sampler)
    assert found.provenance["num_accepted"] >= 1
    assert found.provenance["num_network_calls"] > 0
    is_by_network = found.stats["is_by_network"]
    share = np.exp(found.log_weights[is_by_network]).sum()
    assert is_by_network.sum() > 50
    assert found.problems[0] == (
        "The evidence comes partly from a surrogate without correction, and may be biased by nats, whatever "
        f"its error says: {is_by_network.sum():,} of {is_by_network.size:,} dead points, with {share:.0%} of "
        "the posterior, keep a network's value, and the likelihood was called "
        f"{found.num_likelihood_calls:,} times. Use nested.Corrected for an evidence that can be trusted."
    )
    # Those of the network have its values, and the others true ones.
    true = np.sum(norm.logpdf(found.samples["x"]), axis=-1)
    off = np.abs(found.stats["log_likelihood"] - true)
    assert np.all(off[~is_by_network] < 1e-9)
    assert np.mean(off[is_by_network]) > 1e-4


@SAMPLERS
def test_without_a_network_it_is_nested_sampling(sampler):
    found = untrained(sampler)
    assert not found.stats["is_by_network"].any()
    assert found.provenance["num_trained"] == 0
    assert abs(found.log_evidence - TRUTH) < 4 * found.log_evidence_error
    assert "0 of " in found.problems[0]


def test_dynesty_is_driven_as_alone():
    """The same key gives the same numbers with a network that is never trained as without one."""
    found = untrained("dynesty")
    key = jax.random.split(KEY, 3)[0]
    plain = qbs.fit(GAUSSIAN, method=Dynesty(num_live=60, dlogz=0.5), key=key, progress=False)
    assert found.log_evidence == plain.log_evidence
    assert found.num_likelihood_calls == plain.num_likelihood_calls


@SAMPLERS
def test_true_calls_are_limited(sampler):
    found = fitted(sampler=sampler, start_iterations=10**9, max_calls=400)
    assert 400 <= found.num_likelihood_calls < 400 + 60 + 128
    assert any(text.startswith("Stopped by max_calls") for text in found.problems)


def test_genetic_live_points_are_said_to_be_none_of_the_prior():
    found = fitted(init="genetic", max_calls=300, sampler="slice")
    assert any("genetic search and no draws from the prior" in text for text in found.problems)
    require_same(fitted(init="genetic", max_calls=300, sampler="slice"), found)


class Killed(BaseException):
    """Stands for the end of the process."""


@SAMPLERS
def test_a_killed_run_goes_on_to_the_same_bits(sampler, tmp_path, monkeypatch):
    """It dies as it trains its second network, after the first was used and dropped."""
    count = iter(range(10))

    def train_and_die(*args, **kwargs):
        if next(count) == 1:
            raise Killed
        return train(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(learned_likelihood, "train", train_and_die)
        with pytest.raises(Killed):
            fitted(sampler=sampler, checkpoint=tmp_path / "run")
    assert (tmp_path / "run").exists()
    require_same(fitted(sampler=sampler, checkpoint=tmp_path / "run"), whole(sampler))


def test_python_calls_are_not_made_twice(tmp_path):
    """A likelihood in plain Python that is interrupted late goes on, from its log, to the same bits."""
    calls = {"made": 0, "allowed": 10**9}

    def in_python(parameters):
        if calls["made"] == calls["allowed"]:
            calls["allowed"] = 10**9
            raise KeyboardInterrupt
        calls["made"] += 1
        return float(np.sum(norm.logpdf(parameters["x"])))

    target = qbs.Target(in_python, PRIORS, name="normal", in_jax=False)
    fit_again = functools.partial(fitted, target, num_live=40, dlogz=1.0)
    wanted = fit_again()
    num_made = calls["made"]  # a few of them before the run, to see that the likelihood is one
    assert 0 <= num_made - wanted.num_likelihood_calls <= 4
    calls |= {"made": 0, "allowed": num_made - 15}
    stopped = fit_again(checkpoint=tmp_path / "run")
    assert stopped.provenance["is_interrupted"]
    require_same(fit_again(checkpoint=tmp_path / "run"), wanted)
    assert calls["made"] <= num_made + 4


@pytest.mark.slow
def test_a_tuned_network_runs():
    found = fitted(tuning="genetic", tuning_population=3, tuning_generations=1)
    network = found.provenance["network"]
    assert all(network[name] in choices for name, choices in CHOICES.items())
    require_same(fitted(tuning="genetic", tuning_population=3, tuning_generations=1), found)


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "mcmc"},
        {"init": "random"},
        {"activation": "step"},
        {"tuning": "grid"},
        {"num_live": 0},
        {"num_random": -1},
        {"start_iterations": -1},
        {"training_share": 1.0},
        {"tolerance": math.nan},
        {"max_calls": 0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_bad_settings_are_named(settings):
    with pytest.raises(ValueError, match=f"InLoop: {next(iter(settings))}"):
        InLoop(**settings)


def test_too_few_live_points_are_refused():
    with pytest.raises(ValueError, match="num_live is 3"):
        fitted(num_live=3)
    with pytest.raises(ValueError, match="num_live is 4"):
        fitted(num_live=4, sampler="slice")


def test_an_impossible_likelihood_is_refused():
    learned = learned_from(Plane(top=-math.inf))
    with pytest.raises(LikelihoodError, match="impossible"):
        run_on_slices(Slice(num_live=1000), learned, KEY, ProgressLine("", show=False))
    assert learned.num_calls == 10_000


# --- the switch ---


RECIPE = Recipe(3, 16, "tanh", 32, 0.01, 100)
SWITCHING = Switching(100, 0.5, 20, 0.01, 50, 0.05, 5, 1000)


class Plane:
    """A likelihood that falls along the first coordinate of the cube by as many nats as a test says."""

    version = num_finite = num_calls = 0

    def __init__(self, dim=2, fall=100.0, top=-1000.0):
        self.dim, self.fall, self.top, self.is_compiled = dim, fall, top, False

    def log_likelihood(self, points):
        self.num_calls += len(points)
        return self.top - self.fall * points[:, 0]

    def impossible(self):
        return LikelihoodError("impossible")


def learned_from(cube, max_calls=None, **changes):
    training = Training(RECIPE, 0.7, 100, None, 1)
    return LearnedLikelihood(cube, SWITCHING._replace(**changes), training, KEY, max_calls=max_calls)


def points_of(count, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, 2))


@pytest.fixture
def trusted():
    """A plane, and a learned likelihood that has just begun to trust a network for it."""
    plane = Plane()
    learned = learned_from(plane)
    live = points_of(100)
    assert learned.after(100, math.inf, live, learned.log_likelihood(live))
    return plane, learned


def test_the_gate_opens_late_or_near_the_end():
    live = points_of(100)
    for iteration, remaining, is_open in ((99, 0.6, False), (100, 0.6, True), (5, 0.5, True)):
        learned = learned_from(Plane())
        learned.after(iteration, remaining, live, learned.log_likelihood(live))
        assert learned.num_trained == int(is_open)


def test_a_network_that_is_trusted_answers_in_place_of_the_truth(trusted):
    plane, learned = trusted
    assert (learned.num_trained, learned.num_accepted, learned.version) == (1, 1, 1)
    # The live points, and those of 20 normal ones around the best of them that fell into the cube.
    made = plane.num_calls
    assert 100 < made <= 120
    assert learned.num_calls == made
    fresh = points_of(500, seed=1)
    said = learned.log_likelihood(fresh)
    assert plane.num_calls == learned.num_calls == made
    assert learned.num_network_calls == 500
    truth = -1000 - 100 * fresh[:, 0]
    assert 1e-6 < np.sqrt(np.mean((said - truth) ** 2)) < 10  # of a range of 100
    assert learned.is_by_network(fresh).all()
    assert not learned.is_by_network(points_of(100)).any()


def test_a_network_of_a_high_loss_is_not_trusted_and_another_is_trained():
    plane = Plane()
    learned = learned_from(plane, max_validation_loss=1e-12)
    live = points_of(100)
    values = learned.log_likelihood(live)
    for iteration in range(100, 201, 10):
        learned.after(iteration, math.inf, live, values)
    # At iterations 100, 150 and 200.
    assert (learned.num_trained, learned.num_accepted) == (3, 0)
    assert learned.num_network_calls == 0


def test_the_monitor_drops_a_network_that_is_wrong(trusted):
    plane, learned = trusted
    live = points_of(100, seed=1)
    said = learned.log_likelihood(live)
    made = plane.num_calls
    learned.after(149, math.inf, live, said)
    assert plane.num_calls == made
    learned.after(150, math.inf, live, said)  # it may be wrong by 5 % of 1,000 nats
    assert plane.num_calls == made + 5
    plane.fall = 1000.0  # the truth has turned
    learned.after(200, math.inf, live, said)
    assert (learned.num_dropped, learned.version) == (1, 2)
    assert np.array_equal(learned.log_likelihood(live), -1000 - 1000 * live[:, 0])
    # It waits for as long again before the next training.
    for iteration in range(201, 250):
        learned.after(iteration, math.inf, live, learned.log_likelihood(live))
    assert learned.num_trained == 1
    learned.after(250, math.inf, live, learned.log_likelihood(live))
    assert learned.num_trained == 2


def test_the_monitor_forgives_more_where_a_constant_is_added():
    """What is published: an error is judged by the size of |log L|, which means nothing."""
    for top, num_dropped in ((-10.0, 1), (-10_000.0, 0)):
        plane = Plane(top=top)
        learned = learned_from(plane)
        live = points_of(100)
        learned.after(100, math.inf, live, learned.log_likelihood(live))
        said = learned.log_likelihood(points_of(100, seed=1))
        plane.top += 200.0
        learned.after(150, math.inf, points_of(100, seed=1), said)
        assert learned.num_dropped == num_dropped


def test_a_network_that_finds_no_point_is_dropped(trusted):
    plane, learned = trusted
    live, made = points_of(100, seed=1), plane.num_calls
    for _ in range(10):
        learned.log_likelihood(live)
    assert (learned.num_dropped, plane.num_calls) == (0, made)
    learned.log_likelihood(live[:1])  # the 1,001st for one point
    assert (learned.num_dropped, plane.num_calls) == (1, made + 1)


def test_impossible_points_are_not_learned():
    plane = Plane()
    learned = learned_from(plane, num_random=0)
    live = points_of(100)
    values = np.where(live[:, 0] < 0.95, -np.inf, 0.0)
    learned.after(100, math.inf, live, values)  # too few others
    assert learned.num_trained == 0
    values = np.where(live[:, 1] < 0.5, -1e300, plane.log_likelihood(live))
    learned = learned_from(plane)
    learned.after(100, math.inf, live, values)
    assert learned.num_trained == 1
    assert np.all(np.abs(learned.log_likelihood(live) + 1000) < 1000)


def test_no_more_iterations_after_the_last_call():
    learned = learned_from(Plane(), max_calls=100)
    live = points_of(99)
    values = learned.log_likelihood(live)
    assert learned.after(1, math.inf, live, values)
    learned.log_likelihood(live[:1])
    assert not learned.after(2, math.inf, live, values)


# --- the networks ---


def test_a_network_learns_a_smooth_function_in_any_unit():
    points = points_of(128)
    values = -1e4 * (points[:, 0] - 0.3) ** 2 - 3e3 * points[:, 1] - 1e6
    network = train(points, values, RECIPE, KEY, training_share=0.7, patience=100)
    fresh = points_of(1000, seed=1)
    truth = -1e4 * (fresh[:, 0] - 0.3) ** 2 - 3e3 * fresh[:, 1] - 1e6
    error = np.sqrt(np.mean((network(fresh) - truth) ** 2)) / np.ptp(values)
    assert error < 0.05
    # The loss is in units of which the values span 0.9.
    assert 0.3 < error * 0.9 / math.sqrt(network.validation_loss) < 3


def test_smaller_networks_run_through_the_same_program(compile_events):
    points = points_of(100)
    values = -points[:, 0]
    how = {"training_share": 0.7, "patience": 20, "limits": Limits(3, 16, 32)}
    first = train(points, values, Recipe(3, 16, "relu", 32, 0.01, 5), KEY, **how)
    with compile_events() as events:
        second = train(points[:90], values[:90], Recipe(2, 8, "sigmoid", 16, 0.1, 30), KEY, **how)
    assert events == []
    assert [np.shape(weight) for weight, _ in second.weights] == [(2, 8), (1, 8, 8), (8,)]
    assert [np.shape(weight) for weight, _ in first.weights] == [(2, 16), (2, 16, 16), (16,)]
    # What was left out was not used in training: what is kept is as good as the training found.
    scaled = 0.9 * (second(points) - values) / np.ptp(values[:90])
    assert 0.2 < np.mean(scaled**2) / second.validation_loss < 5


def test_the_search_over_networks_finds_the_best_of_its_choices():
    """The loss counts the choices that are not the last; there are 729."""
    trained = []

    def loss_of(recipe, key):
        trained.append(recipe)
        chosen = zip(recipe, CHOICES.values(), strict=True)
        return sum(len(choices) - 1 - choices.index(value) for value, choices in chosen) + 0.5

    found = tuned(loss_of, KEY, population=20, generations=20)
    assert found.loss <= 1.5
    assert found.num_trained == len(trained) <= 20 + 20 * 19
    assert loss_of(found.recipe, KEY) == found.loss
    again = tuned(loss_of, KEY, population=20, generations=20)
    assert again.recipe == found.recipe


def test_genes_are_two_bits_a_choice():
    assert tuple(CHOICES) == Recipe._fields
    assert decoded(np.zeros(12, np.uint8)) == Recipe(2, 50, "relu", 16, 1e-2, 50)
    genome = np.array([0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1], np.uint8)
    assert decoded(genome) == Recipe(3, 200, "sigmoid", 64, 1e-3, 50)
    assert LARGEST == (4, 200, 64)
