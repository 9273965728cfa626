"""Evidences of dark-energy models on real data, by importance samples of their exact likelihood.

The data are cosmic chronometers, DESI DR2, Pantheon+ and a prior of nucleosynthesis on the baryon density;
the priors are the defaults of qbs. Millions of draws of Student's t distributions are weighted, the last of
which moments of the draws before have shaped: no sampler, no surrogate. This is what the tests and the other
benchmarks of evidence are held against.

    python benchmarks/reference_evidences.py --data-path FOLDER [--models LCDM,CPL,oCPL] [--draws 1000000]
"""

import argparse
import platform
from importlib.metadata import version

import jax
import numpy as np
from nested_problems import DATA
from published import Posterior, moments, normalized, peak, weighted
from scipy.special import logsumexp

import qbs
from qbs.models.cosmology import Analysis

STAGES = 4_000, 20_000, 50_000, 200_000  # draws to shape the last


def evidence(analysis: Analysis, num_draws: int, seed: int) -> tuple[float, float, float, str]:
    """Return the log evidence, its standard error, the share of effective draws, the posterior in words."""
    rng = np.random.default_rng(seed)
    posterior = Posterior(analysis, batch=512)
    mean, covariance = peak(posterior)
    for count in (*STAGES, num_draws):
        points, log_weights = weighted(posterior, mean, covariance, count, rng)
        points, weights = normalized(points, log_weights)
        mean, covariance = moments(points, weights)
    said = ", ".join(
        f"{name} {centre:.4f} ± {width:.4f}"
        for name, centre, width in zip(posterior.names, mean, np.sqrt(np.diag(covariance)), strict=True)
    )
    found = float(logsumexp(log_weights)) - np.log(num_draws) - posterior.log_volume
    return found, float(weights.std() * np.sqrt(num_draws)), float(1 / np.sum(weights**2) / num_draws), said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-path", help="folder of the large tables")
    parser.add_argument("--models", default="LCDM,CPL,oCPL", help="names, with commas between")
    parser.add_argument("--draws", type=int, default=1_000_000, help="the last draws")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    print(f"qbs {qbs.__version__}, JAX {version('jax')}, {platform.machine()}, {options.draws:,} draws\n")
    print("| model | ln Z | effective | posterior |\n| --- | --- | --- | --- |")
    for model in options.models.split(","):
        with jax.enable_x64(True):
            analysis = Analysis(model, DATA, data_path=options.data_path)
            found, error, effective, said = evidence(analysis, options.draws, options.seed)
        print(f"| {model} | {found:.4f} ± {error:.4f} | {effective:.0%} | {said} |", flush=True)


if __name__ == "__main__":
    main()
