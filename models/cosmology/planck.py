"""Planck 2018 plik_lite with CAMB: a real likelihood that takes seconds a call."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpyro.distributions as dist
from jaxtyping import Float

from qbs.inference.target import Target
from qbs.models.cosmology._likelihood import DataPath
from qbs.models.cosmology._plik_lite import CMBSpectraTable, planck_lite
from qbs.models.cosmology.camb_spectra import CambSettings, camb_parameters, lensed_spectra, require_camb

SPECTRA: Mapping[str, tuple[str, ...]] = {
    "TTTEEE": ("TT", "TE", "EE"),
    "TT": ("TT",),
    "TE": ("TE",),
    "EE": ("EE",),
}
"""The choices of spectra, and what each is of."""

CALIBRATION_ERROR = 0.0025
"""The standard error of the absolute calibration A_planck about 1 (arXiv:1907.12875)."""

_CALIBRATION = "A_planck"
_NUM_NODES = 32


@dataclass(frozen=True, eq=False)
class PlanckLite:
    r"""The Gaussian likelihood of binned CMB spectra, with the absolute calibration.

    \(\chi^2(A) = r^T C^{-1} r\), \(r = d - t/A^2\), for data d, their covariance C, and the theory t in the
    bins of the data.

    Attributes:
        table: The data.
        spectra: One of `SPECTRA`.
        low_multipoles: Whether two bins of the temperature below l = 30 are among the data.
        whitening: W with \(W^T W = C^{-1}\), for the chosen spectra.
        whitened_data: W d.

    References:
        Planck Collaboration (2020), arXiv:1907.12875; Prince & Dunkley (2019), arXiv:1909.05869, for the bins
        below l = 30.
    """

    table: CMBSpectraTable
    spectra: str
    low_multipoles: bool
    whitening: Float[np.ndarray, "num_chosen num_chosen"]
    whitened_data: Float[np.ndarray, " num_chosen"]

    @classmethod
    def from_table(
        cls, table: CMBSpectraTable, spectra: str = "TTTEEE", *, low_multipoles: bool = False
    ) -> "PlanckLite":
        """Return the likelihood of a table.

        Raises:
            ValueError: If `spectra` is none of `SPECTRA`, or lacks the temperature of the low multipoles.
        """
        if spectra not in SPECTRA:
            raise ValueError(f"spectra must be one of {', '.join(SPECTRA)}, not {spectra!r}")
        if low_multipoles and "TT" not in SPECTRA[spectra]:
            raise ValueError(f"low_multipoles are of the temperature, and spectra is {spectra!r}")
        chosen = np.flatnonzero([kind in SPECTRA[spectra] for kind in table.kinds])
        covariance, values = table.covariance[np.ix_(chosen, chosen)], table.values[chosen]
        if low_multipoles:
            covariance = np.pad(covariance, ((0, 2), (0, 2)))
            covariance[-2:, -2:] = np.diag(table.low_errors**2)
            values = np.append(values, table.low_values)
        whitening = np.linalg.inv(np.linalg.cholesky(covariance))
        return cls(table, spectra, low_multipoles, whitening, whitening @ values)

    @property
    def num_points(self) -> int:
        """The number of measured values: 613 of TTTEEE, 215 of TT; low multipoles are two more."""
        return self.whitened_data.size

    def chi2(self, theory: Mapping[str, np.ndarray], calibration: float | int = 1.0) -> float:
        """Return chi squared.

        Args:
            theory: C_l [muK^2] of each chosen spectrum, from l = 0 to at least 2508.
            calibration: A_planck.

        Returns:
            A number >= 0.
        """
        return float(np.sum((self.whitened_data - self._whitened(theory) / calibration**2) ** 2))

    def log_likelihood(self, theory: Mapping[str, np.ndarray]) -> float:
        r"""Return the logarithm of the mean of \(e^{-\chi^2/2}\) over the prior of the calibration.

        The integral over \(A \sim N(1, 0.0025^2)\) is that of a Gaussian in \(1/A^2\) times what is almost
        one. It is done by 32 Gauss-Hermite nodes, which give ten digits unless the theory is off by tens of
        per cent.

        Args:
            theory: C_l [muK^2] of each chosen spectrum, from l = 0 to at least 2508.

        Returns:
            The log likelihood in nats, without normalising constants of the data.
        """
        whitened = self._whitened(theory)
        # chi2 = least + precision * (a - best)^2 with a = 1/A^2.
        precision = whitened @ whitened
        best = whitened @ self.whitened_data / precision
        least = np.sum((self.whitened_data - best * whitened) ** 2)
        # Near A = 1 the prior of a is N(1, (2 sigma)^2): with it, a has a Gaussian posterior.
        prior_precision = 0.25 / CALIBRATION_ERROR**2
        total = precision + prior_precision
        mean = (precision * best + prior_precision) / total
        if not math.isfinite(total):
            return math.nan
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NUM_NODES)
        nodes = mean + nodes / math.sqrt(total)
        is_possible = nodes > 0
        if not is_possible.any():
            return -math.inf
        nodes = nodes[is_possible]
        # The exact prior density of a over that Gaussian.
        deviation = nodes**-0.5 - 1.0
        log_ratio = -0.5 * (deviation / CALIBRATION_ERROR) ** 2 - 1.5 * np.log(nodes)
        log_ratio += 0.5 * prior_precision * (nodes - 1.0) ** 2
        log_weights = np.log(weights[is_possible] / math.sqrt(2.0 * math.pi))
        log_mean = np.logaddexp.reduce(log_weights + log_ratio)
        at_best = least + precision * prior_precision / total * (best - 1.0) ** 2
        return float(log_mean - 0.5 * at_best + 0.5 * math.log(prior_precision / total))

    def _whitened(self, theory: Mapping[str, np.ndarray]) -> np.ndarray:
        kinds = SPECTRA[self.spectra]
        parts = [self.table.binned(kind, theory[kind]) for kind in kinds]
        if self.low_multipoles:
            parts.append(self.table.binned_low(theory["TT"]))
        return self.whitening @ np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class CambLikelihood:
    """The log likelihood of Planck as a function of cosmological parameters, which can be sent to processes.

    Attributes:
        planck: The likelihood of spectra.
        settings: How CAMB computes them.
    """

    planck: PlanckLite
    settings: CambSettings

    def __call__(self, parameters: Mapping[str, Any]) -> float:
        """Return the log likelihood in nats, `-inf` where there is no such universe.

        Args:
            parameters: See `camb_spectra.camb_parameters`; without `A_planck`, the calibration is
                marginalised.
        """
        theory = lensed_spectra(parameters, self.settings)
        if theory is None:
            return -math.inf
        if _CALIBRATION in parameters:
            return -0.5 * self.planck.chi2(theory, float(parameters[_CALIBRATION]))
        return self.planck.log_likelihood(theory)

    def derived(self, parameters: Mapping[str, Any]) -> dict[str, float]:
        """Return H0 [km/s/Mpc] and Om, which take no spectra; NaN where there is no such universe."""
        found = camb_parameters(parameters, self.settings)
        return {
            "H0": math.nan if found is None else float(found.H0),
            "Om": math.nan if found is None else float(found.omegam),
        }


def planck_lite_priors() -> dict[str, dist.Distribution]:
    r"""Return the default priors of flat LCDM: boxes about fifteen posterior errors wide to each side.

    `tau` has that of the E modes at large angles alone, which plik_lite does not contain: 0.0506 +- 0.0086,
    cut at 0.01. (The 0.0544 +- 0.0073 of Planck's tables contains plik_lite, which would count twice.)

    Returns:
        Priors of `Obh2`, `Och2`, `theta_MC_100`, `tau`, `logA` and `ns`.

    References:
        Planck Collaboration (2020), arXiv:1807.06209.
    """
    return {
        "Obh2": dist.Uniform(0.020, 0.025),
        "Och2": dist.Uniform(0.10, 0.14),
        "theta_MC_100": dist.Uniform(1.03, 1.05),
        "tau": dist.TruncatedNormal(0.0506, 0.0086, low=0.01),
        "logA": dist.Uniform(2.7, 3.4),
        "ns": dist.Uniform(0.90, 1.05),
    }


def planck_lite_target(
    spectra: str = "TTTEEE",
    *,
    low_multipoles: bool = False,
    priors: Mapping[str, dist.Distribution] | None = None,
    calibration: str = "marginalised",
    settings: CambSettings | None = None,
    data_path: DataPath = None,
) -> Target:
    r"""Return Planck 2018 plik_lite with a prior on tau, in flat LCDM by CAMB, as a target of `qbs.fit`.

    One call takes some seconds of CPU time, nearly all of it CAMB's: give workers, `executor=`, and a
    `checkpoint=`. H0 and Om are derived.

    Args:
        spectra: "TTTEEE" (613 values), "TT" (215), "TE" or "EE" (199).
        low_multipoles: Whether to add the temperature at l = 2 to 29, as two Gaussian bins. plik_lite does
            not have it; Planck's published posteriors of TT,TE,EE+lowE do.
        priors: Priors that replace those of `planck_lite_priors`; one of `h` replaces `theta_MC_100`.
        calibration: "marginalised" integrates the absolute calibration A_planck, with its Gaussian prior
            1 +- 0.0025, out of each likelihood; "sampled" makes it a parameter, `A_planck`.
        settings: How CAMB computes; `CambSettings()` by default.
        data_path: Where the files are; see `tables.planck_lite`.

    Returns:
        The target, whose parameters are `Obh2`, `Och2`, `theta_MC_100` or `h`, `tau`, `logA`
        (\(\ln 10^{10} A_s\)) and `ns`, and `A_planck` if it is sampled.

    Raises:
        ValueError: If a setting or the name of a prior is unknown.
        DataError: If a file is missing or damaged.
        MissingExtraError: If CAMB is not installed.
    """
    if calibration not in ("marginalised", "sampled"):
        raise ValueError(f"calibration must be 'marginalised' or 'sampled', not {calibration!r}")
    require_camb()
    chosen = planck_lite_priors()
    if calibration == "sampled":
        chosen[_CALIBRATION] = dist.Normal(1.0, CALIBRATION_ERROR)
    given = dict(priors or {})
    if unknown := sorted(set(given) - {*chosen, "h"}):
        raise ValueError(f"there is no parameter {', '.join(unknown)}; there are {', '.join(chosen)} and h")
    if "h" in given:
        if "theta_MC_100" in given:
            raise ValueError("priors may have h or theta_MC_100, not both")
        chosen = {("h" if name == "theta_MC_100" else name): prior for name, prior in chosen.items()}
    planck = PlanckLite.from_table(planck_lite(data_path), spectra, low_multipoles=low_multipoles)
    likelihood = CambLikelihood(planck, settings or CambSettings())
    return Target(
        likelihood,
        chosen | given,
        derived=likelihood.derived,
        name=f"planck_lite_{spectra}{'_low' if low_multipoles else ''}",
        in_jax=False,
    )
