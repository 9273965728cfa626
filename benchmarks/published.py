"""Compare posteriors of `qbs.models.cosmology` with those that the surveys published.

Each case has the default priors of qbs, and one neutrino of 0.06 eV where the CMB is among the data, as in
the papers. A row is one parameter: the published mean and error, those of qbs, their difference in published
errors, and its Monte Carlo error. Where a published error has two sides, their mean is taken. What is
published with the whole CMB (Planck and ACT, temperature, polarization and lensing) is compared with what its
compression to three numbers gives: that is part of the difference.

The posteriors are not those of a sampler but importance samples of the likelihood, seconds each: Newton's
method finds the peak, Student-t draws around it are weighted, and their moments are those of the next draws.

    python benchmarks/published.py [--data-path FOLDER] [--cases desi,desi_cmb] [--draws 20000] [--seed 1]

Tables that are too large to ship are looked for as everywhere in qbs; cases whose tables are not there are
left out. The last line names the rows beyond 0.3 published errors.
"""

import argparse
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import multivariate_t

import qbs
from qbs.errors import DataError, MissingExtraError
from qbs.models.cosmology import Analysis

BAR = 0.3  # published errors
DESI = "arXiv:2503.14738, table V"
DOVEKIE = "arXiv:2511.07517, table 10"
CMB = {"mnu": 0.06}
# Near all posteriors here, and how far Newton's method looks around.
START = {"Om": 0.315, "Obh2": 0.0222, "h": 0.672, "hrd": 101.0, "w": -0.8, "wa": -0.7, "Ok": 0.0}
SCALE = {"Om": 0.006, "Obh2": 0.00013, "h": 0.006, "hrd": 0.7, "w": 0.06, "wa": 0.25, "Ok": 0.03}
BATCH = 64
HEAVY_TAILS = 4.0  # degrees of freedom
NUM_STAGES, STAGE_DRAWS, ENOUGH = 4, 2000, 0.5


class Case(NamedTuple):
    """A posterior that was published.

    Attributes:
        model: The model of qbs.
        data: Its data sets.
        published: Mean and error by parameter; H0 in km/s/Mpc, hrd in Mpc.
        source: Where.
        priors: Priors that differ from the defaults of qbs.
        sound_horizon: How the sound horizon is set.
    """

    model: str
    data: tuple[str, ...]
    published: Mapping[str, tuple[float, float]]
    source: str
    priors: Mapping[str, Any] = {}
    sound_horizon: str = "formula"


def with_cmb(*more: str, **published: tuple[float, float]) -> Case:
    source = DOVEKIE if "des_sn5yr" in more else DESI
    return Case("CPL", ("desi_dr2", "cmb_thetastar", *more), published, source, CMB)


CASES: dict[str, Case] = {
    "desi": Case(
        "LCDM", ("desi_dr2",), {"Om": (0.2975, 0.0086), "hrd": (101.54, 0.73)}, DESI, sound_horizon="free"
    ),
    "pantheon_plus": Case("LCDM", ("pantheon_plus",), {"Om": (0.334, 0.018)}, "arXiv:2202.04077, table 3"),
    "union3": Case("LCDM", ("union3",), {"Om": (0.356, 0.027)}, "arXiv:2311.12098, abstract"),
    "des_sn5yr": Case("LCDM", ("des_sn5yr",), {"Om": (0.330, 0.015)}, "arXiv:2511.07517, abstract"),
    "desi_cmb_lcdm": Case(
        "LCDM",
        ("desi_dr2", "cmb_thetastar"),
        {"Om": (0.3027, 0.0036), "H0": (68.17, 0.28)},
        DESI,
        CMB,
    ),
    "desi_cmb": with_cmb(w=(-0.42, 0.21), wa=(-1.75, 0.58), Om=(0.353, 0.021), H0=(63.6, 1.85)),
    "desi_cmb_pantheon_plus": with_cmb(
        "pantheon_plus", w=(-0.838, 0.055), wa=(-0.62, 0.205), Om=(0.3114, 0.0057), H0=(67.51, 0.59)
    ),
    "desi_cmb_union3": with_cmb(
        "union3", w=(-0.667, 0.088), wa=(-1.09, 0.29), Om=(0.3275, 0.0086), H0=(65.91, 0.84)
    ),
    "desi_cmb_des_sn5yr": with_cmb("des_sn5yr", w=(-0.803, 0.054), wa=(-0.72, 0.21), H0=(67.47, 0.55)),
}
"""The cases by name."""


class Sample(NamedTuple):
    """A weighted sample of a posterior.

    Attributes:
        values: Draws by parameter, derived ones among them.
        weights: Their weights, which sum to 1.
    """

    values: dict[str, np.ndarray]
    weights: np.ndarray

    @property
    def effective_size(self) -> float:
        """Kish's effective sample size."""
        return float(1.0 / np.sum(self.weights**2))

    def moments(self, name: str) -> tuple[float, float]:
        """Return mean and standard deviation."""
        mean = float(self.weights @ self.values[name])
        return mean, float(np.sqrt(self.weights @ (self.values[name] - mean) ** 2))


class Posterior:
    """The log likelihood of an analysis within uniform priors, for many points at a time.

    Args:
        analysis: Of the likelihood and the priors.
        batch: Points evaluated together.
    """

    def __init__(self, analysis: Analysis, batch: int = BATCH):
        self.names, self._batch = analysis.parameters, batch
        self._low, self._high = np.array([analysis.prior_range(name) for name in self.names], dtype=float).T

        def named(point: Any) -> dict[str, Any]:
            return dict(zip(self.names, point, strict=True))

        self._log_likelihood = jax.jit(jax.vmap(lambda point: analysis.log_likelihood(named(point))))
        self._derived = jax.jit(jax.vmap(lambda point: analysis.derived(named(point))))

    @property
    def log_volume(self) -> float:
        """Log of the volume within the priors."""
        return float(np.log(self._high - self._low).sum())

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return the log likelihood; -inf outside the priors."""
        inside = np.flatnonzero(np.all((points > self._low) & (points < self._high), axis=1))
        values = np.full(len(points), -np.inf)
        if inside.size:
            values[inside] = _in_batches(self._log_likelihood, points[inside], self._batch)
        return values

    def all_values(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """Return parameters and derived ones at points within the priors."""
        found = _in_batches(self._derived, points, self._batch)
        return {**found, **dict(zip(self.names, points.T, strict=True))}


def _in_batches(function: Any, points: np.ndarray, batch: int) -> Any:
    """Evaluate a function on any number of points, in batches of one size, so that it is compiled once."""
    filled = np.concatenate([points, np.repeat(points[-1:], -len(points) % batch, axis=0)])
    parts = [function(jnp.asarray(part)) for part in np.split(filled, len(filled) // batch)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(points)], *parts)


def peak(posterior: Posterior) -> tuple[np.ndarray, np.ndarray]:
    """Return the most likely point and the covariance there, by damped Newton steps on differences."""
    scale = np.array([SCALE[name] for name in posterior.names])
    steps = 0.05 * scale
    dim = len(scale)
    unit = np.diag(steps)
    pairs = [(i, j) for i in range(dim) for j in range(i)]
    offsets = np.stack(
        [np.zeros(dim), *unit, *-unit] + [sign * (unit[i] + unit[j]) for i, j in pairs for sign in (1, -1)]
    )

    def local(point: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        values = posterior(point + offsets)
        centre, ahead, behind = values[0], values[1 : dim + 1], values[dim + 1 : 2 * dim + 1]
        curvature = np.diag(ahead + behind - 2 * centre)
        for (i, j), (both, neither) in zip(pairs, values[2 * dim + 1 :].reshape(-1, 2), strict=True):
            mixed = both + neither - ahead[i] - behind[i] - ahead[j] - behind[j] + 2 * centre
            curvature[i, j] = curvature[j, i] = mixed / 2
        return centre, (ahead - behind) / 2, curvature

    point = np.array([START[name] for name in posterior.names])
    for _ in range(40):
        value, slope, curvature = local(point)
        sizes, axes = np.linalg.eigh(-curvature)
        sizes = np.abs(sizes)
        dampings = sizes.max() * 10.0 ** np.arange(-10, 1)
        candidates = np.stack(
            [
                point + share * steps * (axes @ ((axes.T @ slope) / (sizes + damping)))
                for damping in dampings
                for share in (1.0, 0.3)
            ]
        )
        values = posterior(candidates)
        if not values.max() > value + 1e-5:
            break
        point = candidates[np.argmax(values)]
    sizes, axes = np.linalg.eigh(-local(point)[2])
    # No wider than some 70 steps, the far side of a degeneracy.
    covariance = (axes / np.maximum(sizes, 2e-4)) @ axes.T * np.outer(steps, steps)
    return point, 1.5 * covariance


def weighted(
    posterior: Posterior, mean: np.ndarray, covariance: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return draws of a t distribution, and their log weights, whose mean exponential is the integral."""
    shape = 0.5 * (covariance + covariance.T) + 1e-12 * np.diag(np.diag(covariance))
    proposal = multivariate_t(mean, shape, df=HEAVY_TAILS, seed=rng)
    points = proposal.rvs(count).reshape(count, -1)
    return points, posterior(points) - proposal.logpdf(points).reshape(count)


def normalized(points: np.ndarray, log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points, and weights that sum to 1."""
    weights = np.exp(log_weights - log_weights.max())
    return points, weights / weights.sum()


def moments(points: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and covariance of points whose weights sum to 1."""
    mean = weights @ points
    return mean, ((points - mean).T * weights) @ (points - mean)


def sampled(analysis: Analysis, *, num_draws: int, seed: int) -> Sample:
    """Return a weighted sample of the posterior."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        posterior = Posterior(analysis)
        mean, covariance = peak(posterior)
        for _ in range(NUM_STAGES):
            points, weights = normalized(*weighted(posterior, mean, covariance, STAGE_DRAWS, rng))
            effective = 1.0 / np.sum(weights**2)
            if effective > 10 * len(mean):
                mean, spread = moments(points, weights)
                covariance = 1.15 * spread
            if effective > ENOUGH * STAGE_DRAWS:
                break
        points, weights = normalized(*weighted(posterior, mean, covariance, num_draws, rng))
        counted = weights > 0
        return Sample(posterior.all_values(points[counted]), weights[counted])


def analysis_of(case: Case, data_path: str | None = None) -> Analysis:
    """Return the analysis of a case."""
    return Analysis(
        case.model, case.data, priors=case.priors, sound_horizon=case.sound_horizon, data_path=data_path
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-path", help="folder of the large tables")
    parser.add_argument("--cases", default=",".join(CASES), help="names of cases, with commas between")
    parser.add_argument("--draws", type=int, default=20_000, help="importance draws")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"qbs {qbs.__version__}, JAX {version('jax')}, {platform.machine()}, {options.draws:,} draws")
    print("\n| data, model | parameter | published | qbs | difference | source |")
    print("| --- | --- | --- | --- | --- | --- |")
    beyond = []
    for name in options.cases.split(","):
        case = CASES[name]
        try:
            analysis = analysis_of(case, options.data_path)
        except (DataError, MissingExtraError) as error:
            print(f"| {name} | left out: {error} | | | | |")
            continue
        sample = sampled(analysis, num_draws=options.draws, seed=options.seed)
        for parameter, (value, error) in case.published.items():
            mean, sd = sample.moments(parameter)
            difference, doubt = (mean - value) / error, sd / np.sqrt(sample.effective_size) / error
            beyond += [f"{name} {parameter}"] * (abs(difference) > BAR)
            print(
                f"| {', '.join(case.data)}; {case.model} | {parameter} | {value:g} ± {error:g} "
                f"| {mean:.4f} ± {sd:.4f} | {difference:+.2f} ± {doubt:.2f} | {case.source} |",
                flush=True,
            )
    print(f"\nbeyond {BAR} published errors: {', '.join(beyond) or 'none'}")


if __name__ == "__main__":
    main()
