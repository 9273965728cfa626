"""Show the bias of the published in-loop method, beside dynesty without a network.

Each problem has a known evidence: closed forms and quadrature, and for LCDM on real data (chronometers,
DESI DR2, Pantheon+, a prior from BBN) importance sampling of the true likelihood, to 0.001 nats. A row is a
method on a problem: the error of ln Z in each run, its mean, the mean error that the runs report, true calls,
and CPU seconds.

* `dynesty`: no network.
* `in-loop`: the method at its defaults, which are published.
* `in-loop small network`: smaller networks in larger batches, trained earlier and looked after more often;
  a tenth of the time.
* `in-loop on slices`: the same switch and networks on the live points of `Slice`.
* `genetic start`: no network; live points from a genetic search, taken for draws from the prior.
* `corrected`: what qbs does in its place.

    python benchmarks/in_loop.py [--problems gaussian,lcdm] [--methods dynesty,in-loop] [--seeds 3]
        [--num-live 1000] [--data-path FOLDER]
"""

import argparse
import platform
import sys
import time
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from nested_problems import Known, closed_forms, real

import qbs
from qbs.inference.nested import Corrected, Dynesty, InLoop

PROBLEMS = {
    "gaussian": "gaussian_2",
    "gaussian 5": "gaussian_5",
    "rosenbrock": "rosenbrock_2",
    "eggbox": "eggbox",
    "shells": "shells_2",
    "lcdm": "LCDM",
}
"""The problems by name here, and in `nested_problems`."""


def methods(num_live: int) -> dict[str, Any]:
    small = InLoop(
        num_live=num_live,
        start_iterations=2 * num_live,
        num_random=50,
        width=32,
        batch_size=32,
        learning_rate=0.003,
        update_interval=num_live // 2,
    )
    return {
        "dynesty": Dynesty(num_live=num_live),
        "in-loop": InLoop(num_live=num_live),
        "in-loop small network": small,
        "in-loop on slices": InLoop(num_live=num_live, sampler="slice"),
        "genetic start": InLoop(num_live=num_live, init="genetic", start_iterations=10**9, start_dlogz=1e-9),
        "corrected": Corrected(),
    }


def row(known: Known, method: Any, seeds: int) -> str:
    errors, told, calls, shares, seconds = [], [], [], [], []
    for seed in range(seeds):
        start = time.process_time()
        found = qbs.fit(known.model, method=method, key=jax.random.key(seed), progress=False)
        seconds.append(time.process_time() - start)
        errors.append(found.log_evidence - known.truth)
        told.append(found.log_evidence_error)
        calls.append(found.num_likelihood_calls)
        shares.append(float(np.mean(found.stats.get("is_by_network", np.zeros(1)))))
        print(f"seed {seed}: {errors[-1]:+.3f} +- {told[-1]:.3f}, {calls[-1]:,}", file=sys.stderr, flush=True)
    each = " ".join(f"{error:+.2f}" for error in errors)
    return (
        f"{np.mean(errors):+.2f} | {np.mean(told):.2f} | {np.mean(calls):,.0f} | {np.mean(shares):.0%} | "
        f"{np.mean(seconds):.0f} | {each} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--methods", default=",".join(methods(1000)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-live", type=int, default=1000)
    parser.add_argument("--data-path", default=None, help="folder of the survey tables, for lcdm")
    given = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("qbs-jax", "jax", "dynesty"))
    print(
        f"{packages}; Python {platform.python_version()}, {platform.machine()}; {given.num_live} live points"
    )
    print(
        "| problem | method | mean error of ln Z | error told | true calls | by network | CPU s | each run |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    chosen = methods(given.num_live)
    for name in given.problems.split(","):
        if name == "lcdm" and given.data_path is None:
            print("| lcdm | left out: name the tables by --data-path |")
            continue
        known = real(PROBLEMS[name], given.data_path) if name == "lcdm" else closed_forms()[PROBLEMS[name]]
        for label in given.methods.split(","):
            print(f"| {name} | {label} | {row(known, chosen[label.strip()], given.seeds)}", flush=True)


if __name__ == "__main__":
    main()
