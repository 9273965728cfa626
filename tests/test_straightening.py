"""Coordinates that straighten bananas, against bananas whose straight coordinates are known."""

import itertools
import math

import numpy as np
import pytest

from qbs.inference.nested import straightening
from qbs.inference.nested.proposals import Spread
from qbs.inference.nested.straightening import best_order

COUNT = 4000


def banana(seed: int = 0, dim: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return points of a cube whose last coordinate bends with the others, and the normal draws behind."""
    normal = np.random.default_rng(seed).normal(size=(COUNT, dim))
    bent = normal.copy()
    bent[:, -1] += 0.8 * normal[:, 0] ** 2 - 0.5 * normal[:, 0] * normal[:, 1] + normal[:, 1]
    return 0.5 + 0.03 * bent, normal


EVEN = np.full(COUNT, 1 / COUNT)


@pytest.mark.parametrize("places", list(itertools.permutations(range(3))))
def test_a_banana_is_straight_in_whatever_order_its_coordinates_come(places):
    points, normal = banana()
    points, normal = points[:, places], normal[:, places]
    space = straightening.of_points(points, EVEN)
    bent = places.index(2)
    assert space.order[-1] == bent
    # Coefficients are known to 1/sqrt(4000), of some ten: correlations of 1 to within a part in 4000 of each.
    assert np.corrcoef(space(points)[:, bent], normal[:, bent])[0, 1] > 1 - 20 / COUNT
    covariance = np.cov(space(points).T)
    np.testing.assert_allclose(covariance, np.eye(3), atol=5 * math.sqrt(2 / COUNT))


def test_what_is_straight_stays_so():
    rng = np.random.default_rng(1)
    factor = np.array([[0.05, 0.0, 0.0], [0.02, 0.01, 0.0], [-0.01, 0.03, 0.04]])
    points = 0.5 + rng.normal(size=(COUNT, 3)) @ factor.T
    space = straightening.of_points(points, EVEN)
    # Of products of standard normals the coefficients are zero, with standard errors of 1/sqrt(n) at most.
    for rank, bend in enumerate(space.bends):
        assert np.abs(bend[1 + rank :]).max(initial=0.0) < 5 / math.sqrt(COUNT)


def test_weights_stand_for_draws():
    points, _ = banana()
    weights = np.random.default_rng(2).integers(0, 4, size=COUNT).astype(float)
    repeated = np.repeat(points, weights.astype(int), axis=0)
    once = straightening.of_points(points, weights / weights.sum())
    drawn = straightening.of_points(repeated, np.full(len(repeated), 1 / len(repeated)))
    # They differ by the ridge, which counts effective draws: coefficients shrink by 16 / ESS, here 0.006.
    np.testing.assert_allclose(once(points), drawn(points), atol=2 * 0.006 * np.abs(drawn(points)).max())


def test_the_order_is_the_best_of_all():
    """By trying all 24 of four coordinates in which three bends are hidden."""
    rng = np.random.default_rng(3)
    normal = rng.normal(size=(COUNT, 4))
    bent = normal.copy()
    bent[:, 1] += 0.5 * normal[:, 3] ** 2
    bent[:, 0] += 0.4 * bent[:, 1] * normal[:, 3]
    bent[:, 2] += 0.3 * bent[:, 0] ** 2

    def left(order):
        total = 0.0
        for rank, place in enumerate(order):
            before = bent[:, order[:rank]]
            products = [before[:, i] * before[:, j] for i in range(rank) for j in range(i, rank)]
            design = np.column_stack([np.ones(COUNT), before, *products])
            found = np.linalg.lstsq(design, bent[:, place], rcond=None)[0]
            total += math.log(np.var(bent[:, place] - design @ found))
        return total

    best = min(left(list(order)) for order in itertools.permutations(range(4)))
    assert left(best_order(bent, EVEN)) == pytest.approx(best, abs=1e-4)


def test_one_coordinate_and_another_scale():
    points = np.random.default_rng(4).normal(0.3, 0.05, size=(COUNT, 1))
    space = straightening.of_points(points, EVEN)
    np.testing.assert_allclose(space(points), (points - points.mean()) / points.std(), atol=1e-4)
    points, _ = banana()
    space = straightening.of_points(points, EVEN)
    np.testing.assert_allclose(space.scaled(3.0)(points), space(points) / 3, rtol=1e-12)


def test_points_come_back_and_volumes_are_known():
    points, _ = banana()
    space = straightening.of_points(points, EVEN)
    np.testing.assert_allclose(space.inverse(space(points)), points, atol=1e-10)
    # The slope is that of a small cube, anywhere.
    step = 1e-6
    for point in points[:5]:
        corners = space(point + step * np.concatenate([np.zeros((1, 3)), np.eye(3)]))
        volume = np.linalg.det((corners[1:] - corners[0]) / step)
        assert math.log(abs(volume)) == pytest.approx(space.log_slope, abs=1e-4)


def test_a_spread_has_its_density():
    """Its mass in a box by draws, and by its density at points uniform in the box."""
    points, _ = banana()
    spread = Spread(straightening.of_points(points, EVEN))
    rng = np.random.default_rng(5)
    count = 200_000
    low, high = np.array([0.42, 0.42, 0.4]), np.array([0.58, 0.58, 0.7])
    drawn = spread.draw(rng, count, 3)
    share = np.mean(np.all((drawn > low) & (drawn < high), axis=1))
    density = np.exp(spread.log_density(rng.uniform(low, high, size=(count, 3)))) * np.prod(high - low)
    error = math.hypot(density.std(), math.sqrt(share * (1 - share))) / math.sqrt(count)
    assert share > 0.1
    assert abs(density.mean() - share) < 4 * error
