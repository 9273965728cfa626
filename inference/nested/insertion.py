"""The insertion-rank test: whether new points stand among the others as if drawn from the same volume.

References:
    Fowlie, Handley & Su (2020), "Nested sampling cross-checks using order statistics", arXiv:2006.03371.
"""

import numpy as np
from jaxtyping import Float
from scipy.stats import kstest

_LEAST = 50  # ranks that are tested


def insertion_test(ranks: Float[np.ndarray, " num_inserted"], window: int) -> tuple[float, float]:
    """Return p values of the hypothesis that ranks are uniform.

    Args:
        ranks: Of new points among those that were alive, in the order of birth, as shares in [0, 1]: with a
            random number added to the count, so that they are uniform and not discrete.
        window: How many make up a part of the run.

    Returns:
        Of all ranks; and of the part of the run that fits worst, counting that it is the worst.
    """
    if len(ranks) < _LEAST:
        return 1.0, 1.0
    overall = float(kstest(ranks, "uniform").pvalue)
    parts = [ranks[start : start + window] for start in range(0, len(ranks) - window + 1, window)] or [ranks]
    worst = min(float(kstest(part, "uniform").pvalue) for part in parts)
    return overall, 1.0 - (1.0 - worst) ** len(parts)
