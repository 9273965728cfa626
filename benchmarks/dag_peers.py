"""Other learners of causal graphs, from PyPI, as `benchmarks/dag.py` runs them; each may be missing.

All at their defaults, but for the penalty of the two that maximize the Bayesian information criterion: they
run with their own and with that of the extended criterion, which is what qbs uses; the better counts.
"""

import importlib.util
import io
import math
import os
import random
import signal
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

import numpy as np
from clock import now

os.environ.setdefault("TQDM_DISABLE", "1")
INSTALL = (
    "pip install --no-deps dagma gcastle causal-learn lingam igraph texttable graphviz pydot statsmodels "
    "patsy pygam psy progressbar2 python-utils semopy autograd momentchi2 tqdm && pip install torch"
)
CUT = 0.3  # of weights: what DAGMA and NOTEARS cut at by default

Learn = Callable[[np.ndarray], np.ndarray]


class Peer(NamedTuple):
    """Another learner.

    Attributes:
        packages: It is imported from; all must be there.
        learn: Returns where edges are, row -> column, both ways where undirected; from data.
    """

    packages: tuple[str, ...]
    learn: Learn


def _dagma(data: np.ndarray) -> np.ndarray:
    from dagma.linear import DagmaLinear

    return DagmaLinear("l2").fit(data) != 0


def _notears(data: np.ndarray) -> np.ndarray:
    import logging

    from castle.algorithms import Notears

    logging.getLogger().setLevel(logging.WARNING)  # Importing castle sets it to say all.
    method = Notears()
    method.learn(data)
    return np.asarray(method.causal_matrix) != 0


def _extended(data: np.ndarray) -> float:
    """Return the share of the log of rows that a parent costs by the extended criterion; 0.5 by the usual."""
    num_rows, num_nodes = data.shape
    return 0.5 + math.log(num_nodes - 1) / math.log(num_rows)


def _ges(data: np.ndarray, penalty: float | None = None) -> np.ndarray:
    from causallearn.search.ScoreBased.GES import ges

    found = ges(data, "local_score_BIC_from_cov", lambda_value=penalty)
    return found["G"].graph == -1


def _boss(data: np.ndarray, penalty: float | None = None) -> np.ndarray:
    from causallearn.search.PermutationBased.BOSS import boss

    random.seed(0)
    settings = None if penalty is None else {"lambda_value": penalty}
    return boss(data, "local_score_BIC_from_cov", parameters=settings, verbose=False).graph == -1


def _direct_lingam(data: np.ndarray) -> np.ndarray:
    from lingam import DirectLiNGAM

    return DirectLiNGAM().fit(data).adjacency_matrix_.T


PEERS: dict[str, Peer] = {
    "DAGMA": Peer(("dagma",), _dagma),
    "NOTEARS": Peer(("castle", "torch"), _notears),
    "GES": Peer(("causallearn",), _ges),
    "GES, eBIC": Peer(("causallearn",), lambda data: _ges(data, _extended(data))),
    "BOSS": Peer(("causallearn",), _boss),
    "BOSS, eBIC": Peer(("causallearn",), lambda data: _boss(data, _extended(data))),
    "DirectLiNGAM": Peer(("lingam",), lambda data: _direct_lingam(data) != 0),
    "DirectLiNGAM, cut": Peer(("lingam",), lambda data: np.abs(_direct_lingam(data)) > CUT),
}


class Answer(NamedTuple):
    """What a learner answered.

    Attributes:
        graph: Where edges are; None if it did not.
        cpu: CPU seconds.
        said: Why it did not.
    """

    graph: np.ndarray | None
    cpu: float = math.nan
    said: str = ""


class Field:
    """Runs peers, and no more those that are missing or have taken too long.

    Args:
        limit: CPU seconds that a run may take.
        names: Of the peers to run.
    """

    def __init__(self, limit: float, names: list[str]):
        self._limit = limit
        self.names = names
        self._out: dict[str, str] = {}
        for name in names:
            missing = [package for package in PEERS[name].packages if not importlib.util.find_spec(package)]
            if missing:
                self._out[name] = f"no {missing[0]}"

    def ask(self, name: str, data: np.ndarray) -> Answer:
        """Return what a peer answers, in silence."""
        if name in self._out:
            return Answer(None, said=self._out[name])
        seconds = math.nan
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                with at_most(self._limit):
                    start = now()
                    graph = PEERS[name].learn(data.copy())
                    seconds = now() - start
            except _OverTimeError:
                self._out[name] = f"over {self._limit:.0f} s"
            except ImportError as error:
                self._out[name] = f"no {error.name}"
            except Exception as error:
                return Answer(None, said=f"failed: {type(error).__name__}")
            else:
                return Answer(graph, seconds)
        return Answer(None, said=self._out[name])

    def warm_up(self, data: np.ndarray) -> None:
        """Let all import what they need, and compile what they do."""
        for name in self.names:
            self.ask(name, data)


class _OverTimeError(BaseException):
    """The limit is over; not an error that a peer may catch."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """End what runs within after so many CPU seconds, where the system can."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def end(_number: int, _frame: Any) -> None:
        raise _OverTimeError

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def distance(graph: np.ndarray, truth: np.ndarray) -> int:
    """Return of how many pairs of nodes the relation differs: ->, <-, undirected or none."""
    differs = (graph != 0) != (truth != 0)
    return int(np.count_nonzero(np.triu(differs | differs.T, 1)))


class Race:
    """Answers of qbs and of its peers, on the same data.

    Args:
        field: The peers.
        is_asked: Whether they are asked at all.
    """

    def __init__(self, field: Field, *, is_asked: bool = True):
        self._field, self._is_asked = field, is_asked
        self._answers: dict[str, list[Answer]] = {name: [] for name in ("qbs", *field.names)}
        self._truths: list[np.ndarray] = []
        self._marks: list[str] = []

    def run(self, own: Answer, data: np.ndarray, truth: np.ndarray, mark: str = "") -> None:
        """Take down the answer of qbs, with a mark, and let the peers answer."""
        self._answers["qbs"].append(own)
        self._truths.append(truth)
        self._marks.append(mark)
        for name in self._field.names:
            answer = self._field.ask(name, data) if self._is_asked else Answer(None, said="-")
            self._answers[name].append(answer)

    def distances(self, name: str) -> list[int]:
        """Return how far those graphs are from the truth that there are."""
        answers = zip(self._answers[name], self._truths, strict=True)
        return [distance(answer.graph, truth) for answer, truth in answers if answer.graph is not None]

    def cells(self) -> list[str]:
        """Return distances, CPU seconds, and for peers the ratio of these to ours; see `heads`."""
        cells: list[str] = []
        own = statistics.median(answer.cpu for answer in self._answers["qbs"])
        for name, answers in self._answers.items():
            there = [answer.cpu for answer in answers if answer.graph is not None]
            if not there:
                cells += [answers[0].said, "", ""]
                continue
            said = [answer.said for answer in answers if answer.graph is None]
            marks = self._marks if name == "qbs" else [""] * len(there)
            found = [f"{far}{mark}" for far, mark in zip(self.distances(name), marks, strict=True)]
            middle = statistics.median(there)
            cells += [" ".join([*found, *said]), seconds(middle)]
            cells += [] if name == "qbs" else [seconds(middle / own)]
        return cells

    def means(self) -> list[str]:
        """Return mean distances of those that always answered, and that of qbs less the best peer's."""
        everyone = {name: self.distances(name) for name in self._answers}
        means = {
            name: statistics.fmean(far) for name, far in everyone.items() if len(far) == len(self._truths)
        }
        peers = [mean for name, mean in means.items() if name != "qbs"]
        said = [f"{means[name]:.1f}" if name in means else "" for name in everyone]
        return [*said, f"{means['qbs'] - min(peers):+.1f}" if peers else ""]


def heads(names: list[str]) -> list[str]:
    """Return what stands above `Race.cells`."""
    return ["qbs", "s"] + [head for name in names for head in (name, "s", "ratio")]


def seconds(value: float) -> str:
    """Return a time, or a ratio, in two digits."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"
