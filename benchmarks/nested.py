"""Compare the nested samplers of qbs with dynesty, nautilus, UltraNest and BlackJAX's `nss`.

The problems are those of `benchmarks/nested_problems.py`, whose log evidences are known: closed forms, and,
where `--data-path` names the folder of survey tables, dark-energy models on real data (LCDM, CPL, oCPL). All
methods run in one process, in turns, a seed after the other. Methods of qbs run at their defaults, the peers
of `benchmarks/nested_peers.py` as is said there; what is not installed is left out with a word.

A row is a method on a problem, over seeds:

* error: ln Z less the truth, mean and standard error; then that of each run, with * where it is more than
  three times what the run tells of, and ! where a run of qbs tells of a problem;
* told: the error that runs report, mean;
* calls of the likelihood, mean, and how many times as many dynesty makes;
* ESS of the weighted draws for a thousand calls;
* CPU seconds of the whole process, median, how many times as many dynesty takes, and compiling: the first
  run's excess over the median of the others, with no cache on disk. With one seed compiling is in it.

    pip install nautilus-sampler ultranest blackjax
    taskset -c 0 python benchmarks/nested.py [--problems shells_2,LCDM] [--methods Corrected,dynesty]
        [--seeds 3] [--data-path FOLDER] [--max-calls 1000000] [--no-times]
"""

import argparse
import platform
import statistics
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import jax
import numpy as np
from clock import kind, now
from nested_peers import PEERS, Found, Run, is_installed
from nested_problems import REFERENCE, Known, closed_forms, real

import qbs
from qbs.inference import nested

OWN = ("Slice", "Dynesty", "Corrected", "Verified", "Importance", "InLoop")
PROBLEMS = (
    "gaussian_5",
    "shells_2",
    "shells_5",
    "eggbox",
    "rosenbrock_2",
    "rosenbrock_3",
    "funnel_2",
    *REFERENCE,
)


class Timed(NamedTuple):
    """A run and what it took, in seconds."""

    found: Found
    seconds: float


def with_qbs(name: str, case: Known, max_calls: int) -> Run:
    # Corrected and Importance have limits of their own, far below.
    own = {} if name in ("Corrected", "Importance") else {"max_calls": max_calls}
    method = getattr(nested, name)(**own)

    def run(seed: int) -> Found:
        posterior = qbs.fit(case.model, method=method, key=jax.random.key(seed), progress=False)
        for problem in posterior.problems:
            print(f"{name}, seed {seed}: {problem}", file=sys.stderr, flush=True)
        return Found(
            posterior.log_evidence,
            posterior.log_evidence_error,
            posterior.num_likelihood_calls,
            posterior.ess,
            len(posterior.problems),
            any("max_calls" in problem for problem in posterior.problems),
        )

    return run


def available(names: list[str]) -> list[str]:
    """Return those of the methods that can run, and say which cannot."""
    found = []
    for name in names:
        if name in OWN and not hasattr(nested, name):
            print(f"{name} is left out: this qbs has no qbs.inference.nested.{name}")
        elif name in PEERS and not is_installed(name):
            print(f"{name} is left out: it is not installed (pip install {name})")
        elif name not in OWN and name not in PEERS:
            raise SystemExit(f"there is no method {name}; there are {', '.join((*OWN, *PEERS))}")
        else:
            found.append(name)
    return found


def compare(case: Known, methods: list[str], seeds: int, max_calls: int) -> dict[str, list[Timed]]:
    """Run all methods in turns."""
    runs: dict[str, Run] = {
        name: PEERS[name](case, max_calls) if name in PEERS else with_qbs(name, case, max_calls)
        for name in methods
    }
    figures: dict[str, list[Timed]] = {name: [] for name in methods}
    for seed in range(seeds):
        for name, run in runs.items():
            start = now()
            found = run(seed)
            figures[name].append(Timed(found, now() - start))
            print(
                f"{name}, seed {seed}: {found}, {figures[name][-1].seconds:.1f} s",
                file=sys.stderr,
                flush=True,
            )
    return figures


def seconds_of(runs: list[Timed]) -> tuple[float, float | None]:
    """Return the time of a run, and of compiling, None with a single one."""
    times = [run.seconds for run in runs]
    if len(times) == 1:
        return times[0], None
    typical = statistics.median(times[1:])
    return typical, max(times[0] - typical, 0.0)


def row(problem: str, name: str, truth: float, figures: dict[str, list[Timed]], *, with_times: bool) -> str:
    runs = [timed.found for timed in figures[name]]
    errors = np.array([run.log_evidence - truth for run in runs])
    each = " ".join(
        f"{error:+.3f}{'*' * bool(abs(error) > 3 * run.told)}{'!' * bool(run.num_problems)}"
        f"{' (stopped)' * run.is_stopped}"
        for error, run in zip(errors, runs, strict=True)
    )
    spread = f" ({errors.std(ddof=1) / len(errors) ** 0.5:.3f})" if len(errors) > 1 else ""
    calls = mean_calls(figures[name])
    cells = [
        problem,
        name,
        f"{errors.mean():+.3f}{spread}",
        each,
        f"{np.mean([run.told for run in runs]):.3f}",
        f"{calls:,.0f}",
        f"{mean_calls(figures['dynesty']) / calls:.2f}" if "dynesty" in figures else "",
        f"{1000 * np.mean([run.ess / run.num_calls for run in runs]):.3g}",
    ]
    if with_times:
        typical, compiling = seconds_of(figures[name])
        cells += [
            f"{typical:.1f}",
            f"{seconds_of(figures['dynesty'])[0] / typical:.2f}" if "dynesty" in figures else "",
            "" if compiling is None else f"{compiling:.1f}",
        ]
    return f"| {' | '.join(cells)} |"


def mean_calls(runs: list[Timed]) -> float:
    return float(np.mean([timed.found.num_calls for timed in runs]))


def packages() -> str:
    found = []
    for name in ("qbs-jax", "jax", *PEERS):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = closed_forms()
    parser.add_argument(
        "--problems", default=",".join(PROBLEMS), help=f"of {', '.join((*known, *REFERENCE))}"
    )
    parser.add_argument(
        "--methods", default=",".join((*OWN, *PEERS)), help="names, with commas (default all)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--data-path", default=None, help="folder of the survey tables, for LCDM, CPL, oCPL")
    parser.add_argument("--max-calls", type=int, default=1_000_000, help="of a run (default 1,000,000)")
    parser.add_argument("--no-times", action="store_true", help="for a machine that is not idle")
    settings = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # noqa: FBT003
    print(f"{platform.machine()}, {jax.default_backend()}, Python {platform.python_version()}, {packages()}")
    methods = available(settings.methods.split(","))
    heads = ["problem", "method", "error of ln Z", "each run", "told", "calls", "dynesty / calls"]
    heads += ["ESS / 1,000 calls"]
    if not settings.no_times:
        heads += [f"{kind()} s", f"dynesty / {kind()} s", "compiling"]
    print(f"\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    for problem in settings.problems.split(","):
        if problem in REFERENCE and settings.data_path is None:
            print(f"{problem} is left out: name the folder of survey tables by --data-path", file=sys.stderr)
            continue
        case = known[problem] if problem in known else real(problem, settings.data_path)
        figures = compare(case, methods, settings.seeds, settings.max_calls)
        for name in methods:
            print(row(problem, name, case.truth, figures, with_times=not settings.no_times), flush=True)


if __name__ == "__main__":
    main()
