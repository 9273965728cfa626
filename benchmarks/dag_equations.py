"""Scores whose equations are fitted one by one, `"logistic"` and `"mlp"`, beside others' learners.

* `search`: logistic, the published way (Deng et al. 2023): the search by conditions of optimality from a
  random order, with the regressions of qbs, and with scikit-learn's, one after the other. None is made twice,
  so that the time of the latter is at most that of a program which does.
* `logistic`: columns of two values, beside DAGMA's logistic loss.
* `mlp`: networks, and noises of equal variance, beside DAGMA's and NOTEARS' networks.

Shown are the negative log-likelihood (logistic) or the score (mlp) of all columns and by how much that of the
true order, whose nodes are fitted to all before them, is larger; distances from the true graph; CPU seconds
of the whole process, compiling done before; and ratios peer / qbs. The published figures of ten nodes and
1,000 rows are a likelihood of 5.84 and a distance of 8 (ER2), 5.54 and 26 (ER4).

    pip install --no-deps dagma gcastle causal-learn lingam ...   # dag.py --help has the whole line
    taskset -c 0 python benchmarks/dag_equations.py [search logistic mlp] [--seeds 3] [--limit 300]
"""

import argparse
import math
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pandas as pd
from clock import now
from dag import GRAPHS, NUM_ROWS, counted, show
from dag_peers import PEERS, Answer, Field, Peer, Race, heads, seconds

from qbs.inference.dag.equivalence import topological_order
from qbs.inference.dag.kkt import kkt_search
from qbs.inference.dag.scores.logistic import LogisticScore
from qbs.inference.dag.scores.mlp import MLPScore
from qbs.inference.dag.scores.score import Fits, Score
from qbs.models.structural import TopologicalDAG, simulate_dag, simulate_sem


class OneByOne:
    """Logistic regressions of scikit-learn, made one after the other."""

    def __init__(self, data: np.ndarray):
        self._data = data

    def fits(self, nodes: np.ndarray, candidates: np.ndarray) -> Fits:
        """Return the fits of nodes to all of their candidates."""
        lines = [self._fit(int(node), mask) for node, mask in zip(nodes, candidates, strict=True)]
        scores, weights, gradients = zip(*lines, strict=True)
        return Fits(np.array(scores), np.array(weights), np.array(gradients))

    def scores(self, nodes: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Return their scores per row."""
        return self.fits(nodes, candidates).scores

    def _fit(self, node: int, may_be: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        from sklearn.linear_model import LogisticRegression

        data, weights = self._data, np.zeros(self._data.shape[1])
        outcome, share = data[:, node], np.full(len(data), data[:, node].mean())
        if may_be.any():
            model = LogisticRegression(C=np.inf).fit(data[:, may_be], outcome)
            weights[may_be], share = model.coef_[0], model.predict_proba(data[:, may_be])[:, 1]
        likelihood = outcome * np.log(share) + (1 - outcome) * np.log1p(-share)
        gradients = data.T @ (share - outcome) / len(data)
        gradients[node] = 0.0
        return -float(likelihood.mean()), weights, gradients


def _dagma_logistic(data: np.ndarray) -> np.ndarray:
    from dagma.linear import DagmaLinear

    return DagmaLinear("logistic").fit(data) != 0


def _dagma_networks(data: np.ndarray) -> np.ndarray:
    import torch
    from dagma.nonlinear import DagmaMLP, DagmaNonlinear

    torch.manual_seed(0)
    network = DagmaMLP([data.shape[1], 10, 1], dtype=torch.float64)
    return DagmaNonlinear(network, dtype=torch.float64).fit(data) != 0


def _notears_networks(data: np.ndarray) -> np.ndarray:
    import logging

    import torch
    from castle.algorithms import NotearsNonlinear

    logging.getLogger().setLevel(logging.WARNING)  # Importing castle sets it to say all.
    torch.manual_seed(0)
    method = NotearsNonlinear()
    method.learn(data)
    return np.asarray(method.causal_matrix) != 0


OTHERS: dict[str, dict[str, Peer]] = {
    "logistic": {
        "DAGMA": Peer(("dagma",), _dagma_logistic),
    },
    "mlp": {
        "DAGMA, networks": Peer(("dagma", "torch"), _dagma_networks),
        "NOTEARS, networks": Peer(("castle", "torch"), _notears_networks),
    },
}


def _learned(data: np.ndarray, **settings: Any) -> TopologicalDAG:
    frame = pd.DataFrame(data, columns=[f"v{number}" for number in range(data.shape[1])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TopologicalDAG(bootstraps=0, **settings).fit(frame)


def _total(score: Score, order: np.ndarray) -> float:
    """Return the score of an order, each node fitted to all before it."""
    places = np.argsort(order)
    return float(score.scores(np.arange(len(order)), places[None, :] < places[:, None]).sum())


def race(kind: str, score_of: Callable[[np.ndarray], Score], settings: argparse.Namespace) -> None:
    """Show a table of a score."""
    PEERS.update(OTHERS[kind])
    names, rows, means = list(OTHERS[kind]), [], []
    field, sizes = Field(settings.limit, names), settings.nodes or (10,)
    field.warm_up(_simulated(kind, 4, 1, "ER", 0)[1])
    with counted(kind, len(sizes) * len(GRAPHS) * settings.seeds) as tick:
        for num_nodes in sizes:
            for graph, degree in GRAPHS:
                lap, totals, excess = Race(field), [], []
                _learned(_simulated(kind, num_nodes, degree, graph, 0)[1], score=kind)
                for seed in range(settings.seeds):
                    truth, data = _simulated(kind, num_nodes, degree, graph, seed)
                    start = now()
                    found = _learned(data, score=kind)
                    lap.run(Answer(found.adjacency_.to_numpy(), now() - start), data, truth)
                    totals.append(found.loss_)
                    excess.append(_total(score_of(data), topological_order(truth != 0)) - found.loss_)
                    tick()
                label = [f"{graph}{degree}", str(num_nodes)]
                said = [f"{statistics.fmean(totals):.3f}", " ".join(f"{value:+.4f}" for value in excess)]
                rows.append([*label, *said, *lap.cells()])
                means.append([*label, *lap.means()])
    title = f"{kind}, {NUM_ROWS} rows: distances from the truth, seeds 0-{settings.seeds - 1}"
    show(title, ["graph", "nodes", "total", "true order's more by", *heads(names)], rows)
    show("Mean distances", ["graph", "nodes", "qbs", *names, "qbs - best peer"], means)


def _simulated(
    kind: str, num_nodes: int, degree: int, graph: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    most = num_nodes * (num_nodes - 1) // 2
    truth = simulate_dag(num_nodes, min(degree * num_nodes, most), graph, seed=seed)
    return truth, simulate_sem(truth, NUM_ROWS, equations=kind, seed=seed + 100)


def search_race(settings: argparse.Namespace) -> None:
    """Show the search by conditions of optimality with regressions of qbs and of scikit-learn."""
    rows, sizes = [], settings.nodes or (10, 20)
    with counted("search", len(sizes) * len(GRAPHS) * settings.seeds) as tick:
        for num_nodes in sizes:
            for graph, degree in GRAPHS:
                totals: list[list[float]] = [[], []]
                spent: list[list[float]] = [[], []]
                solves: list[list[int]] = [[], []]
                for seed in range(settings.seeds):
                    _, data = _simulated("logistic", num_nodes, degree, graph, seed)
                    order = np.random.default_rng(seed).permutation(num_nodes)
                    kkt_search(LogisticScore(data), order)  # compiles
                    for at, score in enumerate((LogisticScore(data), OneByOne(data))):
                        start = now()
                        found = kkt_search(score, order)
                        spent[at].append(now() - start)
                        totals[at].append(found.score)
                        solves[at].append(found.num_solves)
                    tick()
                differences = [f"{own - other:+.4f}" for own, other in zip(*totals, strict=True)]
                said = [f"{statistics.fmean(totals[0]):.3f}", " ".join(differences)]
                fits = [f"{min(each)}-{max(each)}" for each in solves]
                own, other = map(statistics.median, spent)
                ratios = [later / first for first, later in zip(*spent, strict=True)]
                geometric = math.exp(statistics.fmean(map(math.log, ratios)))
                times = [seconds(own), seconds(other), seconds(geometric)]
                rows.append([f"{graph}{degree}", str(num_nodes), *said, *fits, *times])
    names = ["graph", "nodes", "total", "less scikit-learn's", "fits", "its fits", "s", "its s", "ratio"]
    show(f"Logistic search by conditions of optimality, {NUM_ROWS} rows, from random orders", names, rows)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "search": search_race,
    "logistic": partial(race, "logistic", LogisticScore),
    "mlp": partial(race, "mlp", MLPScore),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default all)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--nodes", type=int, nargs="+", help="sizes (default 10; of search 10 and 20)")
    parser.add_argument(
        "--limit", type=float, default=300.0, help="CPU seconds of a peer's run (default 300)"
    )
    settings = parser.parse_args()
    if unknown := sorted(set(settings.parts) - set(PARTS)):
        parser.error(f"no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    jax.config.update("jax_enable_compilation_cache", False)  # noqa: FBT003
    for name in settings.parts or PARTS:
        PARTS[name](settings)


if __name__ == "__main__":
    main()
