"""What the data say against the graph that was learned from them, whatever the score."""

import numpy as np

from qbs.inference.dag.honesty import Honesty, doubts, honesty
from qbs.inference.dag.learning import Learned, equal_variance_margin
from qbs.inference.dag.orders import top_down
from qbs.inference.dag.rules import Rules
from qbs.inference.dag.sample import Sample
from qbs.inference.dag.scores.lingam import gaussian_doubts, gaussianity


def assess(score: str, sample: Sample, learned: Learned, rules: Rules) -> tuple[Honesty, list[str]]:
    """Return what speaks for or against the directions, and what a reader must know of it, as sentences.

    Args:
        score: Name of the score that the graph was learned by.
        sample: The table, or its moments.
        learned: The graph.
        rules: What it had to keep.
    """
    variances = np.array([equation.noise_variance for equation in learned.equations])
    found = honesty(sample.covariance, learned.is_edge, variances, top_down(sample, rules))
    if sample.num_rows <= sample.num_nodes or not learned.is_edge.any():
        return found, []
    if score == "equal-variance":
        found = found._replace(margin=equal_variance_margin(sample, learned, rules))
        said = doubts(found)
        return found, said + (_recommended(sample, learned) if said or "binary" in sample.kinds else [])
    if score == "mlp":
        return found, doubts(found)
    residuals = _residuals(sample, learned)
    if score == "lingam" and residuals is not None:
        return found, gaussian_doubts(residuals)
    return found, []


def _residuals(sample: Sample, learned: Learned) -> np.ndarray | None:
    values = sample.values
    if values is None:
        return None
    return np.column_stack([values[:, item.node] - item.mean(values) for item in learned.equations])


def _recommended(sample: Sample, learned: Learned) -> list[str]:
    """Return which other score would suit a table that the equal-variance score does not."""
    if "binary" in sample.kinds:
        other = "logistic" if set(sample.kinds) == {"binary"} else "mixed"
        return [f'Some columns have two values: score="{other}" has equations for them.']
    residuals = _residuals(sample, learned)
    if residuals is not None:
        num_told = int(gaussianity(residuals).is_told.sum())
        if num_told >= sample.num_nodes - 1:
            return [
                f"{num_told} of {sample.num_nodes} residuals are not Gaussian: "
                'score="lingam" can tell directions by that, whatever the variances.'
            ]
    return ['score="bic" takes no variances for granted, and says which directions the data tell.']
