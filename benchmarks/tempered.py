"""Compare `smc.Tempered()` with BlackJAX's adaptive tempered SMC: evidence errors, and CPU time of a run.

Both run in one process, in turns, on the models of `benchmarks/evidence_models.py`, with the same numbers of
particles, from draws from the prior, by temperatures that leave half of the effective sample size. qbs runs
at its defaults. BlackJAX has no default for the moves; it is given two, each tuned as its documentation
shows, by `inner_kernel_tuning` from the particles at each temperature, and run as long as its own default of
`num_mcmc_steps`, 10, or a multiple of that says:

* HMC of 8 leapfrog steps, as in a trajectory of qbs, in the covariance of the particles, with a step size
  that `update_scale_from_acceptance_rate` steers to an acceptance of 0.65, ten times;
* a random walk in the covariance of the particles times 2.38^2 / dim, so many times as the dimension asks
  for: ten times it, and ten at least.

Where both moves are right, the cheaper counts. It is right where the mean over seeds is within 0.15 nats of
the truth, or four of its standard errors. Both run in float64, as evidences of qbs always do; `--float32`
lets BlackJAX do with less. Its densities are those that qbs reads off the model.

CPU time is that of the whole process for a run with a new seed. qbs reads the NumPyro model in every run;
BlackJAX is given the density that was read before its first. Reading is timed on its own, shown apart, and
taken off the runs of qbs. The first run's excess over the others is compiling, with no cache on disk.
Evaluations are of the likelihood, a gradient counting as one.

    pip install blackjax
    python benchmarks/tempered.py [--models line,mixture] [--seeds 5] [--float32]
"""

import argparse
import platform
import statistics
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc.random_walk import build_additive_step, normal
from blackjax.smc.base import extend_params
from blackjax.smc.resampling import systematic
from blackjax.smc.tuning.from_kernel_info import update_scale_from_acceptance_rate
from blackjax.smc.tuning.from_particles import particles_covariance_matrix
from clock import kind, now
from evidence_models import Known, known
from jax.flatten_util import ravel_pytree

import qbs
from qbs.inference.problem import pose
from qbs.inference.smc import Tempered
from qbs.inference.smc.apart import parts
from qbs.inference.smc.journey import draw_sites

NUM_LEAPS, NUM_STEPS, ACCEPTANCE = 8, 10, 0.65
MAX_ERROR, MAX_RATIO = 0.15, 2.0
READING = "reading"


class Found(NamedTuple):
    """What a run gave.

    Attributes:
        log_evidence: In nats.
        num_evaluations: Of the likelihood.
        num_problems: Sentences of a result about itself.
    """

    log_evidence: float
    num_evaluations: int
    num_problems: int = 0


Run = Callable[[int], Found]


def with_qbs(case: Known) -> Run:
    def run(seed: int) -> Found:
        fit = qbs.fit(case.model, *case.data, method=Tempered(), key=jax.random.key(seed), progress=False)
        return Found(fit.log_evidence, fit.num_likelihood_calls, len(fit.problems))

    return run


class Moves(NamedTuple):
    """Moves of BlackJAX.

    Attributes:
        init: Starts a chain at a position.
        step: Makes a step.
        first: Returns settings from particles.
        tuned: Returns the settings that come after others, particles, and what the moves told.
        num_steps: How many steps to make at a temperature.
        num_evaluations: Evaluations in a step.
    """

    init: Callable
    step: Callable
    first: Callable
    tuned: Callable
    num_steps: int
    num_evaluations: int


def hmc(dim: int) -> Moves:
    def first(particles: Any) -> Any:
        covariance = jnp.atleast_2d(particles_covariance_matrix(particles))
        return extend_params({"step_size": 1.2 * dim**-0.25, "inverse_mass_matrix": covariance})

    def tuned(settings: Any, particles: Any, info: Any) -> Any:
        rates = jnp.mean(info.update_info.acceptance_rate)[None]
        size = update_scale_from_acceptance_rate(settings["step_size"], rates, ACCEPTANCE)
        return {**first(particles), "step_size": size}

    step = partial(blackjax.hmc.build_kernel(), num_integration_steps=NUM_LEAPS)
    return Moves(blackjax.hmc.init, step, first, tuned, NUM_STEPS, NUM_LEAPS)


def random_walk(dim: int) -> Moves:
    step = build_additive_step()

    def walk(key: Any, state: Any, log_density: Any, root: Any) -> Any:
        return step(key, state, log_density, normal(root))

    def first(particles: Any) -> Any:
        covariance = jnp.atleast_2d(particles_covariance_matrix(particles))
        floor = 1e-6 * jnp.diag(jnp.diagonal(covariance))
        return extend_params({"root": 2.38 * dim**-0.5 * jnp.linalg.cholesky(covariance + floor)})

    def tuned(_settings: Any, particles: Any, _info: Any) -> Any:
        return first(particles)

    return Moves(blackjax.rmh.init, walk, first, tuned, NUM_STEPS * dim, 1)


def with_blackjax(case: Known, make: Callable[[int], Moves]) -> Run:
    bound = pose(case.model, case.data).bound
    num_particles = Tempered().num_particles
    shapes = jax.eval_shape(partial(draw_sites, bound), jax.random.key(0))
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    flat, unravel = ravel_pytree(start)
    moves = make(flat.size)

    @jax.jit
    def sample(key: Any, bound: Any) -> tuple[Any, Any]:
        def log_prior(point: Any) -> Any:
            return parts(bound, unravel(point)).log_prior

        def log_likelihood(point: Any) -> Any:
            return parts(bound, unravel(point)).portions[0]

        draw_key, key = jax.random.split(key)
        keys = jax.random.split(draw_key, num_particles)
        particles = jax.vmap(lambda key: ravel_pytree(draw_sites(bound, key))[0])(keys)

        def turn(carry: Any) -> Any:
            key, state, settings, total, count = carry
            step_key, key = jax.random.split(key)
            algorithm = blackjax.inner_kernel_tuning(
                blackjax.adaptive_tempered_smc,
                log_prior,
                log_likelihood,
                moves.step,
                moves.init,
                systematic,
                mcmc_parameter_update_fn=lambda _, state, info: moves.tuned(settings, state.particles, info),
                initial_parameter_value=settings,
                target_ess=0.5,
                num_mcmc_steps=moves.num_steps,
            )
            whole = blackjax.smc.inner_kernel_tuning.StateWithParameterOverride(state, settings)
            new, info = algorithm.step(step_key, whole)
            total = total + info.log_likelihood_increment
            return key, new.sampler_state, new.parameter_override, total, count + 1

        state = blackjax.smc.tempered.init(particles)
        state = state._replace(tempering_param=jnp.zeros(()))
        carry = key, state, moves.first(particles), jnp.zeros(()), jnp.zeros((), int)
        *_, total, count = jax.lax.while_loop(lambda carry: carry[1].tempering_param < 1, turn, carry)
        return total, count

    # At a temperature: its choice, the start of the chains, their steps, and the weights.
    each = num_particles * (moves.num_steps * moves.num_evaluations + 3)

    def run(seed: int) -> Found:
        total, count = sample(jax.random.key(seed), bound)
        return Found(float(total), int(count) * each)

    return run


WAYS: dict[str, Callable[[Known], Run]] = {
    "qbs": with_qbs,
    "HMC": partial(with_blackjax, make=hmc),
    "walk": partial(with_blackjax, make=random_walk),
}


class Figures(NamedTuple):
    """What is said of a way on a model.

    Attributes:
        error: Mean log evidence less the truth, in nats.
        deviation: Its standard error.
        cpu: CPU seconds of a run, without reading the model.
        reading: CPU seconds.
        compiling: CPU seconds.
        num_evaluations: Of the likelihood, in millions.
        num_problems: How many runs told of a problem.
    """

    error: float
    deviation: float
    cpu: float
    reading: float
    compiling: float
    num_evaluations: float
    num_problems: int

    @property
    def is_right(self) -> bool:
        """Whether the evidence is."""
        return abs(self.error) <= max(MAX_ERROR, 4 * self.deviation)


def compare(case: Known, num_seeds: int, *, is_double: bool) -> dict[str, Figures]:
    """Run all ways in turns; the first turn compiles, and its evidence counts for nothing."""
    spent: dict[str, list[float]] = {name: [] for name in (*WAYS, READING)}
    found: dict[str, list[Found]] = {name: [] for name in WAYS}
    runs: dict[str, Run] = {}
    for seed in (num_seeds, *range(num_seeds)):
        start = now()
        with jax.enable_x64(True):
            pose(case.model, case.data)
        spent[READING].append(now() - start)
        for name, prepare in WAYS.items():
            start = now()
            with jax.enable_x64(is_double):
                if name not in runs:
                    runs[name] = prepare(case)
                found[name].append(runs[name](seed))
            spent[name].append(now() - start)
    truth, figures = case.truth(), {}
    reading = statistics.median(spent[READING][1:])
    for name in WAYS:
        evidences = np.array([run.log_evidence for run in found[name][1:]]) - truth
        whole = statistics.median(spent[name][1:])
        cpu = whole - (reading if name == "qbs" else 0.0)
        figures[name] = Figures(
            float(evidences.mean()),
            float(evidences.std(ddof=1) / num_seeds**0.5),
            cpu,
            reading if name == "qbs" else 0.0,
            max(spent[name][0] - whole, 0.0),
            statistics.fmean(run.num_evaluations for run in found[name][1:]) / 1e6,
            sum(run.num_problems > 0 for run in found[name][1:]),
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(known()), help="names, with commas (default all)")
    parser.add_argument("--seeds", type=int, default=5, help="timed runs of each, 2 or more (default 5)")
    parser.add_argument("--float32", action="store_true", help="for BlackJAX, with qbs in float64")
    settings = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # noqa: FBT003
    packages = ", ".join(f"{name} {version(name)}" for name in ("qbs-jax", "jax", "numpyro", "blackjax"))
    print(f"{platform.machine()}, {jax.default_backend()}, Python {platform.python_version()}, {packages}")
    print(f"{Tempered().num_particles} particles, {settings.seeds} timed runs; ratio: qbs / the cheaper of")
    print("BlackJAX's two that is right; * marks a wrong evidence, ! a qbs run that tells of a problem")
    print(f"BlackJAX in {'float32' if settings.float32 else 'float64'}\n")
    spent = f"{f'{kind()} s':^40}{f'compiling, {kind()} s':^18}"
    print(f"{'':22}{'log Z - truth (standard error), nats':^48}{spent}", end="")
    print(f"{'evaluations, 10^6':^21}")
    heads = [f"{name:>16}" for name in WAYS] + [f"{name:>8}" for name in (*WAYS, "ratio", READING)]
    heads += [f"{name:>6}" for name in WAYS] + [f"{name:>7}" for name in WAYS]
    print(f"{'model':22}" + "".join(heads), flush=True)
    ratios = []
    for name in settings.models.split(","):
        figures = compare(known()[name], settings.seeds, is_double=not settings.float32)
        rivals = [way.cpu for key, way in figures.items() if key != "qbs" and way.is_right]
        row = []
        for way in figures.values():
            mark = "" if way.is_right else "*"
            mark += "!" * (way.num_problems > 0)
            row.append(f"{f'{way.error:.3f} ({way.deviation:.3f}){mark}':>16}")
        row += [f"{way.cpu:8.2f}" for way in figures.values()]
        row.append(f"{figures['qbs'].cpu / min(rivals):8.2f}" if rivals else f"{'-':>8}")
        row.append(f"{figures['qbs'].reading:8.2f}")
        row += [f"{way.compiling:6.1f}" for way in figures.values()]
        row += [f"{way.num_evaluations:7.2f}" for way in figures.values()]
        print(f"{name:22}" + "".join(row), flush=True)
        ratios += [figures["qbs"].cpu / min(rivals)] if rivals else []
    if ratios:
        print(f"\nlargest ratio {max(ratios):.2f} (bar {MAX_RATIO})")


if __name__ == "__main__":
    main()
