"""Compare NUTS of qbs with NumPyro's and BlackJAX's: effective draws and CPU time per gradient, compiling.

All run in one process, in turns, on the models of `benchmarks/sampling_models.py`, with the same numbers of
chains, steps of warm-up and draws, in float32. A gradient is a leapfrog step of a chain, of warm-up or after
it; those that vectorised chains make while they wait for each other are paid for and not counted. Effective
draws are the smallest effective sample size in bulk of all parameters, the median of the runs: now and then a
chain of the horseshoe is caught at a point of its prior, with any sampler. CPU time is that of the whole
process for a call with a new seed; the first call's excess over it is compiling, with no cache on disk.
NumPyro's kernel runs in one compiled loop too, since its `MCMC` compiles anew in each call; its search for a
start is not counted. Its chains run vectorised and one after the other; the faster counts.

    pip install blackjax
    python benchmarks/nuts.py [--models eight_schools,radon] [--seeds 3] [--draws 1000]
"""

import argparse
import math
import platform
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.base import array_stats
from blackjax.adaptation.base import get_filter_adapt_info_fn
from clock import kind, now
from numpyro import infer
from numpyro.infer.hmc import HMCState
from numpyro.infer.util import initialize_model
from sampling_models import Case, cases

import qbs
from qbs.inference.mcmc import NUTS

NUM_CHAINS = 4
MIN_EFFECTIVE, MAX_CPU, MAX_COMPILE = 0.9, 1.0, 8.0


class Drawn(NamedTuple):
    """What a run gave.

    Attributes:
        samples: Draws by site, with leading axes chain and draw.
        num_gradients: Of the whole run.
        seconds: CPU time of a gradient; by default that of the whole call.
    """

    samples: dict[str, np.ndarray]
    num_gradients: int
    seconds: float | None = None


Run = Callable[[int], Drawn]


def with_qbs(case: Case, num_draws: int) -> Run:
    method = NUTS(num_chains=NUM_CHAINS, num_warmup=num_draws, num_draws=num_draws)

    def run(seed: int) -> Drawn:
        found = qbs.fit(case.model, *case.data, method=method, key=jax.random.key(seed), progress=False)
        return Drawn(dict(found.samples), found.num_likelihood_calls)

    return run


class CountingNUTS(infer.NUTS):
    """NumPyro's kernel, which adds up its steps in a field that it does not use."""

    def init(self, *args: Any, **kwargs: Any) -> HMCState:  # noqa: D102
        state = super().init(*args, **kwargs)
        return state._replace(trajectory_length=jnp.zeros_like(state.num_steps))

    def sample(self, state: HMCState, *args: Any) -> HMCState:  # noqa: D102
        new = super().sample(state, *args)
        return new._replace(trajectory_length=state.trajectory_length + new.num_steps)


def with_numpyro(case: Case, num_draws: int, *, is_vectorised: bool) -> Run:
    kernel = CountingNUTS(case.model)

    def run_chains(state: HMCState, data: tuple) -> tuple[Any, Any]:
        def turn(state: HMCState, _: None) -> tuple[HMCState, Any]:
            state = kernel.sample(state, data, {})
            return state, state.z

        state, positions = jax.lax.scan(turn, state, None, length=2 * num_draws)
        positions = jax.tree.map(lambda leaf: leaf[num_draws:], positions)
        constrain = jax.vmap(kernel.postprocess_fn(data, {}))
        return (jax.vmap(constrain) if is_vectorised else constrain)(positions), state.trajectory_length

    def run_one_by_one(states: HMCState, data: tuple) -> tuple[Any, Any]:
        return jax.lax.map(lambda state: run_chains(state, data), states)

    compiled = jax.jit(run_chains if is_vectorised else run_one_by_one)

    def run(seed: int) -> Drawn:
        keys = jax.random.split(jax.random.key(seed), NUM_CHAINS)
        if is_vectorised:
            states = kernel.init(keys, num_draws, None, case.data, {})
        else:
            each = [kernel.init(key, num_draws, None, case.data, {}) for key in keys]
            states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        start = now()
        samples, counts = jax.block_until_ready(compiled(states, case.data))
        seconds = now() - start
        if is_vectorised:  # draws lead
            samples = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), samples)
        return Drawn(jax.tree.map(np.asarray, samples), int(counts.sum()), seconds / int(counts.sum()))

    return run


def with_blackjax(case: Case, num_draws: int) -> Run:
    seen = get_filter_adapt_info_fn(info_keys={"num_integration_steps"})
    prepared = initialize_model(
        jax.random.split(jax.random.key(0), NUM_CHAINS), case.model, model_args=case.data, dynamic_args=True
    )

    def run_chain(key: Any, data: Any) -> tuple[Any, Any]:
        def log_density(position: Any) -> Any:
            return -prepared.potential_fn(*data)(position)

        start_key, warmup_key, key = jax.random.split(key, 3)
        # As the other two start: uniform on (-2, 2).
        leaves, tree = jax.tree.flatten(prepared.param_info.z)
        keys = jax.random.split(start_key, len(leaves))
        start = [
            jax.random.uniform(k, leaf.shape[1:], minval=-2.0, maxval=2.0)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        warmup = blackjax.window_adaptation(blackjax.nuts, log_density, adaptation_info_fn=seen)
        (state, settings), info = warmup.run(warmup_key, jax.tree.unflatten(tree, start), num_draws)
        step = blackjax.nuts(log_density, **settings).step

        def turn(state: Any, key: Any) -> tuple[Any, Any]:
            state, info = step(key, state)
            return state, (state.position, info.num_integration_steps)

        _, (positions, counts) = jax.lax.scan(turn, state, jax.random.split(key, num_draws))
        return prepared_values(positions, data), counts.sum() + info.info.num_integration_steps.sum()

    def prepared_values(positions: Any, data: Any) -> Any:
        return jax.vmap(prepared.postprocess_fn(*data))(positions)

    run_chains = jax.jit(jax.vmap(run_chain, in_axes=(0, None)))

    def run(seed: int) -> Drawn:
        samples, counts = run_chains(jax.random.split(jax.random.key(seed), NUM_CHAINS), case.data)
        return Drawn(jax.tree.map(np.asarray, samples), int(counts.sum()))

    return run


SAMPLERS: dict[str, Callable[[Case, int], Run]] = {
    "qbs": with_qbs,
    "NumPyro, vectorised": partial(with_numpyro, is_vectorised=True),
    "NumPyro, sequential": partial(with_numpyro, is_vectorised=False),
    "BlackJAX": with_blackjax,
}


class Figures(NamedTuple):
    """What is said of a sampler on a model.

    Attributes:
        effective: Smallest effective sample size, for a thousand gradients.
        cpu: Microseconds of CPU time for a gradient.
        compiling: CPU seconds.
    """

    effective: float
    cpu: float
    compiling: float


def least_effective(samples: dict[str, np.ndarray], names: list[str]) -> float:
    """Return the smallest effective sample size in bulk of the numbers in some sites."""
    least = math.inf
    for name in names:
        draws = np.asarray(samples[name], np.float64)
        draws = draws.reshape(*draws.shape[:2], -1)
        # Chains that stand still have no variance.
        with np.errstate(divide="ignore", invalid="ignore"):
            found = [
                array_stats.ess(draws[:, :, i], chain_axis=0, draw_axis=1, method="bulk")
                for i in range(draws.shape[2])
            ]
        least = min(least, *np.nan_to_num(found, nan=1.0))
    return least


def compare(case: Case, num_draws: int, num_seeds: int) -> dict[str, Figures]:
    """Run all samplers in turns; the first turn compiles."""
    spent: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    drawn: dict[str, list[Drawn]] = {name: [] for name in SAMPLERS}
    runs: dict[str, Run] = {}
    for seed in range(num_seeds + 1):
        for name, prepare in SAMPLERS.items():
            start = now()
            if seed == 0:
                runs[name] = prepare(case, num_draws)
            drawn[name].append(runs[name](seed))
            spent[name].append(now() - start)
    sites = sorted(drawn["qbs"][0].samples)
    figures = {}
    for name in SAMPLERS:
        counts = [run.num_gradients for run in drawn[name]]
        effective = [
            least_effective(run.samples, sites) / n for run, n in zip(drawn[name], counts, strict=True)
        ]
        cpu = statistics.median(
            run.seconds or s / run.num_gradients
            for s, run in zip(spent[name][1:], drawn[name][1:], strict=True)
        )
        figures[name] = Figures(
            1e3 * statistics.median(effective), 1e6 * cpu, spent[name][0] - cpu * counts[0]
        )
    return figures


def together(figures: dict[str, Figures]) -> dict[str, Figures]:
    """Return the figures of qbs, NumPyro and BlackJAX: NumPyro's by the way to run chains that costs less."""
    ways = [figures[name] for name in figures if name.startswith("NumPyro")]
    effective = statistics.fmean(way.effective for way in ways)
    best = min(ways, key=lambda way: way.cpu)._replace(effective=effective)
    return {"qbs": figures["qbs"], "NumPyro": best, "BlackJAX": figures["BlackJAX"]}


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(cases()), help="names, with commas (default all)")
    parser.add_argument("--seeds", type=int, default=3, help="timed runs of each sampler (default 3)")
    parser.add_argument("--draws", type=int, default=1000, help="of each chain, after as many of warm-up")
    settings = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # noqa: FBT003
    warnings.filterwarnings("ignore", message="There are not enough devices")
    packages = ", ".join(f"{name} {version(name)}" for name in ("qbs-jax", "jax", "numpyro", "blackjax"))
    print(f"{platform.machine()}, {jax.default_backend()}, Python {platform.python_version()}, {packages}")
    print(f"{NUM_CHAINS} chains of {settings.draws} + {settings.draws}, {settings.seeds} timed runs")
    print("ratios: qbs / the better of NumPyro and BlackJAX\n")
    print(f"{'':24}{'ESS / 1000 gradients':^30}{f'us {kind()} / gradient':^38}{f'compiling, {kind()} s':^28}")
    heads = (
        "qbs",
        "NumP",
        "BlackJ",
        "ratio",
        "qbs",
        "NumP v",
        "NumP s",
        "BlackJ",
        "ratio",
        "qbs",
        "NumP",
        "BlackJ",
    )
    print(f"{'model':24}" + "".join(f"{head:>7}" for head in heads), flush=True)
    ratios = []
    for name in settings.models.split(","):
        case = cases()[name]
        ways = compare(case, settings.draws, settings.seeds)
        found = together(ways)
        mine, peers = found["qbs"], [found["NumPyro"], found["BlackJAX"]]
        ratios.append(
            (
                mine.effective / max(peer.effective for peer in peers),
                mine.cpu / min(peer.cpu for peer in peers),
                mine.compiling,
                case.is_small,
            )
        )
        row = [f"{way.effective:7.2f}" for way in found.values()] + [f"{ratios[-1][0]:7.2f}"]
        row += [f"{way.cpu:7.1f}" for way in ways.values()] + [f"{ratios[-1][1]:7.2f}"]
        row += [f"{way.compiling:7.1f}" for way in found.values()]
        print(f"{name:24}" + "".join(row), flush=True)
    effective, cpu = (geometric_mean([row[i] for row in ratios]) for i in (0, 1))
    print(
        f"\ngeometric means of the ratios: ESS for a gradient {effective:.2f} (bar {MIN_EFFECTIVE}), ",
        end="",
    )
    print(f"{kind()} time for a gradient {cpu:.2f} (bar {MAX_CPU} or less)")
    if small := [row[2] for row in ratios if row[3]]:
        print(f"compiling small models: at most {max(small):.1f} {kind()} s (bar {MAX_COMPILE:.0f})")


if __name__ == "__main__":
    main()
