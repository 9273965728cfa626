"""The CMB in three numbers: tables and likelihoods of its distances and densities."""

import abc
import functools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from qbs.models.cosmology._likelihood import DataPath, Likelihood, is_positive, whitening
from qbs.models.cosmology._table_files import frozen_array, shipped_numbers
from qbs.models.cosmology.background import Cosmology, ambient_array
from qbs.models.cosmology.expansion import cold_density
from qbs.models.cosmology.recombination import acoustic_angle, distance_priors


@dataclass(frozen=True, eq=False)
class CompressedCMBTable:
    """A few numbers that stand for the spectra of the CMB, with their covariance.

    Attributes:
        quantities: What each number is.
        values: The numbers.
        covariance: Covariance of the numbers.
        description: What the table is.
        citation: Where it was published.
    """

    quantities: tuple[str, ...]
    values: Float[np.ndarray, " num_points"]
    covariance: Float[np.ndarray, "num_points num_points"]
    description: str
    citation: str


def _table(name: str, quantities: tuple[str, ...], description: str, citation: str) -> CompressedCMBTable:
    table = shipped_numbers(name, 1 + len(quantities))
    return CompressedCMBTable(
        quantities=quantities,
        values=frozen_array(table[:, 0]),
        covariance=frozen_array(table[:, 1:]),
        description=description,
        citation=citation,
    )


@functools.cache
def cmb_distance_priors() -> CompressedCMBTable:
    """Return shift parameter, acoustic scale and baryon density from Planck 2018 TT,TE,EE+lowE in LCDM.

    Returns:
        The table: R, l_A and Obh2.

    Raises:
        DataError: If the file that ships with qbs is missing or damaged.

    References:
        Chen, Huang & Wang (2019), arXiv:1808.05724, table 1.
    """
    return _table(
        "cmb_shift.csv",
        ("R", "l_A", "Obh2"),
        "distance priors from Planck 2018 TT,TE,EE+lowE",
        "Chen, Huang & Wang (2019), arXiv:1808.05724",
    )


@functools.cache
def cmb_acoustic_angle() -> CompressedCMBTable:
    """Return acoustic angle and physical densities from Planck PR4, free of late-time physics.

    Returns:
        The table: theta_* [rad], Obh2, and Omega h^2 of baryons and cold dark matter.

    Raises:
        DataError: If the file that ships with qbs is missing or damaged.

    References:
        DESI Collaboration (2025), arXiv:2503.14738, appendix A; Lemos & Lewis (2023), arXiv:2302.12911.
    """
    return _table(
        "cmb_thetastar.csv",
        ("theta_star", "Obh2", "Ombch2"),
        "acoustic angle and densities from Planck PR4 CamSpec",
        "DESI Collaboration (2025), arXiv:2503.14738; Lemos & Lewis (2023), arXiv:2302.12911",
    )


class _CompressedCMB(Likelihood):
    """A Gaussian in a few numbers: what the classes below share."""

    data: Float[np.ndarray, " num_points"]
    errors: Float[np.ndarray, " num_points"]
    covariance: Float[np.ndarray, "num_points num_points"]
    whitening: Float[np.ndarray, "num_points num_points"]

    @classmethod
    def load(cls, data_path: DataPath = None) -> "_CompressedCMB":
        """Return the likelihood of the published numbers; `data_path` is not read."""
        del data_path
        return _built(cls, cls._table())

    @staticmethod
    @abc.abstractmethod
    def _table() -> CompressedCMBTable:
        """Return the published numbers."""

    @classmethod
    def from_table(cls, table: CompressedCMBTable) -> "_CompressedCMB":
        """Return the likelihood of a table."""
        return cls(
            data=table.values,
            errors=np.sqrt(np.diag(table.covariance)),
            covariance=table.covariance,
            whitening=whitening(table.covariance),
        )

    def _is_physical(self, cosmology: Cosmology, sound_horizon: Array) -> Bool[Array, ""]:
        theory = self.theory(jax.lax.stop_gradient(cosmology), sound_horizon)
        return jnp.all((theory > 0) & (theory < jnp.inf)) & is_positive(cosmology.h)

    def _chi2(self, cosmology: Cosmology, sound_horizon: Array) -> Float[Array, ""]:
        residuals = ambient_array(self.data) - self.theory(cosmology, sound_horizon)
        return jnp.sum((ambient_array(self.whitening) @ residuals) ** 2)


class CMBDistancePriors(_CompressedCMB):
    """Shift parameter R, acoustic scale l_A and Obh2 of Planck 2018: three numbers with their covariance.

    They were derived in LCDM with 0.06 eV of neutrino mass. `recombination.distance_priors` has their
    definition, which belongs to the numbers: R and l_A of another definition would be biased.

    References:
        Chen, Huang & Wang (2019), arXiv:1808.05724.
    """

    name: ClassVar[str] = "cmb_shift"
    label: ClassVar[str] = "CMB (R, l_A)"
    citation: ClassVar[str] = "Chen, Huang & Wang (2019), arXiv:1808.05724"
    parameters: ClassVar[tuple[str, ...]] = ("Om", "h", "Obh2")

    _table = staticmethod(cmb_distance_priors)

    def theory(
        self, cosmology: Cosmology, sound_horizon: Num[ArrayLike, ""] | None = None
    ) -> Float[Array, " num_points"]:
        """Return R, l_A and Obh2; the sound horizon at the drag epoch is not read."""
        del sound_horizon
        return jnp.concatenate([distance_priors(cosmology), jnp.asarray(cosmology.Obh2)[None]])


class CMBAcousticAngle(_CompressedCMB):
    r"""Acoustic angle \(\theta_*\) and the densities of baryons, and of baryons with cold dark matter.

    It is what Planck PR4 says about the early universe, marginalised over late-time effects.
    `recombination.acoustic_angle` has the prediction, which agrees with CAMB to a fifth of the error.

    References:
        DESI Collaboration (2025), arXiv:2503.14738, appendix A; Lemos & Lewis (2023), arXiv:2302.12911.
    """

    name: ClassVar[str] = "cmb_thetastar"
    label: ClassVar[str] = "CMB (theta_*)"
    citation: ClassVar[str] = (
        "DESI Collaboration (2025), arXiv:2503.14738; Lemos & Lewis (2023), arXiv:2302.12911"
    )
    parameters: ClassVar[tuple[str, ...]] = ("Om", "h", "Obh2")

    _table = staticmethod(cmb_acoustic_angle)

    def theory(
        self, cosmology: Cosmology, sound_horizon: Num[ArrayLike, ""] | None = None
    ) -> Float[Array, " num_points"]:
        """Return theta_* [rad], Obh2 and Ombch2; the sound horizon at the drag epoch is not read."""
        del sound_horizon
        Ombch2 = jnp.asarray(cold_density(cosmology) * cosmology.h**2)
        return jnp.stack([acoustic_angle(cosmology), jnp.asarray(cosmology.Obh2), Ombch2])


@functools.lru_cache(maxsize=8)
def _built(kind: type[_CompressedCMB], table: CompressedCMBTable) -> _CompressedCMB:
    return kind.from_table(table)
