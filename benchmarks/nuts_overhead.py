"""Time NUTS through qbs.fit beside NumPyro's own MCMC: CPU seconds per gradient, compilation apart.

Both run the same kernel on the same models with vectorised chains, in one process, alternating, so that
the machine's mood falls on both. Prints the ratio of the medians; 1.00 means that qbs costs nothing.

    python benchmarks/nuts_overhead.py [--repeats 7]
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import infer
from numpyro.contrib.control_flow import scan

import qbs
from qbs.inference.mcmc import NUTS

NUM_CHAINS, NUM_WARMUP, NUM_DRAWS = 4, 1000, 1000


def eight_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        raw = numpyro.sample("raw", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + tau * raw, sigma), obs=y)


def logistic_regression(x, y=None):
    coefficients = numpyro.sample("coefficients", dist.Normal(jnp.zeros(x.shape[1]), 2.0).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ coefficients), obs=y)


def hierarchical_regression(group, x, y=None):
    mean = numpyro.sample("mean", dist.Normal(0, 3))
    spread = numpyro.sample("spread", dist.HalfNormal(2))
    noise = numpyro.sample("noise", dist.HalfNormal(2))
    with numpyro.plate("groups", 20):
        offset = numpyro.sample("offset", dist.Normal(0, 1))
    with numpyro.plate("observations", x.shape[0]):
        numpyro.sample("y", dist.Normal((mean + spread * offset[group]) * x, noise), obs=y)


def autoregression(y):
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    scale = numpyro.sample("scale", dist.HalfNormal(1))

    def step(previous, observed):
        state = numpyro.sample("state", dist.Normal(phi * previous, scale))
        numpyro.sample("y", dist.Normal(state, 0.5), obs=observed)
        return state, None

    scan(step, 0.0, y)


def cases():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 10)).astype(np.float32)
    group, z = np.repeat(np.arange(20), 20), rng.normal(size=400).astype(np.float32)
    sigma = np.array([15.0, 10, 16, 11, 9, 11, 10, 18], np.float32)
    schools = np.array([28.0, 8, -3, 7, -1, 1, 18, 12], np.float32)
    slopes = (1 + 0.5 * rng.normal(size=20))[group]
    yield eight_schools, (sigma, schools)
    yield logistic_regression, (x, (rng.random(1000) < 1 / (1 + np.exp(-x.sum(1)))).astype(np.int32))
    yield hierarchical_regression, (group, z, (slopes * z + 0.5 * rng.normal(size=400)).astype(np.float32))
    yield autoregression, (np.sin(np.arange(40.0)).astype(np.float32),)


def cpu_per_gradient(run: Callable[[int], int], seed: int) -> float:
    """Microseconds of CPU time for each gradient of one run."""
    start = time.process_time()
    num_gradients = run(seed)
    return 1e6 * (time.process_time() - start) / num_gradients


class Peer:
    """NumPyro's MCMC with the settings of ours; warm-up gradients are counted apart, untimed."""

    def __init__(self, model: Callable, data: tuple):
        self._data = data
        self._mcmc = infer.MCMC(
            infer.NUTS(model),
            num_warmup=NUM_WARMUP,
            num_samples=NUM_DRAWS,
            num_chains=NUM_CHAINS,
            chain_method="vectorized",
            progress_bar=False,
            jit_model_args=True,
        )
        self._in_warmup: dict[int, int] = {}

    def prepare(self, seed: int) -> None:
        """Count the gradients of the warm-up that a run with this seed begins with."""
        self._mcmc.post_warmup_state = None
        self._mcmc.warmup(jax.random.key(seed), *self._data, extra_fields=("num_steps",), collect_warmup=True)
        self._in_warmup[seed] = int(self._mcmc.get_extra_fields()["num_steps"].sum())
        self._mcmc.post_warmup_state = None

    def run(self, seed: int) -> int:
        """Warm up and draw; return the number of gradients."""
        self._mcmc.run(jax.random.key(seed), *self._data, extra_fields=("num_steps",))
        return self._in_warmup[seed] + int(self._mcmc.get_extra_fields()["num_steps"].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each program (default 7)")
    repeats = parser.parse_args().repeats
    packages = ", ".join(f"{name} {version(name)}" for name in ("qbs-jax", "jax", "numpyro"))
    print(
        f"{platform.machine()}, {jax.devices()[0].platform}, Python {platform.python_version()}, {packages}"
    )
    print(
        f"{NUM_CHAINS} vectorised chains of {NUM_WARMUP} + {NUM_DRAWS}; medians of {repeats}, us per gradient"
    )
    print(f"{'model':26}{'qbs':>9}{'numpyro':>9}{'ratio':>8}")
    for model, data in cases():
        method = NUTS(num_chains=NUM_CHAINS, num_warmup=NUM_WARMUP, num_draws=NUM_DRAWS)
        peer = Peer(model, data)

        def ours(seed: int, model: Callable = model, data: tuple = data, method: NUTS = method) -> int:
            key = jax.random.key(seed)
            return qbs.fit(model, *data, method=method, key=key, progress=False).num_likelihood_calls

        times = []
        for seed in range(repeats + 1):
            peer.prepare(seed)
            times.append((cpu_per_gradient(ours, seed), cpu_per_gradient(peer.run, seed)))
        del times[0]  # compiled
        mine, other = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{model.__name__:26}{mine:9.2f}{other:9.2f}{mine / other:8.3f}", flush=True)


if __name__ == "__main__":
    main()
