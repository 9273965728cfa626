"""What all methods share: the pacing of long loops and the checks of settings."""

import inspect
import math

import equinox as eqx
import jax
import numpy as np
import pytest

from qbs.inference import method as module
from qbs.inference.mcmc import NUTS
from qbs.inference.method import Method, Pacer, require_positive
from qbs.inference.nested import Dynesty


class _Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def _pace(clock, seconds_per_step, total, *, capacity=100, compile_seconds=0.0, seconds=0.5):
    """Return the lengths of the blocks that a loop of known speed is cut into."""
    pacer, lengths, done = Pacer(capacity, seconds), [], 0
    while done < total:
        length = pacer.next_length(total - done)
        clock.now += seconds_per_step * length + (compile_seconds if not lengths else 0)
        pacer.finish()
        lengths.append(length)
        done += length
    return lengths


def test_fast_steps_fill_the_capacity(clock):
    lengths = _pace(clock, 1e-6, 1000)
    assert lengths[:5] == [1, 4, 16, 64, 100]
    assert set(lengths[4:-1]) == {100}
    assert sum(lengths) == 1000


def test_slow_steps_come_one_by_one(clock):
    assert _pace(clock, 2.0, 5) == [1] * 5


def test_blocks_last_about_the_time_asked(clock):
    lengths = _pace(clock, 0.05, 200)
    assert lengths[:2] == [1, 4]
    assert set(lengths[2:-1]) == {10}
    assert set(_pace(clock, 0.05, 400, seconds=2.0)[4:-1]) == {40}


def test_compilation_does_not_slow_the_rest(clock):
    lengths = _pace(clock, 1e-4, 1000, compile_seconds=60.0)
    assert lengths[:6] == [1, 1, 4, 16, 64, 100]


def test_no_block_passes_the_end(clock):
    for total in (1, 2, 5, 99, 100, 101):
        lengths = _pace(clock, 1e-6, total)
        assert sum(lengths) == total
        assert min(lengths) >= 1


def test_a_clock_that_stands_still(clock):
    assert sum(_pace(clock, 0.0, 500)) == 500


def test_a_step_that_becomes_slow_shortens_the_blocks(clock):
    pacer = Pacer(100)
    for _ in range(6):
        length = pacer.next_length(10_000)
        clock.now += 1e-6 * length
        pacer.finish()
    assert length == 100
    pacer.next_length(10_000)
    clock.now += 1.0 * length
    pacer.finish()
    assert pacer.next_length(10_000) == 1


class _Settings(Method):
    count: int = eqx.field(static=True, default=1)
    rate: float = 1.0


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", None, True, math.nan, math.inf, np.float64(2)])
def test_whole_numbers(value):
    settings = object.__new__(_Settings)
    object.__setattr__(settings, "count", value)
    with pytest.raises(ValueError, match=r"_Settings: count must be a whole number above 0, not "):
        require_positive(settings, "count", whole=True)


@pytest.mark.parametrize("value", [0, 0.0, -0.5, math.nan, "0.5", None, False, True])
def test_positive_numbers(value):
    settings = object.__new__(_Settings)
    object.__setattr__(settings, "rate", value)
    with pytest.raises(ValueError, match="_Settings: rate must be a number above 0, not "):
        require_positive(settings, "rate")


def test_good_settings_pass():
    require_positive(_Settings(count=3, rate=1e-300), "count", whole=True)
    require_positive(_Settings(count=3, rate=1e-300), "count", "rate")


@pytest.mark.parametrize("kind", [NUTS, Dynesty])
def test_a_method_is_a_frozen_value(kind):
    method = kind()
    assert isinstance(method, Method)
    assert method == kind()
    assert hash(jax.tree.structure(method)) == hash(jax.tree.structure(kind()))
    with pytest.raises(AttributeError):
        method.num_draws = 3
    with pytest.raises(AttributeError):
        method.num_live = 3


def test_the_bare_method_runs_nothing():
    with pytest.raises(NotImplementedError):
        inspect.unwrap(Method.run)(Method(), None, None, None, None)
