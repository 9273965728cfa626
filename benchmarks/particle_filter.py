"""Time a particle filter made by qbs.population beside a scan written by hand and beside `particles`.

The model is a linear-Gaussian state space of 100 steps; all three run the bootstrap filter with systematic
resampling at every step, on one core, in one process, in turns. Prints CPU nanoseconds for each particle and
step, ratios of medians, the seconds that compiling takes, and the distance from Kalman's evidence.

    pip install --no-deps particles numba llvmlite   # the peer asks for NumPy 1 but runs with NumPy 2
    taskset -c 0 python benchmarks/particle_filter.py [--repeats 7]
"""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from clock import kind, now
from jax import lax

import qbs

NUM_STEPS = 100
PERSISTENCE, STATE_SCALE, NOISE_SCALE = 0.9, 1.0, 0.5
OBSERVED = np.sin(np.arange(NUM_STEPS)).astype(np.float32)


def with_scan(ys):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(PERSISTENCE * x, STATE_SCALE))
        numpyro.sample("y", dist.Normal(x, NOISE_SCALE), obs=y)
        return x, None

    return lax.scan(step, 0.0, ys)[0]


def with_loop(ys):
    x = 0.0
    for t in range(len(ys)):
        x = numpyro.sample(f"x{t}", dist.Normal(PERSISTENCE * x, STATE_SCALE))
        numpyro.sample(f"y{t}", dist.Normal(x, NOISE_SCALE), obs=ys[t])
    return x


def by_hand(num_particles: int) -> Callable:
    """Return the filter as a person would write it for this model alone."""

    def systematic(log_weights, offset):
        weights = jnp.exp(log_weights - jnp.max(log_weights))
        with jax.enable_x64(True):
            total = jnp.cumsum(weights.astype(jnp.float64))
            shares = total / total[-1] * num_particles
            below = num_particles - (num_particles + offset.astype(jnp.float64) - shares).astype(jnp.int32)
        starts = jnp.zeros(num_particles, jnp.int32).at[below].add(1, mode="drop")
        return jnp.minimum(jnp.cumsum(starts), num_particles - 1)

    def step(loop, y):
        key, x, log_evidence = loop
        key, move, resample = jax.random.split(key, 3)
        x = PERSISTENCE * x + STATE_SCALE * jax.random.normal(move, (num_particles,))
        z = (y - x) / NOISE_SCALE
        log_weights = -0.5 * z * z - math.log(NOISE_SCALE * math.sqrt(2 * math.pi))
        log_evidence += jax.nn.logsumexp(log_weights) - math.log(num_particles)
        ancestors = systematic(log_weights, jax.random.uniform(resample))
        return (key, x.at[ancestors].get(mode="promise_in_bounds"), log_evidence), None

    def run(key, ys):
        start = (key, jnp.zeros(num_particles), jnp.zeros(()))
        (_, x, log_evidence), _ = lax.scan(step, start, ys)
        return x, log_evidence

    return jax.jit(run)


def peer(num_particles: int) -> Callable:
    """Return the same filter of `particles`."""
    import particles
    from particles import distributions
    from particles.state_space_models import Bootstrap, StateSpaceModel

    class Model(StateSpaceModel):
        def PX0(self):  # noqa: N802 (the peer's names)
            return distributions.Normal(scale=STATE_SCALE)

        def PX(self, t, xp):  # noqa: ARG002, N802
            return distributions.Normal(loc=PERSISTENCE * xp, scale=STATE_SCALE)

        def PY(self, t, xp, x):  # noqa: ARG002, N802
            return distributions.Normal(loc=x, scale=NOISE_SCALE)

    def run():
        filtered = particles.SMC(
            fk=Bootstrap(ssm=Model(), data=OBSERVED), N=num_particles, resampling="systematic", ESSrmin=1.0
        )
        filtered.run()
        return filtered.logLt

    return run


def kalman() -> float:
    mean, variance, total = 0.0, 0.0, 0.0
    for y in OBSERVED.astype(float):
        mean, variance = PERSISTENCE * mean, PERSISTENCE**2 * variance + STATE_SCALE**2
        spread = variance + NOISE_SCALE**2
        total -= 0.5 * ((y - mean) ** 2 / spread + math.log(2 * math.pi * spread))
        gain = variance / spread
        mean, variance = mean + gain * (y - mean), (1 - gain) * variance
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    repeats, sizes = (lambda a: (a.repeats, a.sizes))(parser.parse_args())
    names = ["jax", "numpyro", "numpy"]
    try:
        names.append(f"particles {version('particles')}")
    except PackageNotFoundError:
        print("particles is not installed; its column is left out")
    shown = ", ".join(n if " " in n else f"{n} {version(n)}" for n in names)
    print(f"Python {platform.python_version()}, {shown}, {platform.machine()}, {jax.default_backend()}")
    ys, key, truth = jnp.asarray(OBSERVED), jax.random.key(0), kalman()
    print("\nseconds to trace and compile, 10,000 particles")
    for title, model, num_steps in (
        ("scan of 100", with_scan, 100),
        ("Python loop over 100", with_loop, 100),
        ("Python loop over 500", with_loop, 500),
    ):
        data = jnp.asarray(np.sin(np.arange(num_steps)).astype(np.float32))
        program = qbs.population(qbs.reify(model), 10_000)
        start = time.perf_counter()
        jax.jit(qbs.run(program)).lower(key, data).compile()
        print(f"  {title}: {time.perf_counter() - start:.1f}")
    print(f"\n{kind()} nanoseconds for each particle and step, medians")
    heads = ("qbs", 7), ("by hand", 8), ("ratio", 6), ("peer", 7), ("ratio", 6), ("log Z error", 12)
    print("particles", *(f"{head:>{width}}" for head, width in heads))
    for size in sizes:
        ours, hand = jax.jit(qbs.run(qbs.population(qbs.reify(with_scan), size))), by_hand(size)
        filters: dict[str, Callable] = {"qbs": partial(ours, key, ys), "hand": partial(hand, key, ys)}
        if len(names) == 4:
            filters["peer"] = peer(size)
        error = float(filters["qbs"]().log_weight) - truth
        filters["hand"]()
        spent: dict[str, list[float]] = {name: [] for name in filters}
        inner = max(1, 2 * 10**5 // size)
        for _ in range(repeats):
            for name, run in filters.items():
                start = now()
                for _ in range(inner if name != "peer" else 1):
                    jax.block_until_ready(run())
                spent[name].append((now() - start) / (inner if name != "peer" else 1))
        cost = {name: statistics.median(s) / size / NUM_STEPS * 1e9 for name, s in spent.items()}
        row = f"{size:>9,} {cost['qbs']:>7.1f} {cost['hand']:>8.1f} {cost['qbs'] / cost['hand']:>6.2f}"
        if "peer" in cost:
            row += f" {cost['peer']:>7.1f} {cost['peer'] / cost['qbs']:>6.2f}"
        print(f"{row} {error:>12.4f}", flush=True)


if __name__ == "__main__":
    main()
