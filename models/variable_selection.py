r"""Linear regression on an unknown set of predictors.

Each predictor is in the regression or not. Given the set, intercept, coefficients and noise are summed out in
closed form; the sets are sampled, or, up to twenty predictors, all tried.

With all columns centred, \(\beta\) the coefficients of the set and \(\sigma^2\) the variance of the noise,

\[y \sim N(\alpha + X \beta, \sigma^2), \quad \beta \sim N(0, \sigma^2 V), \quad p(\alpha) = 1,\]

where V is g times the inverse of X'X, or a multiple of the identity.

References:
    Zellner (1986), "On assessing prior distributions and Bayesian regression analysis with g-prior
    distributions". George & McCulloch (1997), "Approaches for Bayesian variable selection". Liang et al.
    (2008), "Mixtures of g priors for Bayesian variable selection". Scott & Berger (2010), "Bayes and
    empirical-Bayes multiplicity adjustment in the variable-selection problem".
    Data: Woods, Steinour & Starke (1932), "Effect of composition of Portland cement on heat evolved during
    hardening", as in Hald (1952), "Statistical theory with engineering applications".
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.special
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike, Float, Int

from qbs.effects import sample
from qbs.errors import ModelError
from qbs.inference import mcmc
from qbs.inference.results.posterior import Posterior

CEMENT_COMPOSITION = (
    *((7, 26, 6, 60), (1, 29, 15, 52), (11, 56, 8, 20), (11, 31, 8, 47), (7, 52, 6, 33), (11, 55, 9, 22)),
    *((3, 71, 17, 6), (1, 31, 22, 44), (2, 54, 18, 22), (21, 47, 4, 26), (1, 40, 23, 34), (11, 66, 9, 12)),
    (10, 68, 8, 12),
)
"""Hald's cements: percent by weight of 3CaO.Al2O3, 3CaO.SiO2, 4CaO.Al2O3.Fe2O3 and 2CaO.SiO2 in each."""

CEMENT_HEAT = (78.5, 74.3, 104.3, 87.6, 95.9, 109.2, 102.7, 72.5, 93.1, 115.9, 83.8, 113.3, 109.4)
"""The heat that each of them evolved in 180 days of hardening, in calories a gram."""


class Exact(NamedTuple):
    """What trying all sets finds.

    Attributes:
        log_evidence: Log marginal likelihood of the responses, in nats; see `VariableSelection`.
        log_evidences: The same given each set.
        included: Of each set (row), whether it has each predictor (column).
        probabilities: Posterior probability of each set.
        inclusion: Posterior probability that each predictor is in.
        sizes: Posterior probability of each number of predictors, from none to all.
        coefficients: Posterior mean of each coefficient, over all sets; 0 where it is out.
    """

    log_evidence: float
    log_evidences: np.ndarray
    included: np.ndarray
    probabilities: np.ndarray
    inclusion: np.ndarray
    sizes: np.ndarray
    coefficients: np.ndarray


class VariableSelection(eqx.Module):
    """A linear regression on an unknown set of the predictors.

    Called as a NumPyro model, of the sites

    * `included`: for each predictor, 1 where it is in and 0 where it is out;
    * `share`: the probability of each to be in, uniform; only where `inclusion` is not given.

    Computes in the precision of the moment. Where predictors nearly depend on one another, float32 loses
    digits of the evidences: give `qbs.fit` `precision="float64"`.

    Every set has an intercept, of prior density 1 on the whole line. So evidences compare sets, and models of
    the same responses, and are no probabilities of data.

    ```python
    model = qbs.models.variable_selection.VariableSelection()
    method = mcmc.Chains(model.kernel(x, y), is_unconstrained=False)
    posterior = qbs.fit(model, x, y, method=method, key=key)
    ```

    Attributes:
        inclusion: Prior probability of each predictor to be in. Unknown by default, which corrects for the
            number of predictors tried: all sizes of the set are as probable.
        slab: Prior of the coefficients that are in: `"g"`, Zellner's, which knows no units; or
            `"independent"`, to which predictors must come in comparable units.
        variance: Of that prior, in units of the variance of the noise: the number g, by default that of the
            observations; or the variance of each coefficient, by default 1.
        noise_shape: Of the inverse-gamma prior of the variance of the noise. By default 0, as is the scale:
            the density is one over the variance.
        noise_scale: Of that prior, in the unit of the responses squared.
    """

    inclusion: float | None = None
    slab: str = eqx.field(static=True, default="g")
    variance: float | None = None
    noise_shape: float = 0.0
    noise_scale: float = 0.0

    def __check_init__(self) -> None:
        if self.inclusion is not None and not 0 < self.inclusion < 1:
            raise ValueError(f"inclusion must be a number between 0 and 1, or None, not {self.inclusion!r}")
        if self.slab not in ("g", "independent"):
            raise ValueError(f"slab must be 'g' or 'independent', not {self.slab!r}")
        if self.variance is not None and not 0 < self.variance < np.inf:
            raise ValueError(f"variance must be a number above 0, not {self.variance!r}")
        noise = (self.noise_shape, self.noise_scale)
        if noise != (0, 0) and not (0 < noise[0] < np.inf and 0 < noise[1] < np.inf):
            raise ValueError(f"noise_shape and noise_scale must both be above 0, or both 0, not {noise}")

    def __call__(self, x: ArrayLike, y: ArrayLike) -> None:
        """Be the NumPyro model of responses and predictors; see the class."""
        x, y = self._checked(x, y, is_traced=True)
        share = self.inclusion
        if share is None:
            share = numpyro.sample("share", dist.Uniform(0.0, 1.0))
        included = numpyro.sample("included", dist.Bernoulli(share).expand([x.shape[1]]).to_event(1))
        numpyro.factor("y", _fit(self, included, x, y).log_evidence)

    def kernel(self, x: ArrayLike, y: ArrayLike) -> mcmc.Kernel:
        """Return the kernel that samples the set.

        A step tries each predictor in and out, and exchanges as many pairs of them as there are predictors.

        Args:
            x: The predictors that the model is fitted to, a column for each.
            y: The responses.
        """
        num_predictors = self._checked(x, y)[0].shape[1]

        def choose(_: dict[str, Array]) -> None:
            sample("pair", dist.DiscreteUniform(0, num_predictors - 1).expand([2]))

        def exchanged(state: dict[str, Array], drawn: dict[str, Array]) -> tuple:
            included, pair = state["included"], drawn["pair"]
            new = included.at[pair].set(included[pair[::-1]])
            return {**state, "included": new}, drawn, jnp.zeros(())

        def share_given_all(state: dict[str, Array]) -> dict[str, dist.Distribution]:
            size = jnp.sum(state["included"])
            return {"share": dist.Beta(1.0 + size, 1.0 + num_predictors - size)}

        kernels: list[mcmc.Kernel] = [mcmc.Gibbs({"included": jnp.arange(2)})]
        if num_predictors > 1:
            kernels.append(mcmc.repeat(mcmc.green(choose, exchanged), num_predictors))
        if self.inclusion is None:
            kernels.append(mcmc.Conditional(share_given_all))
        return mcmc.cycle(*kernels)

    def exact(self, x: ArrayLike, y: ArrayLike) -> Exact:
        """Return the posterior by trying all sets, in float64.

        The cost is of the order of `2 ** num_predictors * num_predictors ** 3`.

        Raises:
            ModelError: If there are more than 20 predictors.
        """
        with jax.enable_x64(True):
            x, y = self._checked(x, y)
            number = x.shape[1]
            if number > _MOST_TRIED:
                raise ModelError(
                    f"exact tries all sets of at most {_MOST_TRIED} predictors; these are {number}"
                )
            included = (np.arange(2**number)[:, None] >> np.arange(number)) & 1
            fits = _fits(self, jnp.asarray(included), x, y)
            log_evidences, coefficients = np.asarray(fits.log_evidence), np.asarray(fits.coefficients)
        size = included.sum(1)
        joint = log_evidences + self._log_prior(size, number)
        log_evidence = float(np.logaddexp.reduce(joint))
        probabilities = np.exp(joint - log_evidence)
        return Exact(
            log_evidence,
            log_evidences,
            included == 1,
            probabilities,
            probabilities @ included,
            np.bincount(size, probabilities, number + 1),
            probabilities @ coefficients,
        )

    def coefficients(
        self,
        key: Array,
        posterior: Posterior,
        x: ArrayLike,
        y: ArrayLike,
    ) -> dict[str, np.ndarray]:
        """Return a draw of what was summed out for each draw of the set, from its exact distribution.

        Args:
            key: A typed JAX key.
            posterior: The result of a fit.
            x: The predictors that the model was fitted to.
            y: The responses.

        Returns:
            `coefficient` (0 where a predictor is out), `intercept` (the response where all predictors are 0)
            and `noise` (a standard deviation), with leading axes chain and draw.
        """
        x, y = self._checked(x, y)
        included = jnp.asarray(posterior.samples["included"])
        num_draws = included.shape[0] * included.shape[1]
        flat = included.reshape(num_draws, -1)
        drawn = _draw_all(self, jax.random.split(key, num_draws), flat, x, y)
        return {
            name: np.asarray(each).reshape(*included.shape[:2], *each.shape[1:])
            for name, each in drawn.items()
        }

    def _log_prior(self, size: np.ndarray, number: int) -> np.ndarray:
        """Return the log prior probability of a set of a size."""
        if self.inclusion is None:
            return scipy.special.betaln(1.0 + size, 1.0 + number - size)
        return size * np.log(self.inclusion) + (number - size) * np.log1p(-self.inclusion)

    def _checked(self, x: ArrayLike, y: ArrayLike, *, is_traced: bool = False) -> tuple[Array, Array]:
        x, y = jnp.asarray(x, float), jnp.asarray(y, float)
        if x.ndim != 2 or x.shape[1] < 1 or y.shape != x.shape[:1] or y.size < 3:
            raise ModelError(
                "VariableSelection needs a table of predictors, and a response for each row, 3 or more, "
                f"not arrays of shapes {x.shape} and {y.shape}"
            )
        if self.slab == "g" and not is_traced:
            rank = np.linalg.matrix_rank(np.asarray(x, float) - np.mean(x, axis=0, dtype=float))
            if rank < min(x.shape[1], y.size - 1):
                raise ModelError(
                    f"slab='g' needs linearly independent predictors, but these {x.shape[1]} have rank "
                    f"{rank}: leave some out, or use slab='independent'"
                )
        return x, y


class _Fit(NamedTuple):
    """The regression on one set: normal-inverse-gamma, with 0 for the coefficients that are out."""

    log_evidence: Array
    coefficients: Array
    root: Array  # of the precision of the coefficients, times the variance of the noise
    shape: Array
    scale: Array


def _fit(
    model: VariableSelection,
    included: Int[Array, " num_predictors"],
    x: Float[Array, "num_observations num_predictors"],
    y: Float[Array, " num_observations"],
) -> _Fit:
    """Fit the regression on one set. One that is too large for the g-prior has no evidence."""
    x, y = x - x.mean(0), y - y.mean()
    is_in, size = included == 1, jnp.sum(included)
    shrinkage, ridge, log_det = 1.0, jnp.zeros(()), jnp.zeros(())
    if model.slab == "g":
        g = 1.0 * y.size if model.variance is None else model.variance
        shrinkage, log_det = g / (1 + g), size * jnp.log1p(g)
    else:
        variance = 1.0 if model.variance is None else model.variance
        ridge, log_det = 1 / jnp.asarray(variance), size * jnp.log(variance)
    inner = jnp.where(is_in[:, None] & is_in, x.T @ x, 0.0) + jnp.diag(jnp.where(is_in, ridge, 1.0))
    root = jnp.linalg.cholesky(inner)
    if model.slab == "independent":
        log_det += 2 * jnp.sum(jnp.log(jnp.diag(root)))
    half = solve_triangular(root, jnp.where(is_in, x.T @ y, 0.0), lower=True)
    coefficients = shrinkage * solve_triangular(root, half, lower=True, trans=1)
    left = jnp.maximum(y @ y - shrinkage * half @ half, 0.0)

    freedom = (y.size - 1) / 2
    shape, scale = model.noise_shape + freedom, model.noise_scale + left / 2
    has_prior = jnp.asarray(model.noise_shape) > 0
    own, rate = jnp.where(has_prior, model.noise_shape, 1.0), jnp.where(has_prior, model.noise_scale, 1.0)
    prior = jnp.where(has_prior, own * jnp.log(rate) - gammaln(own), 0.0)
    log_evidence = prior + gammaln(shape) - shape * jnp.log(scale) - 0.5 * log_det
    log_evidence -= freedom * jnp.log(2 * jnp.pi) + 0.5 * jnp.log(y.size)
    if model.slab == "g":
        log_evidence = jnp.where(size < y.size - 1, log_evidence, -jnp.inf)
    return _Fit(log_evidence, coefficients, root / jnp.sqrt(shrinkage), jnp.asarray(shape), scale)


@eqx.filter_jit
def _fits(model: VariableSelection, included: Array, x: Array, y: Array) -> _Fit:
    """Fit the regressions on many sets, some thousands at a time; without the roots."""
    return jax.lax.map(
        lambda one: _fit(model, one, x, y)._replace(root=jnp.zeros(())), included, batch_size=4096
    )


@eqx.filter_jit
def _draw_all(model: VariableSelection, keys: Array, included: Array, x: Array, y: Array) -> dict[str, Array]:
    def draw(key: Array, one: Array) -> dict[str, Array]:
        noise_key, slope_key, intercept_key = jax.random.split(key, 3)
        fit = _fit(model, one, x, y)
        noise = jnp.sqrt(fit.scale / jax.random.gamma(noise_key, fit.shape))
        gap = solve_triangular(fit.root, jax.random.normal(slope_key, one.shape), lower=True, trans=1)
        slopes = jnp.where(one == 1, fit.coefficients + noise * gap, 0.0)
        centre = y.mean() + noise / jnp.sqrt(1.0 * y.size) * jax.random.normal(intercept_key)
        return {"coefficient": slopes, "intercept": centre - x.mean(0) @ slopes, "noise": noise}

    return jax.lax.map(lambda each: draw(*each), (keys, included), batch_size=1024)


_MOST_TRIED = 20  # predictors that `exact` tries all sets of
