"""Networks as a surrogate: how well they predict smooth functions, and that refits compile nothing."""

import jax
import numpy as np
import pytest

from qbs.inference.nested.networks import NetworkEnsemble

KEY = jax.random.key(0)
QUICK = NetworkEnsemble(num_members=3, width=32, num_steps=600)


def smooth(points):
    """A wave, a cubic term and a bump: what a quadratic form leaves of a log likelihood."""
    rest = np.sum(points**2, axis=1)
    return 3 * np.sin(points[:, 0]) + 0.5 * points[:, 0] * points[:, 1] ** 2 + 2 * np.exp(-rest / 2)


def drawn(dim, count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim))


def rms(values):
    return float(np.sqrt(np.mean(values**2)))


@pytest.mark.parametrize(
    ("dim", "count", "bar"),
    [
        (3, 120, 0.6),
        pytest.param(2, 120, 0.5, marks=pytest.mark.slow),
        pytest.param(5, 400, 0.6, marks=pytest.mark.slow),
    ],
)
def test_they_predict_a_smooth_function(dim, count, bar):
    points, fresh = drawn(dim, count), drawn(dim, 1000, seed=1)
    networks = QUICK.fit(points, smooth(points), key=KEY)
    errors, spread = networks(fresh)[0] - smooth(fresh), networks(fresh)[1]
    assert networks(fresh)[0].dtype == spread.dtype == np.float64
    assert rms(errors) < bar
    assert bar < 0.25 * smooth(fresh).std()
    # They disagree where they are wrong: on the whole within a factor of five, and more far away.
    assert rms(errors) / 5 < rms(spread) < 5 * rms(errors)
    assert np.median(networks(4 * fresh)[1]) > 2 * np.median(spread)


def test_large_values_are_scaled():
    points = drawn(3, 100)
    plain = QUICK.fit(points, smooth(points), key=KEY)
    large = QUICK.fit(points, 1e6 * smooth(points) - 1e8, key=KEY)
    assert np.allclose((large(points)[0] + 1e8) / 1e6, plain(points)[0], atol=0.05)


def test_refits_compile_once(compile_events):
    points = drawn(3, 120)
    values = smooth(points)
    first = QUICK.fit(points[:100], values[:100], key=KEY)
    first(points[:50])
    with compile_events() as events:
        second = QUICK.fit(points[:113], values[:113], key=jax.random.key(1))
        third = QUICK.fit(points[:128], values[:128], second, key=jax.random.key(2))
        third(points[:60])
    assert events == []


def test_they_go_on_from_an_earlier_fit():
    """A few steps from there are better than from nothing, though new points change the scale."""
    points, fresh = drawn(3, 120), drawn(3, 1000, seed=1)
    values, wanted = smooth(points), smooth(fresh)
    before = QUICK.fit(points[:80], values[:80], key=KEY)
    short = NetworkEnsemble(num_members=3, width=32, num_steps=30)
    cold, warm = (short.fit(points, values, start, key=KEY) for start in (None, before))
    assert rms(warm(fresh)[0] - wanted) < 0.6 * rms(cold(fresh)[0] - wanted)
    # With no step worth taking they are what they were, in the new scale.
    still = NetworkEnsemble(num_members=3, width=32, num_steps=1)
    assert np.allclose(still.fit(points, values, before, key=KEY)(fresh)[0], before(fresh)[0], atol=1e-4)


def test_the_same_key_gives_the_same_networks():
    points = drawn(3, 100)
    first, second = (QUICK.fit(points, smooth(points), key=KEY)(points)[0] for _ in range(2))
    assert np.array_equal(first, second)


def test_few_points_and_constant_values():
    points = drawn(3, 4)
    networks = QUICK.fit(points, np.full(4, 3.0), key=KEY)
    assert np.allclose(networks(points)[0], 3.0, atol=1.0)
    assert networks(points[:0])[0].shape == (0,)


def test_what_cannot_be_learned_is_refused():
    points = drawn(2, 10)
    with pytest.raises(ValueError, match="four points"):
        QUICK.fit(points[:3], np.zeros(3), key=KEY)
    with pytest.raises(ValueError, match="finite"):
        QUICK.fit(points, np.r_[np.zeros(9), -np.inf], key=KEY)
    before = QUICK.fit(points, np.zeros(10), key=KEY)
    with pytest.raises(ValueError, match="before has"):
        QUICK.fit(drawn(3, 10), np.zeros(10), before, key=KEY)
    for settings in ({"num_members": 0}, {"activation": "step"}, {"held_out": 1.5}, {"learning_rate": -1.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            NetworkEnsemble(**settings)
