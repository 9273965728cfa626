"""Models whose evidence is known, by algebra or quadrature; `benchmarks/tempered.py` and the tests run them.

Eight schools and the autoregression are those of `benchmarks/sampling_models.py`.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import sampling_models
from scipy.special import gammaln, logsumexp
from scipy.stats import halfcauchy, multivariate_normal, norm


class Known(NamedTuple):
    """A model with its data, and its evidence.

    Attributes:
        model: A NumPyro model.
        data: Its positional arguments.
        truth: Returns the log evidence, in nats.
        said: A few words for tables.
    """

    model: Callable
    data: tuple[Any, ...]
    truth: Callable[[], float]
    said: str


def line(x, y):
    weights = numpyro.sample("weights", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(weights[0] + weights[1] * x, 0.5), obs=y)


def line_truth(x, y):
    columns = np.stack([np.ones_like(x), x], 1)
    return multivariate_normal(np.zeros(len(y)), columns @ columns.T + 0.25 * np.eye(len(y))).logpdf(y)


def shells(centres):
    """Two spheres of radius 2 and thickness 0.1: Feroz, Hobson & Bridges (2009), section 6.2."""
    x = numpyro.sample("x", dist.Uniform(-6, 6).expand([centres.shape[1]]).to_event(1))
    radii = [jnp.linalg.norm(x - centre) for centre in centres]
    numpyro.factor("shells", jnp.logaddexp(*[dist.Normal(2.0, 0.1).log_prob(r) for r in radii]))


def shells_truth(centres):
    """Return the sum over both shells, which hardly meet and end within the prior: by radius alone."""
    dim = centres.shape[1]
    radii = np.linspace(1e-6, 2.5, 100_001)
    area = np.log(2) + 0.5 * dim * np.log(np.pi) - gammaln(0.5 * dim)
    values = norm(2, 0.1).logpdf(radii) + area + (dim - 1) * np.log(radii)
    return np.log(2) + _integral(values, radii) - dim * np.log(12)


def many_scales(scales):
    x = numpyro.sample("x", dist.Normal(0, 20).expand([scales.size]).to_event(1))
    numpyro.factor("likelihood", jnp.sum(dist.Normal(x, scales).log_prob(0.0)))


def many_scales_truth(scales):
    return norm(0, np.sqrt(400 + scales**2)).logpdf(0).sum()


def shrinking(x, y):
    """A regression whose residual scale is a hundred times smaller in the posterior than in the prior."""
    slopes = numpyro.sample("slopes", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
    log_scale = numpyro.sample("log_scale", dist.Normal(0, 1.5))
    numpyro.sample("y", dist.Normal(x @ slopes, jnp.exp(log_scale)), obs=y)


def shrinking_truth(x, y):
    log_scales = np.linspace(-8, 5, 20_001)
    values = _log_marginals(x @ x.T, y, np.exp(log_scales)) + norm(0, 1.5).logpdf(log_scales)
    return _integral(values, log_scales)


def schools_truth(errors, effects):
    """Return the evidence with effects and their mean summed out, by quadrature over their spread."""
    log_taus = np.linspace(-25, 25, 20_001)
    values = [
        multivariate_normal(np.zeros(8), np.diag(errors**2 + np.exp(2 * t)) + 25.0).logpdf(effects)
        for t in log_taus
    ]
    return _integral(np.array(values) + halfcauchy(0, 5).logpdf(np.exp(log_taus)) + log_taus, log_taus)


def mixture(y):
    """Three Gaussians that nothing tells apart: six modes."""
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    means = numpyro.sample("means", dist.Normal(0, 5).expand([3]).to_event(1))
    numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, 1.0)), obs=y)


def mixture_truth(y):
    """Return the sum over all allocations, in each of which weights and means have closed forms."""
    allocations = np.array(list(product(range(3), repeat=len(y))))
    total = gammaln(3) - gammaln(3 + len(y)) - 0.5 * len(y) * np.log(2 * np.pi) - 0.5 * y @ y
    for k in range(3):
        own = allocations == k
        count, sums = own.sum(1), own @ y
        precision = count + 1 / 25
        total = total + gammaln(1 + count) - 0.5 * np.log(25 * precision) + 0.5 * sums**2 / precision
    return logsumexp(total)


def autoregression_truth(lags, y):
    """Return the evidence with the coefficients summed out, by quadrature over the noise."""
    columns = np.concatenate([np.ones((len(y), 1)), lags], 1)
    log_noises = np.linspace(-6, 6, 20_001)
    noises = np.exp(log_noises)
    values = _log_marginals(100 * columns @ columns.T, y, noises)
    return _integral(values + halfcauchy(0, 2.5).logpdf(noises) + log_noises, log_noises)


def _log_marginals(covariance: np.ndarray, y: np.ndarray, noises: np.ndarray) -> np.ndarray:
    """Return the log densities of a Gaussian vector with noise added, for each scale of the noise."""
    variances, axes = np.linalg.eigh(covariance)
    along = axes.T @ y
    totals = np.maximum(variances, 0.0) + noises[:, None] ** 2
    return -0.5 * np.sum(along**2 / totals + np.log(2 * np.pi * totals), 1)


def _integral(log_values: np.ndarray, grid: np.ndarray) -> float:
    """Return the log of an integral over an even grid, at whose ends nothing is left."""
    return float(logsumexp(log_values) + np.log(grid[1] - grid[0]))


def known() -> dict[str, Known]:
    """Return all models with their data and evidences, by name."""
    x = np.linspace(-1, 1, 10)
    found = {
        "line": _known(
            line, line_truth, "conjugate regression, 2-d", x, 1 + 2 * x + 0.3 * np.sin(7 * np.arange(10))
        )
    }
    for dim in (2, 5, 10):
        centres = np.zeros((2, dim))
        centres[:, 0] = -3.5, 3.5
        found[f"shells_{dim}"] = _known(shells, shells_truth, f"Gaussian shells, {dim}-d", centres)
    scales = np.geomspace(0.01, 10, 20)
    found["many_scales"] = _known(
        many_scales, many_scales_truth, "Gaussians of scales 0.01 to 10, 20-d", scales
    )
    found["shrinking"] = _known(
        shrinking, shrinking_truth, "regression, scale shrinks 100-fold, 6-d", *_sharp()
    )
    for name in ("eight_schools", "eight_schools_centred", "autoregression"):
        case = sampling_models.cases()[name]
        truth = autoregression_truth if name == "autoregression" else schools_truth
        found[name] = _known(case.model, truth, case.said, *case.data)
    y = np.array([-4.1, -3.2, -3.0, -2.4, -0.2, 0.4, 0.9, 1.3, 3.9, 4.4, 5.0, 6.1])
    found["mixture"] = _known(mixture, mixture_truth, "mixture of three, 5-d", y)
    return found


def _known(model: Callable, truth: Callable, said: str, *data: np.ndarray) -> Known:
    return Known(model, data, partial(truth, *[np.asarray(array, np.float64) for array in data]), said)


def _sharp() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 5))
    return x, x @ rng.normal(size=5) + 0.01 * rng.normal(size=100)
