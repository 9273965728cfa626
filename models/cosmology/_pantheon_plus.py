"""The Pantheon+ supernova likelihood, compressed without loss to 64 numbers."""

import functools
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from qbs.models.cosmology import tables
from qbs.models.cosmology._likelihood import DataPath, Likelihood
from qbs.models.cosmology.background import SPEED_OF_LIGHT, Cosmology, LineOfSight, ambient_array

_NUM_HUBBLE_NODES = 64
_MIN_REDSHIFT = 0.01


class PantheonPlus(Likelihood):
    r"""Magnitudes [mag] of the 1,590 Pantheon+ light curves with zHD > 0.01, no SH0ES calibrators' distances.

    \(m = \mu + M_B\) with \(\mu = 5\log_{10}[(1+z_{hel}) D_M(z_{HD})/\mathrm{Mpc}] + 25\). The absolute
    magnitude M_B is marginalised with a flat prior by projecting it out of the whitened residuals; the
    constant logarithm that this leaves is dropped. So h matters through radiation alone.

    One evaluation costs a 64 x 64 matrix-vector product, not 1590 x 1590: \(5\log_{10}(D_M/\ln(1+z))\) is so
    smooth in ln(1+z) that its values at 64 nodes determine it at all redshifts to rounding, and an orthogonal
    rotation reduces the whitened residuals to those 64 directions and a constant.

    References:
        Scolnic et al. (2022), arXiv:2112.03863; Brout et al. (2022), arXiv:2202.04077.
    """

    name: ClassVar[str] = "pantheon_plus"
    label: ClassVar[str] = "Pantheon+"
    citation: ClassVar[str] = "Scolnic et al. (2022), arXiv:2112.03863; Brout et al. (2022), arXiv:2202.04077"
    parameters: ClassVar[tuple[str, ...]] = ("Om",)

    data: Float[np.ndarray, " num_points"]
    errors: Float[np.ndarray, " num_points"]
    heliocentric_redshifts: Float[np.ndarray, " num_points"]
    line_of_sight: LineOfSight
    magnitude_weights: Float[np.ndarray, " num_points"]
    hubble_nodes: LineOfSight
    rotated_theory: Float[np.ndarray, "num_hubble_nodes num_hubble_nodes"]
    rotated_data: Float[np.ndarray, " num_hubble_nodes"]
    constant_chi2: Float[np.ndarray, ""]

    @classmethod
    def load(cls, data_path: DataPath = None) -> "PantheonPlus":
        """Return the likelihood of `tables.pantheon_plus(data_path)`."""
        return _cached(tables.pantheon_plus(data_path))

    @classmethod
    def from_table(cls, table: tables.SupernovaTable) -> "PantheonPlus":
        """Return the likelihood of the rows with zHD > 0.01 of a table."""
        rows = table.redshifts > _MIN_REDSHIFT
        z, z_hel, magnitudes = (
            table.redshifts[rows],
            table.heliocentric_redshifts[rows],
            table.magnitudes[rows],
        )
        covariance = table.covariance[np.ix_(rows, rows)]
        x = np.log1p(z)
        nodes, basis = _interpolation(x)
        # mu = reference + basis @ g, where g = 5 log10(D_M / (x c/100)) at the nodes.
        reference = 5.0 * np.log10(x * (1.0 + z_hel) * SPEED_OF_LIGHT / 100.0) + 25.0
        columns = np.column_stack([basis, magnitudes - reference, np.ones_like(x)])
        factor = np.linalg.cholesky(covariance)
        whitened = np.linalg.solve(factor, columns)
        offset = whitened[:, -1]
        weights = np.linalg.solve(factor.T, offset) / (offset @ offset)
        projected = whitened[:, :-1] - np.outer(offset, offset @ whitened[:, :-1]) / (offset @ offset)
        rotation, rotated_theory = np.linalg.qr(projected[:, :-1])
        rotated_data = rotation.T @ projected[:, -1]
        rest = projected[:, -1] - rotation @ rotated_data
        return cls(
            data=magnitudes,
            errors=np.sqrt(np.diag(covariance)),
            heliocentric_redshifts=z_hel,
            line_of_sight=LineOfSight.from_redshifts(z),
            magnitude_weights=weights,
            hubble_nodes=LineOfSight.from_redshifts(np.expm1(nodes)),
            rotated_theory=rotated_theory,
            rotated_data=rotated_data,
            constant_chi2=np.asarray(rest @ rest),
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
        return 5.0 * jnp.log10(distance * (1.0 + ambient_array(self.heliocentric_redshifts))) + 25.0

    def absolute_magnitude(self, cosmology: Cosmology) -> Float[Array, ""]:
        """Return the M_B [mag] that fits best, for plots of the Hubble diagram.

        Args:
            cosmology: The background; M_B shifts by 5 log10 of its h.

        Returns:
            The generalised-least-squares mean of m - mu.
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


def _interpolation(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Chebyshev nodes over the range of x and the matrix that interpolates from them to x."""
    order = np.arange(_NUM_HUBBLE_NODES)
    angles = (2 * order + 1) * np.pi / (2 * _NUM_HUBBLE_NODES)
    nodes = 0.5 * (x.max() + x.min()) + 0.5 * (x.max() - x.min()) * np.cos(angles)
    difference = x[:, None] - nodes
    hits = difference == 0.0
    terms = (-1.0) ** order * np.sin(angles) / np.where(hits, 1.0, difference)
    basis = terms / terms.sum(1, keepdims=True)
    return nodes, np.where(hits.any(1, keepdims=True), hits.astype(float), basis)


_cached = functools.lru_cache(maxsize=2)(PantheonPlus.from_table)
