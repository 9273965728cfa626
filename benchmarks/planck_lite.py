"""Fit flat LCDM to Planck 2018 plik_lite with CAMB, by worker processes, and go on where a run was stopped.

A call takes seconds of CPU time. The default is a few calls, which say nothing about cosmology; a posterior
needs --max-calls 0, no limit. The same command goes on with a run that was interrupted or killed, and makes
no call twice; another method or limit is another run, and needs another folder. At the end it prints what a
call cost, and the posterior beside what Planck published for TT,TE,EE+lowE (arXiv:1807.06209, table 2), whose
polarization at large angles is here the prior of tau, and whose temperature there is left out without
--low-multipoles.

    python benchmarks/planck_lite.py [--method Dynesty] [--set num_live=100] [--max-calls 40] [--workers 2]
        [--spectra TTTEEE] [--low-multipoles] [--folder runs/planck_lite] [--data-path FOLDER] [--seed 1]

It ends at once where CAMB or the files of plik_lite are missing.
"""

import argparse
import ast
import dataclasses
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

import qbs
from qbs.errors import DataError, MissingExtraError
from qbs.inference import nested
from qbs.models.cosmology import planck_lite_target

PUBLISHED = {
    "Obh2": (0.02236, 0.00015),
    "Och2": (0.1202, 0.0014),
    "theta_MC_100": (1.04090, 0.00031),
    "tau": (0.0544, 0.0076),
    "logA": (3.045, 0.016),
    "ns": (0.9649, 0.0044),
    "H0": (67.27, 0.60),
    "Om": (0.3166, 0.0084),
}
DEFAULTS = {"Dynesty": {"num_live": 20, "dlogz": 0.5, "batch_size": 4}}


def setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def method_of(name: str, given: dict[str, Any], max_calls: int) -> Any:
    kind = getattr(nested, name)
    has_limit = "max_calls" in {field.name for field in dataclasses.fields(kind)}
    limit = {"max_calls": max_calls} if max_calls and has_limit else {}
    return kind(**(DEFAULTS.get(name, {}) | limit | given))


def report(posterior: qbs.Posterior, calls: nested.CallRecords) -> None:
    seconds = calls.seconds[calls.status == 0]
    record = posterior.provenance
    print(
        f"{len(calls.points):,} calls in the log, {record['num_new_calls']:,} of them by this run, "
        f"{int(np.sum(calls.status != 0))} failed; {np.median(seconds):.2f} s a call by the clock (median)"
    )
    print(f"best log likelihood {calls.log_likelihood.max():.2f}")
    print(f"log evidence {posterior.log_evidence:.2f} +- {posterior.log_evidence_error:.2f}")
    print(f"{'':14}{'qbs':>22}{'Planck 2018':>22}")
    for name, (mean, error) in PUBLISHED.items():
        if name in posterior.samples:
            found = f"{posterior.mean(name):.5g} +- {posterior.sd(name):.2g}"
            print(f"{name:14}{found:>22}{f'{mean:.5g} +- {error:.2g}':>22}")
    for problem in posterior.problems:
        print(f"! {problem}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="Dynesty", help="a method of qbs.inference.nested (Dynesty)")
    parser.add_argument(
        "--set", action="append", default=[], type=setting, help="a setting of it, NAME=VALUE"
    )
    parser.add_argument("--max-calls", type=int, default=40, help="stop after these (40); 0: no limit")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (2)")
    parser.add_argument("--spectra", default="TTTEEE", help="TTTEEE, TT, TE or EE (TTTEEE)")
    parser.add_argument("--low-multipoles", action="store_true", help="add the temperature below l = 30")
    parser.add_argument("--folder", type=Path, default=Path("runs/planck_lite"), help="for the checkpoint")
    parser.add_argument("--data-path", help="where plik_lite is")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        target = planck_lite_target(
            options.spectra, low_multipoles=options.low_multipoles, data_path=options.data_path
        )
    except (DataError, MissingExtraError) as error:
        print(f"left out: {error}")
        return
    method = method_of(options.method, dict(options.set), options.max_calls)
    packages = ", ".join(f"{name} {version(name)}" for name in ("qbs-jax", "camb", "dynesty"))
    print(f"{platform.machine()}, Python {platform.python_version()}, {packages}; {method}", flush=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = options.folder / f"{target.name}.checkpoint"
    posterior = qbs.fit(
        target,
        method=method,
        key=jax.random.key(options.seed),
        executor=options.workers,
        checkpoint=checkpoint,
    )
    posterior.save(options.folder / f"{target.name}.qbs")
    report(posterior, nested.read_calls(checkpoint))


if __name__ == "__main__":
    main()
