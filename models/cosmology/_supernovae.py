"""Type Ia supernovae: likelihoods with the absolute magnitude marginalised, compressed to 64 numbers."""

import functools
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from qbs.models.cosmology import tables
from qbs.models.cosmology._likelihood import DataPath, Likelihood
from qbs.models.cosmology._smooth_distances import hubble_nodes, reference_moduli
from qbs.models.cosmology.background import SPEED_OF_LIGHT, Cosmology, LineOfSight, ambient_array


class Supernovae(Likelihood):
    r"""Magnitudes [mag] of type Ia supernovae: what the classes below share.

    \(m = \mu + M_B\) with \(\mu = 5\log_{10}[(1+z_{hel}) D_M(z_{HD})/\mathrm{Mpc}] + 25\). The absolute
    magnitude M_B is marginalised with a flat prior by projecting it out of the whitened residuals; the
    constant logarithm that this leaves is dropped. So h matters through radiation alone, unless some hosts
    have a distance of their own, which then replaces \(\mu\).

    One evaluation costs a matrix-vector product with 64 rows, not with one for each supernova:
    \(5\log_{10}(D_M/\ln(1+z))\) is so smooth in ln(1+z) that its values at 64 nodes determine it at all
    redshifts to rounding, and an orthogonal rotation reduces the whitened residuals to those 64 directions
    and a constant. Up to 64 supernovae are their own nodes.

    Attributes:
        heliocentric_redshifts: zHEL of the data.
        host_moduli: Distance modulus of the host from Cepheids [mag], NaN where the cosmology predicts it.
        magnitude_error: Standard error of M_B in a given cosmology [mag].
        compression_error: Largest error of chi2 that the compression makes, over 36 expansion histories that
            span the default priors of Om, Ok, w and wa; rounding of the direct computation included.
    """

    min_redshift: eqx.AbstractClassVar[float]
    uses_calibrators: eqx.AbstractClassVar[bool]

    data: Float[np.ndarray, " num_points"]
    errors: Float[np.ndarray, " num_points"]
    heliocentric_redshifts: Float[np.ndarray, " num_points"]
    host_moduli: Float[np.ndarray, " num_points"]
    line_of_sight: LineOfSight
    magnitude_weights: Float[np.ndarray, " num_points"]
    magnitude_error: Float[np.ndarray, ""]
    hubble_nodes: LineOfSight
    rotated_theory: Float[np.ndarray, "num_rotated num_hubble_nodes"]
    rotated_data: Float[np.ndarray, " num_rotated"]
    constant_chi2: Float[np.ndarray, ""]
    compression_error: Float[np.ndarray, ""]

    @classmethod
    def from_table(cls, table: tables.SupernovaTable) -> "Supernovae":
        """Return the likelihood of a table: its rows beyond the least redshift, and calibrators if used.

        Raises:
            ValueError: If calibrators are to be used and the table has no distances of their hosts.
        """
        if cls.uses_calibrators and table.cepheid_moduli is None:
            raise ValueError(f"{cls.name} needs a table with cepheid_moduli")
        is_anchored = table.is_calibrator & cls.uses_calibrators
        rows = (table.redshifts > cls.min_redshift) | is_anchored
        host_moduli = np.full(rows.size, np.nan)
        if table.cepheid_moduli is not None:
            host_moduli = np.where(is_anchored, table.cepheid_moduli, np.nan)
        host_moduli = host_moduli[rows]
        is_free = np.isnan(host_moduli)
        z, z_hel, magnitudes = (
            table.redshifts[rows],
            table.heliocentric_redshifts[rows],
            table.magnitudes[rows],
        )
        x = np.log1p(z)
        nodes, interpolation = hubble_nodes(x[is_free])
        basis = np.zeros((x.size, nodes.size))
        basis[is_free] = interpolation
        # mu = reference + basis @ g, where g = 5 log10(D_M / (x c/100)) at the nodes.
        reference = np.where(
            is_free, 5.0 * np.log10(x * (1.0 + z_hel) * SPEED_OF_LIGHT / 100.0) + 25.0, host_moduli
        )
        at_nodes = reference_moduli(nodes)
        histories = np.zeros((x.size, at_nodes.shape[1]))
        histories[is_free] = reference_moduli(x[is_free])
        columns = np.column_stack([basis, magnitudes - reference, np.ones_like(x), histories])
        whitened, weights = _whitened(table, rows, columns, nodes.size + 1)
        offset = whitened[:, nodes.size + 1]
        projected = whitened - np.outer(offset, offset @ whitened / (offset @ offset))
        theory, data, _, direct = np.split(projected, nodes.size + np.arange(3), axis=1)
        rotation, rotated_theory = np.linalg.qr(theory)
        rotated_data = rotation.T @ data[:, 0]
        rest = data[:, 0] - rotation @ rotated_data
        constant_chi2 = rest @ rest
        exact = np.sum((data - direct) ** 2, axis=0)
        compressed = np.sum((rotated_data[:, None] - rotated_theory @ at_nodes) ** 2, axis=0) + constant_chi2
        return cls(
            data=magnitudes,
            errors=np.sqrt(np.diag(table.covariance)[rows]),
            heliocentric_redshifts=z_hel,
            host_moduli=host_moduli,
            line_of_sight=LineOfSight.from_redshifts(z),
            magnitude_weights=weights / (offset @ offset),
            magnitude_error=np.asarray(1.0 / np.sqrt(offset @ offset)),
            hubble_nodes=LineOfSight.from_redshifts(np.expm1(nodes)),
            rotated_theory=rotated_theory,
            rotated_data=rotated_data,
            constant_chi2=np.asarray(constant_chi2),
            compression_error=np.asarray(np.abs(compressed - exact).max()),
        )

    @property
    def redshifts(self) -> Float[np.ndarray, " num_points"]:
        """Redshifts zHD of the data."""
        return self.line_of_sight.redshifts

    def theory(
        self, cosmology: Cosmology, sound_horizon: Num[ArrayLike, ""] | None = None
    ) -> Float[Array, " num_points"]:
        """Return mu [mag], to which M_B is to be added; the sound horizon is not read."""
        del sound_horizon
        distance = self.line_of_sight.transverse_comoving_distance(cosmology)
        moduli = 5.0 * jnp.log10(distance * (1.0 + ambient_array(self.heliocentric_redshifts))) + 25.0
        return jnp.where(np.isnan(self.host_moduli), moduli, ambient_array(self.host_moduli))

    def absolute_magnitude(self, cosmology: Cosmology) -> Float[Array, ""]:
        """Return the M_B [mag] that fits best, for plots of the Hubble diagram.

        Args:
            cosmology: The background; without calibrators, M_B shifts by 5 log10 of its h.

        Returns:
            The generalised-least-squares mean of m - mu. The magnitudes of `union3` and `des_sn5yr` are
            moduli with an arbitrary zero point, and M_B is what it is off.
        """
        return ambient_array(self.magnitude_weights) @ (ambient_array(self.data) - self.theory(cosmology))

    def _is_physical(self, cosmology: Cosmology, sound_horizon: Array) -> Bool[Array, ""]:
        del sound_horizon
        return self.hubble_nodes.is_physical(cosmology)

    def _chi2(self, cosmology: Cosmology, sound_horizon: Array) -> Float[Array, ""]:
        del sound_horizon
        x = jnp.log1p(ambient_array(self.hubble_nodes.redshifts))
        distance = self.hubble_nodes.transverse_comoving_distance(cosmology)
        moduli = 5.0 * jnp.log10(distance / (x * SPEED_OF_LIGHT / 100.0))
        residuals = ambient_array(self.rotated_data) - ambient_array(self.rotated_theory) @ moduli
        return ambient_array(self.constant_chi2) + jnp.sum(residuals**2)


def _whitened(
    table: tables.SupernovaTable, rows: np.ndarray, columns: np.ndarray, constant: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return W columns with W^T W the inverse covariance of the rows, and that inverse times one column."""
    if table.inverse_covariance is not None and rows.all():
        factor = np.linalg.cholesky(table.inverse_covariance)
        whitened = factor.T @ columns
        return whitened, factor @ whitened[:, constant]
    factor = np.linalg.cholesky(table.covariance[np.ix_(rows, rows)])
    whitened = np.linalg.solve(factor, columns)
    return whitened, np.linalg.solve(factor.T, whitened[:, constant])


class PantheonPlus(Supernovae):
    r"""Magnitudes [mag] of the 1,590 Pantheon+ light curves with zHD > 0.01, no SH0ES calibrators' distances.

    \(m = \mu + M_B\) with M_B marginalised; see `absolute_magnitude`. So h matters through radiation alone.

    References:
        Scolnic et al. (2022), arXiv:2112.03863; Brout et al. (2022), arXiv:2202.04077.
    """

    name: ClassVar[str] = "pantheon_plus"
    label: ClassVar[str] = "Pantheon+"
    citation: ClassVar[str] = "Scolnic et al. (2022), arXiv:2112.03863; Brout et al. (2022), arXiv:2202.04077"
    parameters: ClassVar[tuple[str, ...]] = ("Om",)
    min_redshift: ClassVar[float] = 0.01
    uses_calibrators: ClassVar[bool] = False

    @classmethod
    def load(cls, data_path: DataPath = None) -> "Supernovae":
        """Return the likelihood of `tables.pantheon_plus(data_path)`."""
        return _built(cls, tables.pantheon_plus(data_path))


class PantheonPlusSH0ES(Supernovae):
    r"""Magnitudes [mag] of 1,657 Pantheon+ light curves: zHD > 0.01, or in a host with a Cepheid distance.

    For the 77 of the second kind \(\mu\) is the distance modulus from Cepheids, whose error is in the
    covariance. They fix M_B, which is marginalised, and so the others constrain h.

    References:
        Brout et al. (2022), arXiv:2202.04077, equations 13 to 15; Riess et al. (2022), arXiv:2112.04510.
    """

    name: ClassVar[str] = "pantheon_plus_sh0es"
    label: ClassVar[str] = "Pantheon+ & SH0ES"
    citation: ClassVar[str] = (
        "Scolnic et al. (2022), arXiv:2112.03863; Brout et al. (2022), arXiv:2202.04077; "
        "Riess et al. (2022), arXiv:2112.04510"
    )
    parameters: ClassVar[tuple[str, ...]] = ("Om", "h")
    min_redshift: ClassVar[float] = 0.01
    uses_calibrators: ClassVar[bool] = True

    @classmethod
    def load(cls, data_path: DataPath = None) -> "Supernovae":
        """Return the likelihood of `tables.pantheon_plus(data_path)`, with its calibrators."""
        return _built(cls, tables.pantheon_plus(data_path))


class Union3(Supernovae):
    """The 22 distance moduli [mag] to which Union3 compresses 2,087 supernovae.

    References:
        Rubin et al. (2025), arXiv:2311.12098.
    """

    name: ClassVar[str] = "union3"
    label: ClassVar[str] = "Union3"
    citation: ClassVar[str] = "Rubin et al. (2025), arXiv:2311.12098"
    parameters: ClassVar[tuple[str, ...]] = ("Om",)
    min_redshift: ClassVar[float] = 0.0
    uses_calibrators: ClassVar[bool] = False

    @classmethod
    def load(cls, data_path: DataPath = None) -> "Supernovae":
        """Return the likelihood of `tables.union3`; `data_path` is not read."""
        del data_path
        return _built(cls, tables.union3())


class DESSN5YR(Supernovae):
    """Distance moduli [mag] of the 1,820 supernovae of DES-SN5YR, in the calibration Dovekie.

    All rows are used, as in the likelihood that comes with the release: likely contaminants have errors so
    large that they do not count.

    References:
        DES Collaboration (2024), arXiv:2401.02929; Popovic et al. (2025), arXiv:2511.07517.
    """

    name: ClassVar[str] = "des_sn5yr"
    label: ClassVar[str] = "DES-SN5YR"
    citation: ClassVar[str] = (
        "DES Collaboration (2024), arXiv:2401.02929; Popovic et al. (2025), arXiv:2511.07517"
    )
    parameters: ClassVar[tuple[str, ...]] = ("Om",)
    min_redshift: ClassVar[float] = 0.0
    uses_calibrators: ClassVar[bool] = False

    @classmethod
    def load(cls, data_path: DataPath = None) -> "Supernovae":
        """Return the likelihood of `tables.des_sn5yr(data_path)`."""
        return _built(cls, tables.des_sn5yr(data_path))


@functools.lru_cache(maxsize=8)
def _built(kind: type[Supernovae], table: tables.SupernovaTable) -> Supernovae:
    return kind.from_table(table)
