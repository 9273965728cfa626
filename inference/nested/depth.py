"""How far nested sampling still has to go."""

import math


def remaining_depth(
    dim: int, remaining: float, log_evidence: float, log_volume: float, bound: float, dlogz: float
) -> float:
    """Estimate by how much the log of the volume has still to fall, as if the posterior were Gaussian.

    Then the prior volume above a log likelihood r below the peak is proportional to r^(d/2), and the share of
    the evidence in it is, once r is small, r^(d/2) / Gamma(d/2 + 1).

    Args:
        dim: Of the unit cube.
        remaining: What the live points may add to the log evidence, in nats.
        log_evidence: Of the dead.
        log_volume: Of the prior above the bound.
        bound: Log likelihood of the last that died.
        dlogz: The run stops when `remaining` is less.
    """
    half_dim, delta = dim / 2, max(remaining, 1e-300)
    log_ratio = delta if delta > 30 else math.log(math.expm1(delta))  # of the live points' share to Z
    highest = log_ratio + log_evidence - log_volume
    depth = max(highest - bound, 1e-300)
    return max(half_dim * math.log(depth) - math.lgamma(half_dim + 1) - math.log(dlogz), 0.0)
