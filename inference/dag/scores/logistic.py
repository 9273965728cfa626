"""A score for columns of zeros and ones: logistic regression."""

import numpy as np
from jaxtyping import Bool, Float, Int

from qbs.inference.dag.equations import Equation
from qbs.inference.dag.scores.glm_design import design_of
from qbs.inference.dag.scores.glm_fits import fit_softmax, on_device
from qbs.inference.dag.scores.mixed import MixedScore
from qbs.inference.dag.scores.score import Fits, Pruning


class LogisticScore:
    """Scores nodes by logistic regression on all candidates.

    The score is the mean negative log-likelihood in nats per row, and `l1` times the sizes of the
    coefficients, that of the intercept aside. A ridge of 1e-9 (`glm_fits.RIDGE`), which no score includes,
    keeps coefficients finite where candidates tell zeros from ones without error. All is float64.
    """

    def __init__(self, values: Float[np.ndarray, "num_rows num_nodes"], l1: float | int = 0.0):
        """Check the data.

        Args:
            values: Zeros and ones.
            l1: Penalty, in nats per row.

        Raises:
            ValueError: If a column holds other numbers, or the penalty is negative or not finite.
        """
        if not (0 <= l1 < np.inf):
            raise ValueError(f"LogisticScore: l1 must be zero or positive, not {l1}")
        values = np.asarray(values, float)
        kinds = ("binary",) * (values.shape[1] if values.ndim == 2 else 0)
        self._values, self._kinds, self._l1 = values, kinds, float(l1)
        self._data = on_device(design_of(values, kinds, caller="LogisticScore"))
        self._sparse: MixedScore | None = None
        self._known: dict[tuple[int, bytes], tuple[float, np.ndarray, np.ndarray]] = {}

    @property
    def num_fits(self) -> int:
        """How many regressions on all candidates have been fitted."""
        return len(self._known)

    def scores(
        self, nodes: Int[np.ndarray, " batch"], candidates: Bool[np.ndarray, "batch num_nodes"]
    ) -> Float[np.ndarray, " batch"]:
        """Return scores in nats per row; lower is better."""
        return self.fits(nodes, candidates).scores

    def fits(self, nodes: Int[np.ndarray, " batch"], candidates: Bool[np.ndarray, "batch num_nodes"]) -> Fits:
        """Return scores, coefficients, and derivatives without the penalty."""
        names = [(int(node), mask.tobytes()) for node, mask in zip(nodes, candidates, strict=True)]
        new = {name: at for at, name in enumerate(names) if name not in self._known}
        if new:
            at = list(new.values())
            fits = self._fitted(nodes[at], candidates[at])
            self._known.update(zip(new, zip(*fits, strict=True), strict=True))
        known = [self._known[name] for name in names]
        scores, weights, gradients = zip(*known, strict=True) if known else ((), (), ())
        shape = len(known), len(self._kinds)
        return Fits(np.array(scores), np.reshape(weights, shape), np.reshape(gradients, shape))

    def equation(
        self,
        node: int,
        candidates: Bool[np.ndarray, " num_nodes"],
        required: Bool[np.ndarray, " num_nodes"],
        pruning: Pruning,
    ) -> Equation:
        """Return the equation of a node, a `LogisticEquation`.

        `"threshold"` compares the coefficients of the score's own fit. The equation is that of maximum
        likelihood with the parents chosen: the penalty helps to choose, and does not shrink what is chosen.
        """
        if self._sparse is None:
            self._sparse = MixedScore(self._values, self._kinds)
        if pruning.kind != "threshold":
            return self._sparse.equation(node, candidates, required, pruning)
        weights = self.fits(np.array([node]), candidates[None]).weights[0]
        chosen = candidates & ((np.abs(weights) > pruning.threshold) | required)
        return self._sparse.fitted(node, chosen)

    def _fitted(self, nodes: np.ndarray, candidates: np.ndarray) -> Fits:
        is_other = np.arange(len(self._kinds)) != nodes[:, None]
        is_free = np.pad(candidates & is_other, ((0, 0), (1, 0)), constant_values=True)
        found = fit_softmax(self._data, nodes[:, None] + 1, is_free, l1=self._l1)
        weights = found.coefficients[:, 0, 1:]
        scores = found.losses + self._l1 * np.abs(weights).sum(1)
        return Fits(scores, weights, np.where(is_other, found.gradients[:, 0, 1:], 0.0))
