r"""Why supernovae can be compressed: \(5\log_{10}(D_M/\ln(1+z))\) is smooth in ln(1+z). NumPy, done once."""

import numpy as np

_NUM_NODES = 64
_NUM_QUADRATURE = 64
# Om, Ok, and (w, wa): the default priors of `parameters`, as far as such a universe expands.
_REFERENCE_OM = (0.1, 0.3, 0.5)
_REFERENCE_OK = (-0.2, 0.0, 0.3)
_REFERENCE_DARK_ENERGY = ((-1.0, 0.0), (-0.5, -1.5), (-2.0, 1.0), (0.0, -3.0))


def hubble_nodes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes over the range of x = ln(1+z), and the matrix that interpolates from them to x.

    Up to 64 points are their own nodes. For more, the nodes are Chebyshev's, and the matrix is that of the
    polynomial through them, in barycentric form.
    """
    if x.size <= _NUM_NODES:
        return x, np.eye(x.size)
    order = np.arange(_NUM_NODES)
    angles = (2 * order + 1) * np.pi / (2 * _NUM_NODES)
    nodes = 0.5 * (x.max() + x.min()) + 0.5 * (x.max() - x.min()) * np.cos(angles)
    difference = x[:, None] - nodes
    hits = difference == 0.0
    terms = (-1.0) ** order * np.sin(angles) / np.where(hits, 1.0, difference)
    basis = terms / terms.sum(1, keepdims=True)
    return nodes, np.where(hits.any(1, keepdims=True), hits.astype(float), basis)


def reference_moduli(x: np.ndarray) -> np.ndarray:
    r"""Return \(5\log_{10}(D_M H_0/(c x))\) at x = ln(1+z) > 0, one column for each reference history.

    They are CPL dark energy and matter with curvature, without radiation, by Gauss-Legendre quadrature.
    """
    s, weights = np.polynomial.legendre.leggauss(_NUM_QUADRATURE)
    t = 0.5 * x[:, None] * (1.0 + s)
    columns = []
    for Om in _REFERENCE_OM:
        for Ok in _REFERENCE_OK:
            for w, wa in _REFERENCE_DARK_ENERGY:
                dark_energy = np.exp(3.0 * ((1.0 + w + wa) * t + wa * np.expm1(-t)))
                squared = Om * np.exp(3.0 * t) + Ok * np.exp(2.0 * t) + (1.0 - Om - Ok) * dark_energy
                distance = 0.5 * x * (np.exp(t) / np.sqrt(squared) @ weights)
                if Ok != 0.0:
                    root = np.sqrt(complex(Ok))
                    distance = (np.sinh(root * distance) / root).real
                columns.append(5.0 * np.log10(distance / x))
    return np.column_stack(columns)
