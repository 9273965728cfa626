"""Power spectra of the CMB by the Boltzmann code CAMB, an optional extra."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qbs.errors import MissingExtraError

H0_RANGE = (20.0, 100.0)
"""Where the Hubble constant of an acoustic angle is looked for [km/s/Mpc]."""

_DENSITIES = ("Obh2", "Och2", "tau", "logA", "ns")
_ANGLE = "theta_MC_100"


@dataclass(frozen=True)
class CambSettings:
    """What CAMB computes beside the sampled parameters, and how well.

    The defaults are the assumptions of Planck 2018: one of three neutrinos has a mass, helium as from
    big-bang nucleosynthesis, non-linear lensing by HMcode.

    Attributes:
        accuracy: CAMB's AccuracyBoost: finer steps in time and wavenumber. 1 is CAMB's default.
        multipole_sampling: CAMB's lSampleBoost: more multipoles between which spectra are interpolated.
        hierarchy: CAMB's lAccuracyBoost: longer Boltzmann hierarchies.
        lens_potential_accuracy: How far in wavenumber the lensing potential is followed. 0 is linear lensing,
            which is too little for Planck.
        nonlinear: CAMB's halofit_version.
        neutrino_mass: Of the one massive neutrino [eV].
        num_neutrinos: The effective number of species.
        helium: CAMB's table of the helium fraction.
        num_threads: Threads of one call. With as many workers as cores, one each is best; so is the result
            the same to the last bit in any process.

    Raises:
        ValueError: If a setting is out of range.
    """

    accuracy: float | int = 1.0
    multipole_sampling: float | int = 1.0
    hierarchy: float | int = 1.0
    lens_potential_accuracy: float | int = 1.0
    nonlinear: str = "mead2016"
    neutrino_mass: float | int = 0.06
    num_neutrinos: float | int = 3.046
    helium: str = "PArthENoPE_880.2_standard.dat"
    num_threads: int = 1

    def __post_init__(self) -> None:
        for name in ("accuracy", "multipole_sampling", "hierarchy", "num_neutrinos"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"CambSettings: {name} must be above 0, not {getattr(self, name)!r}")
        for name in ("lens_potential_accuracy", "neutrino_mass"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"CambSettings: {name} must be at least 0, not {getattr(self, name)!r}")
        if self.num_threads < 1:
            raise ValueError(f"CambSettings: num_threads must be at least 1, not {self.num_threads!r}")


def require_camb() -> Any:
    """Return the module camb.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import camb
    except ImportError as error:
        raise MissingExtraError("spectra of the CMB need CAMB: pip install 'qbs-jax[camb]'") from error
    return camb


def camb_parameters(parameters: Mapping[str, Any], settings: CambSettings) -> Any:
    r"""Return CAMB's parameters of a flat LCDM universe, with H0 and without spectra.

    Args:
        parameters: `Obh2` and `Och2`, the physical densities of baryons and cold dark matter; `theta_MC_100`,
            100 times the acoustic angle by CosmoMC's formula, or `h`; the optical depth `tau`; `logA`,
            \(\ln 10^{10} A_s\) at 0.05/Mpc; the spectral index `ns`. Others are not read.
        settings: The rest.

    Returns:
        A `camb.CAMBparams`, or `None` where no H0 between 20 and 100 km/s/Mpc has the acoustic angle.

    Raises:
        ValueError: If a parameter is missing.
        MissingExtraError: If CAMB is not installed.
        camb.CAMBError: If CAMB refuses the parameters.
    """
    camb = require_camb()
    missing = [name for name in _DENSITIES if name not in parameters]
    missing += [f"{_ANGLE} or h"] * (_ANGLE not in parameters and "h" not in parameters)
    if missing:
        raise ValueError(f"spectra of the CMB need the parameters {', '.join(missing)}")
    value = {name: float(number) for name, number in parameters.items()}
    is_angle = _ANGLE in value
    found = camb.CAMBparams()
    try:
        found.set_cosmology(
            H0=None if is_angle else 100.0 * value["h"],
            cosmomc_theta=value[_ANGLE] / 100.0 if is_angle else None,
            theta_H0_range=H0_RANGE,
            ombh2=value["Obh2"],
            omch2=value["Och2"],
            tau=value["tau"],
            mnu=settings.neutrino_mass,
            num_massive_neutrinos=1 if settings.neutrino_mass else 0,
            nnu=settings.num_neutrinos,
            bbn_predictor=settings.helium,
        )
    except camb.CAMBParamRangeError:
        return None
    found.InitPower.set_params(As=1e-10 * math.exp(value["logA"]), ns=value["ns"])
    return found


def lensed_spectra(
    parameters: Mapping[str, Any], settings: CambSettings | None = None, *, max_multipole: int = 2508
) -> dict[str, np.ndarray] | None:
    """Return the lensed scalar spectra of a flat LCDM universe.

    Args:
        parameters: See `camb_parameters`.
        settings: How CAMB computes; `CambSettings()` by default.
        max_multipole: The last multipole.

    Returns:
        C_l [muK^2] of TT, TE and EE from l = 0 to the last multipole, not multiplied by l(l+1); `None` where
        there is no such universe.

    Raises:
        ValueError: If a parameter is missing.
        MissingExtraError: If CAMB is not installed.
        camb.CAMBError: If CAMB refuses the parameters.
    """
    settings = settings or CambSettings()
    camb = require_camb()
    found = camb_parameters(parameters, settings)
    if found is None:
        return None
    found.set_for_lmax(max_multipole, lens_potential_accuracy=settings.lens_potential_accuracy)
    found.NonLinearModel.set_params(halofit_version=settings.nonlinear)
    found.set_accuracy(
        AccuracyBoost=settings.accuracy,
        lSampleBoost=settings.multipole_sampling,
        lAccuracyBoost=settings.hierarchy,
    )
    before = camb.config.ThreadNum
    camb.config.ThreadNum = settings.num_threads
    try:
        columns = camb.get_results(found).get_lensed_scalar_cls(max_multipole, CMB_unit="muK", raw_cl=True).T
    finally:
        camb.config.ThreadNum = before
    return {kind: columns[place].copy() for kind, place in (("TT", 0), ("TE", 3), ("EE", 1))}
