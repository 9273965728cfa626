"""The time left that is shown at half time is right to a fifth.

Time is counted in evaluations of the likelihood, as if they were all that a run costs: then the test does not
depend on the machine. `benchmarks/progress.py` measures the same by the clock.
"""

import io
from contextlib import redirect_stderr
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax

import qbs
from qbs.inference import blocks, mcmc, nested, progress, smc
from qbs.inference.nested import dynesty
from qbs.inference.smc.journey import Journey

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 8))
BINARY = (X @ np.linspace(-1, 1, 8) + RNG.logistic(size=100) > 0).astype(int)
LINEAR = X @ np.linspace(-1, 1, 8) + RNG.normal(size=100)


def logistic(x, y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0).expand([x.shape[1]]))
    numpyro.sample("y", dist.Bernoulli(logits=scale * (x @ slopes)), obs=y)


def sharp(x, y):
    """A posterior far narrower than its prior: many stages."""
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 30.0).expand([x.shape[1]]))
    numpyro.sample("y", dist.Normal(x @ slopes, 0.1), obs=y)


def in_order(x, y):
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0).expand([x.shape[1]]))

    def step(carry, now):
        numpyro.sample("y", dist.Normal(now[0] @ slopes, 1.0), obs=now[1])
        return carry, None

    lax.scan(step, 0.0, (x, y))


def gaussian(center):
    x = numpyro.sample("x", dist.Uniform(-10.0, 10.0).expand(center.shape))
    numpyro.factor("likelihood", -0.5 * jnp.sum((x - center) ** 2) - 0.2 * jnp.sum((x[1:] - x[:-1]) ** 2))


RUNS = {
    "NUTS": (logistic, (X, BINARY), mcmc.NUTS(num_warmup=400, num_draws=400)),
    "Chains": (logistic, (X, BINARY), mcmc.Chains(mcmc.Slice(num_warmup=200), num_warmup=200, num_draws=400)),
    "Dynesty": (gaussian, (np.linspace(-2, 2, 5),), nested.Dynesty(num_live=150)),
    "Tempered": (sharp, (X, LINEAR), smc.Tempered(num_particles=256)),
    "ResampleMove": (in_order, (X[:, :5], LINEAR), smc.ResampleMove(num_particles=128)),
}


@pytest.fixture
def shown(monkeypatch):
    """A list of what is shown, as pairs of time and time left, by a clock that counts evaluations."""
    clock, found = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def counting(owner, name, count):
        """Set the clock before or after a function that knows how many evaluations there were."""
        old = getattr(owner, name)

        def new(*args, **settings):
            before = count(args[0])
            clock.now = clock.now if before is None else float(before)
            result = old(*args, **settings)
            after = count(result)
            clock.now = clock.now if after is None else float(after)
            return result

        monkeypatch.setattr(owner, name, new)

    def of_run(run):
        counts = getattr(run, "counts", {})
        return counts.get("gradients", counts.get("evaluations"))

    counting(blocks.Run, "after", of_run)
    counting(Journey, "next", lambda here: getattr(here, "num_calls", None))
    counting(
        dynesty._Reporter,
        "__call__",
        lambda reporter: getattr(getattr(reporter, "_cube", None), "num_calls", None),
    )
    monkeypatch.setattr(blocks, "Pacer", _TenSteps)
    monkeypatch.setattr(progress.ProgressLine, "is_due", property(lambda _: True))
    monkeypatch.setattr(
        progress.ProgressLine,
        "update",
        lambda _self, _status, _fraction, left: found.append((clock.now, left)),
    )
    return clock, found


class _TenSteps:
    def __init__(self, capacity):
        del capacity

    def next_length(self, remaining):
        return min(10, remaining)

    def finish(self):
        pass


@pytest.mark.parametrize("name", RUNS)
def test_half_time(name, shown, key):
    clock, found = shown
    model, data, method = RUNS[name]
    with redirect_stderr(io.StringIO()):
        qbs.fit(model, *data, method=method, key=key, progress=True)
    at, left = [mark for mark in found if mark[0] <= clock.now / 2][-1]
    assert (at + left) / clock.now == pytest.approx(1, abs=0.2)
