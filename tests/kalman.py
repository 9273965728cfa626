"""The Kalman filter of the series that many tests share: x' ~ N(phi x, 1) from x = 0, y ~ N(x, 0.5^2)."""

import math

import numpy as np
from scipy.stats import norm


def kalman(ys, phi=0.9):
    """Return the log evidence, and mean and variance of the last state."""
    mean, variance, total = 0.0, 0.0, 0.0
    for y in np.asarray(ys, float):
        mean, variance = phi * mean, phi**2 * variance + 1
        total += norm(mean, math.sqrt(variance + 0.25)).logpdf(y)
        gain = variance / (variance + 0.25)
        mean, variance = mean + gain * (y - mean), (1 - gain) * variance
    return total, mean, variance
