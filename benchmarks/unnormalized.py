"""Compare ways to fit models known up to a constant, where the truth is known.

All methods have the same model, start, batch, steps, optimizer and noise; a row is a method on a problem: its
error over the seeds, median and worst, the median over that of noise-contrastive estimation, CPU seconds of a
fit without compiling over those of the same, and in how many runs the result said that it cannot be trusted.

* `mean R`: the mean of a Gaussian at distance R from where the parameters start, noise fitted to the data;
  absolute error. `far R`: the same with noise N(0, 1), which may follow the model.
* `wells d`: a density of two wells in each of d dimensions; gap of the log likelihood, for each dimension.
* `spins J`: the Ising model on a torus of four by four with coupling J; gap of the log likelihood.

    taskset -c 0 python benchmarks/unnormalized.py [--problems "mean 8,wells 10"] [--seeds 5]
"""

import argparse
import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import qbs
from qbs.inference.unnormalized import (
    Compositional,
    GaussianNoise,
    ImportanceLikelihood,
    NoiseContrastive,
    ScoreMatching,
)


class Problem(NamedTuple):
    """A problem.

    Attributes:
        log_density: Of parameters and a row.
        start: The parameters to start at.
        draw: Data of a seed.
        error: Of parameters, given the data.
        settings: Of all methods.
        noise: As `fit_unnormalized` takes it.
        is_smooth: Whether score matching makes sense.
    """

    log_density: Callable
    start: Any
    draw: Callable[[int], np.ndarray]
    error: Callable[[Any, np.ndarray], float]
    settings: dict[str, Any]
    noise: Any = None
    is_smooth: bool = True


def tilted(mean: Any, x: Any) -> Any:
    return jnp.vdot(mean, x) - 0.5 * jnp.vdot(x, x)


def gaussian_mean(distance: float, *, is_far: bool) -> Problem:
    def draw(seed: int) -> np.ndarray:
        return distance + np.random.default_rng(seed).normal(size=(100_000, 1))

    return Problem(
        tilted,
        jnp.zeros(1),
        draw,
        lambda params, data: abs(float(params[0]) - data.mean()),
        {"num_steps": 2000, "batch_size": 128, "learning_rate": 0.05},
        GaussianNoise(jnp.zeros(1), jnp.eye(1), (1,)) if is_far else None,
    )


GRID = np.linspace(-5, 5, 4001)
TILT, CURVE, QUARTIC = 0.2, 1.2, 0.3


def wells(params: Any, x: Any) -> Any:
    tilt, curve, log_quartic = params
    return jnp.sum(tilt * x + curve * x**2 - jnp.exp(log_quartic) * x**4)


def log_densities_on_grid(tilt: Any, curve: Any, quartic: Any) -> np.ndarray:
    values = tilt * GRID + curve * GRID**2 - quartic * GRID**4
    return values - (np.log(np.trapezoid(np.exp(values - values.max()), GRID)) + values.max())


def double_well(dim: int) -> Problem:
    truth = log_densities_on_grid(TILT, CURVE, QUARTIC)
    shares = np.cumsum(np.exp(truth))

    def draw(seed: int) -> np.ndarray:
        uniform = np.random.default_rng(seed).uniform(size=(50_000, dim))
        return np.interp(uniform, shares / shares[-1], GRID)

    def gap(params: Any, _data: np.ndarray) -> float:
        rows = zip(*(np.asarray(part, float) for part in params), strict=True)
        found = [log_densities_on_grid(tilt, curve, math.exp(quartic)) for tilt, curve, quartic in rows]
        return float(np.mean([np.trapezoid(np.exp(truth) * (truth - own), GRID) for own in found]))

    start = jnp.zeros(dim), jnp.zeros(dim), jnp.full(dim, math.log(0.1))
    settings = {"num_steps": 3000, "batch_size": 128, "learning_rate": 0.03, "num_noise": 1024}
    return Problem(wells, start, draw, gap, settings)


STATES = np.array(list(itertools.product([0, 1], repeat=16)))


def spins(coupling: Any, x: Any) -> Any:
    grid = 2 * jnp.reshape(x, (4, 4)) - 1
    return jnp.sum(grid * (coupling[0] * jnp.roll(grid, 1, 0) + coupling[1] * jnp.roll(grid, 1, 1)))


def ising(coupling: float) -> Problem:
    """Return a coupling for each of the 32 pairs of neighbours, all the same in truth."""
    truth = jnp.full((2, 4, 4), coupling)
    all_of = jax.jit(lambda params: jax.vmap(lambda x: spins(params, x))(jnp.asarray(STATES)))

    def log_shares(params: Any) -> np.ndarray:
        values = np.asarray(all_of(params), float)
        return values - (np.log(np.sum(np.exp(values - values.max()))) + values.max())

    known = log_shares(truth)
    shares = np.exp(known) / np.exp(known).sum()

    def draw(seed: int) -> np.ndarray:
        return STATES[np.random.default_rng(seed).choice(len(STATES), size=50_000, p=shares)]

    settings = {"num_steps": 3000, "batch_size": 128, "learning_rate": 0.01, "num_noise": 1024}

    def gap(params: Any, _data: np.ndarray) -> float:
        return float(shares @ (known - log_shares(params)))

    return Problem(spins, jnp.zeros((2, 4, 4)), draw, gap, settings, is_smooth=False)


PROBLEMS: dict[str, Callable[..., Problem]] = (
    {f"mean {r}": lambda r=r: gaussian_mean(float(r), is_far=False) for r in (1, 4, 8, 16)}
    | {f"far {r}": lambda r=r: gaussian_mean(float(r), is_far=True) for r in (2, 4, 6, 8)}
    | {f"wells {dim}": lambda dim=dim: double_well(dim) for dim in (5, 10, 20)}
    | {f"spins {j:g}": lambda j=j: ising(j) for j in (0.15, 0.30, 0.45)}
)
METHODS: dict[str, Callable[..., Any]] = {
    "NCE": NoiseContrastive,
    "eNCE": lambda **settings: NoiseContrastive(loss="exponential", **settings),
    "importance": lambda **settings: ImportanceLikelihood(adapt_noise=False, **settings),
    "MECO as published": lambda **settings: Compositional(rate=0.1, adapt_noise=False, **settings),
    "MECO, noise kept": lambda **settings: Compositional(adapt_noise=False, **settings),
    "MECO": Compositional,
    "score matching": lambda num_noise=None, **settings: ScoreMatching(**settings),  # noqa: ARG005
}


def rows(name: str, seeds: int) -> None:
    problem, base = PROBLEMS[name](), None
    for label, make in METHODS.items():
        if label == "score matching" and not problem.is_smooth:
            continue
        method, errors, seconds, flagged = make(**problem.settings), [], [], 0
        for seed in range(seeds):
            data, start = problem.draw(seed), time.process_time()
            fit = qbs.fit_unnormalized(
                problem.log_density,
                problem.start,
                data,
                method=method,
                noise=problem.noise,
                key=jax.random.key(seed),
                progress=False,
            )
            seconds.append(time.process_time() - start)
            errors.append(problem.error(fit.params, data))
            flagged += not fit.converged
        middle, took = statistics.median(errors), min(seconds)
        base = base or (middle, took)
        print(
            f"| {name} | {label} | {middle:.2g} | {max(errors):.2g} | {middle / base[0]:.2g} | "
            f"{took / base[1]:.2f} | {flagged} of {seeds} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("qbs-jax", "jax", "optax"))
    print(f"{packages}; Python {platform.python_version()}, {platform.machine()}, {jax.default_backend()}\n")
    print("| problem | method | error, median | worst | over NCE's | CPU s over NCE's | flagged |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in given.problems.split(","):
        rows(name.strip(), given.seeds)


if __name__ == "__main__":
    main()
