"""How far off the time left is that a run shows, at half of its time.

Each method fits a model for some tens of seconds while a plain line of progress is written every second. At
true half time, (elapsed + ETA) / total should be 1. Time is CPU time of the process, so that others on the
machine do not count; a compilation at the start is part of it.

```sh
python benchmarks/progress.py            # all methods
python benchmarks/progress.py NUTS SMC2  # some
```
"""

import io
import re
import sys
import time
from contextlib import redirect_stderr
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax

import qbs
from qbs.inference import mcmc, method, nested, progress, smc

CPU_TIME = SimpleNamespace(monotonic=time.process_time, perf_counter=time.process_time)


def logistic(x, y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0).expand([x.shape[1]]))
    numpyro.sample("y", dist.Bernoulli(logits=scale * (x @ slopes)), obs=y)


def in_order(x, y):
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0).expand([x.shape[1]]))

    def step(carry, now):
        numpyro.sample("y", dist.Normal(now[0] @ slopes, 1.0), obs=now[1])
        return carry, None

    lax.scan(step, 0.0, (x, y))


def gaussian(center):
    x = numpyro.sample("x", dist.Uniform(-10.0, 10.0).expand(center.shape))
    numpyro.factor("likelihood", -0.5 * jnp.sum((x - center) ** 2) - 0.2 * jnp.sum((x[1:] - x[:-1]) ** 2))


def coefficient(ys):
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(phi * x, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    lax.scan(step, 0.0, ys)


RNG = np.random.default_rng(0)
X = RNG.normal(size=(3000, 20))
BINARY = (X @ np.linspace(-1, 1, 20) + RNG.logistic(size=3000) > 0).astype(int)
LINEAR = X @ np.linspace(-1, 1, 20) + RNG.normal(size=3000)
YS = np.sin(np.arange(100.0))

RUNS = {
    "NUTS": (logistic, (X, BINARY), mcmc.NUTS()),
    "NUTS, long": (logistic, (X[:300], BINARY[:300]), mcmc.NUTS(num_warmup=500, num_draws=5000)),
    "Chains": (
        logistic,
        (X[:300], BINARY[:300]),
        mcmc.Chains(mcmc.Slice(num_warmup=500), num_warmup=500, num_draws=1000),
    ),
    "Tempered": (logistic, (X[:1000], BINARY[:1000]), smc.Tempered(num_particles=512)),
    "ResampleMove": (in_order, (X[:200, :8], LINEAR[:200]), smc.ResampleMove(num_particles=512)),
    "PMMH": (coefficient, (YS,), smc.PMMH(num_particles=100)),
    "ParticleGibbs": (coefficient, (YS,), smc.ParticleGibbs()),
    "ParticleFilter": (coefficient, (YS,), smc.ParticleFilter(num_particles=50_000, num_islands=32)),
    "SMC2": (coefficient, (YS[:30],), smc.SMC2(num_particles=50, num_inner=50, num_islands=16)),
    "SMC2, long": (coefficient, (YS,), smc.SMC2(num_particles=1200, num_inner=1200, num_islands=16)),
    "Dynesty": (gaussian, (np.linspace(-2, 2, 6),), nested.Dynesty()),
}


def record(model, data, chosen):
    """Return the total time, and pairs of time and the time left shown then."""
    text, marks = _Marked(), []
    text.marks = marks
    start = time.process_time()
    with redirect_stderr(text):
        qbs.fit(model, *data, method=chosen, key=jax.random.key(0), progress=True)
    return time.process_time() - start, [(at - start, eta) for at, eta in marks]


class _Marked(io.StringIO):
    """Notes the time of each line, and the ETA in it."""

    marks: list

    def write(self, text):
        if found := re.search(r"ETA ([\d:]+)$", text.rstrip()):
            seconds = 0
            for part in found[1].split(":"):
                seconds = 60 * seconds + int(part)
            self.marks.append((time.process_time(), seconds))
        return super().write(text)


def main():
    for module in (progress, method):
        module.time = CPU_TIME
    progress._PLAIN_INTERVAL = 0.5
    for name in sys.argv[1:] or RUNS:
        total, shown = record(*RUNS[name])
        quarters = []
        for share in (0.25, 0.5, 0.75):
            before = [mark for mark in shown if mark[0] <= share * total]
            quarters.append((before[-1][0] + before[-1][1]) / total if before else float("nan"))
        print(
            f"{name:16s} {total:6.1f} s; (elapsed + ETA) / total at 1/4, 1/2, 3/4:",
            *(f"{q:.2f}" for q in quarters),
            flush=True,
        )


if __name__ == "__main__":
    main()
