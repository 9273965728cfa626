"""Learn graphs by `TopologicalDAG` and by others, in turns, in one process: how right, and how fast.

* `speed`: the search for an order alone, from random orders (ER4, equal noise variances); with 500 nodes ten
  sweeps of near swaps; with 1000 from the top-down order, with the choice of parents.
* `recovery`: data of equal noise variances: the loss beside the true order's, structural Hamming distances,
  and those of DAGMA and NOTEARS. A * marks a graph that the extended criterion prefers to the true one.
* `equivalence`: unequal noise variances (standard deviations uniform in 0.5 ... 2), and standardized data of
  equal ones, by `score="bic"`: distances of the equivalence class (CPDAG) from that of the truth, beside GES
  and BOSS.
* `lingam`: non-Gaussian noises of unequal variances, by `score="lingam"`, beside DirectLiNGAM.
* `warnings`: how often a reader is warned, of data that are as the score assumes and of others.

Weights are of a random sign and of a size uniform in 0.5 ... 2. Times are CPU seconds of the whole process:
give it one core. Compiling is shown apart, or done before. Peers are in `benchmarks/dag_peers.py`, from PyPI;
one that is missing is said to be. A ratio is peer / qbs: 10 says that qbs takes a tenth of its time.

    pip install --no-deps dagma gcastle causal-learn lingam ...   # --help has the whole line
    taskset -c 0 python benchmarks/dag.py [speed recovery equivalence lingam warnings] [--limit 120]
"""

import argparse
import math
import os
import platform
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from clock import kind, now
from dag_peers import INSTALL, Answer, Field, Race, distance, heads, seconds
from rich import box
from rich.console import Console
from rich.table import Table

from qbs.inference.dag.equivalence import completed_graph, topological_order
from qbs.inference.dag.honesty import UNEQUAL
from qbs.inference.dag.linear_equations import linear_equations
from qbs.inference.dag.order_factor import equal_variance_loss, factorize
from qbs.inference.dag.parents import penalty, regress
from qbs.inference.dag.rules import Rules
from qbs.inference.dag.sample import sample_of_rows
from qbs.inference.dag.scores.score import Pruning
from qbs.inference.dag.search import search
from qbs.inference.dag.starts import top_down_order
from qbs.inference.progress import ProgressLine
from qbs.models.structural import TopologicalDAG, simulate_dag, simulate_sem

NUM_ROWS, GRAPHS = 1000, (("ER", 2), ("ER", 4), ("SF", 4))
SPEED_BARS = {20: 0.010, 50: 0.050, 100: 0.3}
WINDOW, SWEEPS, WINDOWED_BAR, TOP_DOWN_BAR = 64, 10, 10.0, 5.0
MOST_DISTANCE, LEAST_WARNED = 1, 0.95
DENSE = 20  # nodes of which there are graphs of four edges each, too: nearly all of 10 would be joined
_CONSOLE = Console(width=200)


class Case(NamedTuple):
    """A graph, and data from it.

    Attributes:
        truth: Weights of row -> column.
        data: Rows of observations.
    """

    truth: np.ndarray
    data: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """Of the columns."""
        return np.cov(self.data.T, bias=True)


def simulated(
    num_nodes: int,
    degree: int,
    graph: str,
    seed: int,
    *,
    num_rows: int = NUM_ROWS,
    noise: str = "gaussian",
    is_unequal: bool = False,
    is_standard: bool = False,
) -> Case:
    most = num_nodes * (num_nodes - 1) // 2
    truth = simulate_dag(num_nodes, min(degree * num_nodes, most), graph, seed=seed)
    scales = np.random.default_rng(seed).uniform(0.5, 2.0, num_nodes) if is_unequal else 1.0
    data = simulate_sem(truth, num_rows, noise, noise_scale=scales, seed=seed + 100)
    return Case(truth, (data - data.mean(0)) / data.std(0) if is_standard else data)


def learned(
    case: Case, score: str = "equal-variance", num_restarts: int | None = None
) -> tuple[TopologicalDAG, float]:
    """Return what qbs learns, and CPU seconds."""
    frame = pd.DataFrame(case.data, columns=[f"v{number}" for number in range(len(case.truth))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = now()
        found = TopologicalDAG(score=score, bootstraps=0, num_restarts=num_restarts).fit(frame)
        return found, now() - start


@contextmanager
def counted(title: str, count: int) -> Iterator[Callable[[], None]]:
    done = 0
    with ProgressLine(title, show=True) as line:

        def tick() -> None:
            nonlocal done
            done += 1
            line.update(f"{done}/{count}", done / count)

        yield tick


def show(title: str, heads: list[str], rows: list[list[str]]) -> None:
    table = Table(*heads, title=title, title_justify="left", box=box.MARKDOWN)
    for row in rows:
        table.add_row(*row)
    _CONSOLE.print(table)
    _CONSOLE.print()


def timed(run: Callable[[], Any], num_calls: int) -> tuple[Any, float, list[float]]:
    """Return what a call returned, the first one's excess of CPU seconds, and those of the others."""
    spent, answer = [], None
    for _ in range(num_calls + 1):
        start = now()
        answer = jax.block_until_ready(run())
        spent.append(now() - start)
    return answer, max(spent[0] - statistics.median(spent[1:]), 0.0), spent[1:]


def met(value: float, bar: float) -> str:
    return f"{'' if value <= bar else 'not '}met"


def speed(settings: argparse.Namespace) -> None:
    names = ["nodes", "start", "sweeps", "median", "largest", "bar", "", "compiling"]
    rows = []
    with jax.enable_x64(True):
        for num_nodes, bar in SPEED_BARS.items():
            spent, sweeps, compiling = [], [], 0.0
            for seed in range(settings.seeds or 3):
                covariance = simulated(num_nodes, 4, "ER", seed).covariance
                before = np.zeros((num_nodes, num_nodes), bool)
                for order in np.random.default_rng(seed).permuted([np.arange(num_nodes)] * 3, axis=1):
                    arrays = map(jnp.asarray, (covariance, order, before))
                    found, excess, each = timed(partial(search, *arrays), 5)
                    compiling = max(compiling, excess)
                    spent.append(statistics.median(each))
                    sweeps.append(int(found.num_sweeps))
            said = f"{min(sweeps)}-{max(sweeps)}"
            rows.append(_speed_row(num_nodes, "random", said, spent, bar, compiling))
        rows += [_windowed(), _top_down()]
    show(f"Search alone, ER4, {kind()} seconds of a call", names, rows)


def _speed_row(
    num_nodes: int, start: str, sweeps: str, spent: list[float], bar: float, compiling: float
) -> list[str]:
    largest = max(spent)
    return [
        str(num_nodes),
        start,
        sweeps,
        f"{statistics.median(spent):.4f}",
        f"{largest:.4f}",
        f"{bar:g}",
        met(largest, bar),
        f"{compiling:.1f}",
    ]


def _windowed() -> list[str]:
    num_nodes = 500
    covariance = jnp.asarray(simulated(num_nodes, 4, "ER", 0).covariance)
    order = jnp.asarray(np.random.default_rng(0).permutation(num_nodes))
    before = jnp.zeros((num_nodes, num_nodes), bool)
    run = partial(search, covariance, order, before, window=WINDOW, max_sweeps=SWEEPS)
    found, compiling, spent = timed(run, 2)
    # The last looks at all swaps.
    sweeps = f"{int(found.num_sweeps) - 1} near + 1"
    return _speed_row(num_nodes, "random", sweeps, spent, WINDOWED_BAR, compiling)


def _top_down() -> list[str]:
    num_nodes = 1000
    case = simulated(num_nodes, 4, "ER", 0, num_rows=2 * num_nodes)
    sample = sample_of_rows(case.data, ("continuous",) * num_nodes)
    none = np.zeros((num_nodes, num_nodes), bool)
    parts: dict[str, list[float]] = {"order": [], "parents": []}

    def run() -> None:
        start = now()
        order = np.asarray(top_down_order(jnp.asarray(sample.covariance), jnp.asarray(none)))
        parts["order"].append(now() - start)
        start = now()
        linear_equations(sample, order, Rules(none, none, none), Pruning())
        parts["parents"].append(now() - start)

    _, compiling, spent = timed(run, 2)
    said = " + ".join(f"{seconds(statistics.median(each[1:]))} {name}" for name, each in parts.items())
    return _speed_row(num_nodes, f"top-down: {said}", "0", spent, TOP_DOWN_BAR, compiling)


def _criterion(covariance: np.ndarray, weights: np.ndarray) -> float:
    """Return the extended criterion of a graph of equal noise variances, per row."""
    num_nodes = len(covariance)
    parents = [np.flatnonzero(weights[:, node]) for node in range(num_nodes)]
    total = sum(regress(covariance, node, own)[1] for node, own in enumerate(parents))
    price = penalty(NUM_ROWS, num_nodes, 1.0)
    return num_nodes * math.log(total / num_nodes) + price * np.count_nonzero(weights)


def recovery(settings: argparse.Namespace) -> None:
    field, num_seeds, rows, worst = Field(settings.limit, ["DAGMA", "NOTEARS"]), settings.seeds or 3, [], 0
    field.warm_up(simulated(5, 1, "ER", 0).data)
    most, sizes = -math.inf, settings.nodes or (10, 20, 50, 100)
    with counted("recovery", len(sizes) * len(GRAPHS) * num_seeds) as tick:
        for num_nodes in sizes:
            for graph, degree in GRAPHS:
                race, excess = Race(field, is_asked=num_nodes <= settings.peers_up_to), []
                learned(simulated(num_nodes, degree, graph, 0), num_restarts=settings.restarts)
                for seed in range(num_seeds):
                    case = simulated(num_nodes, degree, graph, seed)
                    found, cpu = learned(case, num_restarts=settings.restarts)
                    weights = found.adjacency_.to_numpy()
                    excess.append(found.loss_ / _true_loss(case) - 1)
                    is_misled = _criterion(case.covariance, weights) < _criterion(case.covariance, case.truth)
                    race.run(Answer(weights, cpu), case.data, case.truth, "*" if is_misled else "")
                    tick()
                most, worst = max(most, *excess), max(worst, *race.distances("qbs"))
                label = [f"{graph}{degree}", str(num_nodes), f"{100 * max(excess):+.3f} %"]
                rows.append([*label, *race.cells()])
    title = f"Equal noise variances, {NUM_ROWS} rows: distances from the truth, seeds 0-{num_seeds - 1}"
    show(title, ["graph", "nodes", "loss - true order's, at most", *heads(field.names)], rows)
    said = f"largest distance {worst} (bar {MOST_DISTANCE}): {met(worst, MOST_DISTANCE)}"
    print(f"loss no larger than the true order's: {met(most, 1e-9)}; {said}\n")


def _true_loss(case: Case) -> float:
    with jax.enable_x64(True):
        order = jnp.asarray(topological_order(case.truth != 0))
        return float(equal_variance_loss(factorize(jnp.asarray(case.covariance), order).factor))


def equivalence(settings: argparse.Namespace) -> None:
    num_seeds, rows, means = settings.seeds or 5, [], []
    names = ["GES", "GES, eBIC", "BOSS", "BOSS, eBIC"]
    kinds = {"unequal": {"is_unequal": True}, "standardized": {"is_standard": True}}
    sizes = settings.nodes or (10, 20, 50)
    cells = [(size, degree) for size in sizes for degree in ((2, 4) if size == DENSE else (2,))]
    with counted("equivalence", len(cells) * len(kinds) * num_seeds) as tick:
        for said, how in kinds.items():
            field = Field(settings.limit, names)
            field.warm_up(simulated(5, 1, "ER", 0).data)
            for num_nodes, degree in cells:
                race = Race(field, is_asked=num_nodes <= settings.peers_up_to)
                learned(simulated(num_nodes, degree, "ER", 0, **how), settings.score, settings.restarts)
                for seed in range(num_seeds):
                    case = simulated(num_nodes, degree, "ER", seed, **how)
                    found, cpu = learned(case, settings.score, settings.restarts)
                    own = Answer(found.cpdag_.to_numpy(), cpu)
                    race.run(own, case.data, completed_graph(case.truth != 0))
                    tick()
                label = [f"{said}, ER{degree}", str(num_nodes)]
                rows.append([*label, *race.cells()])
                means.append([*label, *race.means()])
    title = f"Equivalence classes, {NUM_ROWS} rows: distances from the truth's, seeds 0-{num_seeds - 1}"
    show_race(title, names, rows, means)


def lingam(settings: argparse.Namespace) -> None:
    num_seeds, rows, means = settings.seeds or 5, [], []
    names = ["DirectLiNGAM", "DirectLiNGAM, cut"]
    field = Field(settings.limit, names)
    field.warm_up(simulated(5, 1, "ER", 0, noise="exponential").data)
    for noise in ("exponential", "gumbel"):
        for num_nodes in settings.nodes or (10, 20):
            race = Race(field)
            learned(simulated(num_nodes, 2, "ER", 0, noise=noise, is_unequal=True), "lingam")
            for seed in range(num_seeds):
                case = simulated(num_nodes, 2, "ER", seed, noise=noise, is_unequal=True)
                found, cpu = learned(case, "lingam")
                race.run(Answer(found.adjacency_.to_numpy(), cpu), case.data, case.truth)
            label = [noise, str(num_nodes)]
            rows.append([*label, *race.cells()])
            means.append([*label, *race.means()])
    title = (
        f"Non-Gaussian noises of unequal variances, ER2, {NUM_ROWS} rows: distances, seeds 0-{num_seeds - 1}"
    )
    show_race(title, names, rows, means)


def show_race(title: str, names: list[str], rows: list[list[str]], means: list[list[str]]) -> None:
    show(title, ["noises", "nodes", *heads(names)], rows)
    show("Mean distances", ["noises", "nodes", "qbs", *names, "qbs - best peer"], means)


def warned(settings: argparse.Namespace) -> None:
    num_cases, rows = settings.cases, []
    kinds: dict[str, dict[str, Any]] = {
        "equal": {},
        "equal, exponential noises": {"noise": "exponential"},
        "unequal": {"is_unequal": True},
        "unequal, exponential noises": {"is_unequal": True, "noise": "exponential"},
        "standardized, of equal": {"is_standard": True},
        "standardized, of unequal": {"is_standard": True, "is_unequal": True},
    }
    with counted("warnings", num_cases * len(kinds)) as tick:
        for said, how in kinds.items():
            told, others, variations, distances = [], [], [], []
            for seed in range(num_cases):
                rng = np.random.default_rng(seed)
                num_nodes, num_rows = int(rng.choice([5, 10, 20, 30])), int(rng.integers(500, 2001))
                graph, degree = str(rng.choice(["ER", "SF"])), int(rng.choice([1, 2, 4]))
                case = simulated(num_nodes, degree, graph, seed, num_rows=num_rows, **how)
                found, _ = learned(case)
                honesty = found.honesty_
                is_doubtful = honesty.is_standardized or honesty.residual_variation > UNEQUAL
                told.append(bool(found.problems_) and is_doubtful)
                others.append(bool(found.problems_) and not told[-1])
                variations.append(honesty.residual_variation)
                distances.append(distance(found.adjacency_.to_numpy(), case.truth))
                tick()
            is_fine = said.startswith("equal")
            is_met = not any(told) if is_fine else statistics.fmean(told) >= LEAST_WARNED
            bar = f"{'none' if is_fine else f'{LEAST_WARNED:.0%}'}: {'' if is_met else 'not '}met"
            spread = " / ".join(f"{value:.2f}" for value in np.quantile(variations, [0.0, 0.5, 1.0]))
            counts = [f"{sum(told)} of {num_cases}", bar, str(sum(others))]
            rows.append([said, *counts, spread, f"{statistics.fmean(distances):.1f}"])
    names = [
        "noises",
        "warned of variances",
        "bar",
        "of other things only",
        "variation: least / median / largest",
    ]
    title = "Who is warned: 5, 10, 20 and 30 nodes, 500-2000 rows, ER and SF of degree 1, 2, 4"
    show(title, [*names, "mean distance"], rows)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "warnings": warned,
    "speed": speed,
    "recovery": recovery,
    "equivalence": equivalence,
    "lingam": lingam,
}


def _versions() -> str:
    said = []
    for name in ("qbs-jax", "jax", "numpy", "dagma", "gcastle", "causal-learn", "lingam"):
        try:
            said.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            said.append(f"no {name}")
    return ", ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f"Peers: {INSTALL}")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default all)")
    parser.add_argument("--seeds", type=int, help="how many (default 3; of equivalence and lingam 5)")
    parser.add_argument("--nodes", type=int, nargs="+", help="sizes of recovery, equivalence and lingam")
    parser.add_argument("--cases", type=int, default=100, help="of each kind of warnings (default 100)")
    parser.add_argument(
        "--limit", type=float, default=120.0, help="CPU seconds of a peer's run (default 120)"
    )
    parser.add_argument("--peers-up-to", type=int, default=50, help="nodes (default 50)")
    parser.add_argument("--restarts", type=int, help="of recovery and equivalence (default qbs's own)")
    parser.add_argument("--score", default="bic", help="of equivalence (default bic)")
    settings = parser.parse_args()
    if unknown := sorted(set(settings.parts) - set(PARTS)):
        parser.error(f"no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    jax.config.update("jax_enable_compilation_cache", False)  # noqa: FBT003
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{platform.machine()}, {jax.default_backend()}, Python {platform.python_version()}, {_versions()}")
    print(
        f"cores: {cores}; load: {os.getloadavg()[0]:.1f}; ratio: {kind()} seconds of the peer / of qbs\n",
        flush=True,
    )
    for name in settings.parts or PARTS:
        PARTS[name](settings)


if __name__ == "__main__":
    main()
