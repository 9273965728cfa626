"""The genetic search: it finds the highest likelihood of hard functions, within the cube, by every call."""

import math
import sys

import jax
import numpy as np
import pytest

from qbs.errors import LikelihoodError, MissingExtraError
from qbs.inference.nested import Genetic
from qbs.inference.nested.genetic import reflected

KEY = jax.random.key(0)
STRATEGIES = pytest.mark.parametrize("strategy", ["genetic", "cma"])


def rosenbrock(points):
    x = 10 * points - 5
    return -np.sum(100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2, axis=1)


def eggbox(points):
    """Feroz, Hobson & Bridges (2009), section 6.1: 18 peaks of 243 nats in (0, 10 pi)^2."""
    return (2 + np.prod(np.cos(10 * np.pi * points / 2), axis=1)) ** 5


def distance_from_shells(points):
    """How far points of U(-6, 6)^d are from the nearer of two spheres of radius 2."""
    x, centre = 12 * points - 6, 3.5 * np.eye(points.shape[1])[0]
    return np.min([abs(np.linalg.norm(x - c, axis=1) - 2) for c in (centre, -centre)], axis=0)


def shells(points):
    return -0.5 * (distance_from_shells(points) / 0.1) ** 2


def half(points):
    """A Gaussian beside an impossible half of the cube."""
    return np.where(points[:, 0] < 0.5, -np.inf, -0.5 * np.sum(((points - 0.6) / 0.02) ** 2, axis=1))


@STRATEGIES
def test_it_finds_the_end_of_a_curved_valley(strategy):
    found = Genetic(strategy=strategy).search(rosenbrock, 2, KEY)
    point, value = found.best
    assert value > -0.5  # the greatest is 0, the prior's median -1e4
    assert np.allclose(10 * point - 5, 1, atol=1.5)
    assert rosenbrock(point[None])[0] == value


@STRATEGIES
def test_it_finds_one_of_many_equal_peaks(strategy):
    found = Genetic(strategy=strategy).search(eggbox, 2, KEY)
    assert found.best[1] > 243 - 1


@STRATEGIES
def test_it_finds_a_thin_shell(strategy):
    found = Genetic(strategy=strategy).search(shells, 3, KEY)
    assert distance_from_shells(found.best[0][None])[0] < 0.1


@STRATEGIES
def test_what_is_impossible_is_kept_and_avoided(strategy):
    found = Genetic(strategy=strategy).search(half, 3, KEY)
    assert np.isneginf(found.log_likelihoods).any()
    assert found.best[1] > -0.5


@STRATEGIES
def test_all_calls_come_back_in_order_and_again_for_the_same_key(strategy):
    seen = []

    def evaluate(points):
        seen.append(points.copy())
        return rosenbrock(points)

    settings = Genetic(strategy=strategy, population=24, generations=6, patience=None)
    found = settings.search(evaluate, 3, KEY)
    assert len(seen) == 7
    assert all(points.shape == (24, 3) for points in seen)
    assert np.array_equal(found.points, np.concatenate(seen))
    assert np.array_equal(found.log_likelihoods, rosenbrock(found.points))
    assert np.all((found.points > 0) & (found.points < 1))
    again = settings.search(rosenbrock, 3, KEY)
    assert np.array_equal(again.points, found.points)
    other = settings.search(rosenbrock, 3, jax.random.key(1))
    assert not np.array_equal(other.points, found.points)


def test_elites_are_not_forgotten():
    """Where all stay that are among the best, each child is a step away from one of the best so far."""
    found = Genetic(
        population=20,
        generations=8,
        patience=None,
        num_elites=20,
        crossover_rate=0.0,
        mutation_scale=0.01,
        mutation_decay=1.0,
    ).search(eggbox, 2, KEY)
    for number in range(1, 9):
        before, values = found.points[: 20 * number], found.log_likelihoods[: 20 * number]
        parents = before[np.argsort(-values)[:10]]  # the better half of a population of the 20 best
        children = found.points[20 * number : 20 * (number + 1)]
        steps = np.linalg.norm(children[:, None] - parents, axis=-1).min(axis=1)
        assert np.all(steps < 0.06)  # six standard deviations; at random it is 0.15


def test_it_stops_when_nothing_gets_better():
    found = Genetic(population=20, generations=100, patience=3).search(
        lambda points: np.zeros(len(points)), 2, KEY
    )
    assert len(found.points) == 20 * 4


def test_steps_are_reflected_at_the_faces():
    points = np.array([[-0.25, 0.5], [1.25, 2.25], [3.75, -1.75], [0.0, 1.0]])
    images = reflected(points)
    assert np.allclose(images, [[0.25, 0.5], [0.75, 0.25], [0.25, 0.25], [0.0, 1.0]])
    assert np.all((images > 0) & (images < 1))


@pytest.mark.parametrize(
    ("evaluate", "error", "said"),
    [
        (lambda points: np.full(len(points), -np.inf), LikelihoodError, "-inf at all of 10,000 draws"),
        (lambda points: np.full(len(points), np.nan), LikelihoodError, "is nan at"),
        (lambda points: np.full(len(points), np.inf), LikelihoodError, "is inf at"),
        (lambda points: np.zeros((len(points), 1)), ValueError, r"shape \(20, 1\)"),
    ],
)
def test_bad_likelihoods_are_refused(evaluate, error, said):
    with pytest.raises(error, match=said):
        Genetic().search(evaluate, 2, KEY)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": "annealing"}, "strategy"),
        ({"population": 2}, "population"),
        ({"generations": 0}, "generations"),
        ({"crossover_rate": 1.5}, "crossover_rate"),
        ({"mutation_decay": 2.0}, "mutation_decay"),
        ({"mutation_scale": math.nan}, "mutation_scale"),
    ],
)
def test_bad_settings_are_named(settings, said):
    with pytest.raises(ValueError, match=said):
        Genetic(**settings)


def test_without_evosax_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "evosax", None)
    with pytest.raises(MissingExtraError, match=r"qbs-jax\[surrogates\]"):
        Genetic(population=21).search(rosenbrock, 2, KEY)
