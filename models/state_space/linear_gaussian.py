r"""Linear models with Gaussian noise: particle filters on one side, Kalman's filter on the other."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Float, Key, Num

from qbs.models.state_space._series import (
    ambient,
    is_known,
    length_of,
    parameter,
    require_shape,
    require_steps,
    series,
)


class GaussianStates(NamedTuple):
    """The distributions of the states of a series, each Gaussian.

    Attributes:
        means: The means.
        covariances: The covariance of each state.
    """

    means: Float[Array, "num_steps dim"]
    covariances: Float[Array, "num_steps dim dim"]


class LinearGaussian(eqx.Module):
    r"""A state that moves linearly, seen linearly, both with Gaussian noise.

    \(x_1 \sim N(m, P), \quad x_{t+1} \sim N(A x_t, Q), \quad y_t \sim N(H x_t, R).\)

    Called with a series it is a NumPyro model: a `jax.lax.scan` over time with the sites `"state"` and `"y"`,
    which returns the last state. It can be given to `qbs.reify` and `qbs.fit` as it is. The first
    observation belongs to the first state: a model that moves before its first observation has the initial
    mean \(A m_0\) and covariance \(A P_0 A^T + Q\).

    NaN in a series is a missing observation, of one component or of all: it is skipped.

    Numbers stand for matrices of one row and column. Values are checked where they are known; inside
    `jax.jit`, `jax.vmap` and `jax.grad` they are not, and a covariance that is not positive definite gives
    NaN. All computes in the precision of the moment: enter `jax.enable_x64(True)` for more digits. Filter and
    smoother keep roots of covariances, so that float32 serves for vague starts too.

    Attributes:
        transition: A.
        transition_covariance: Q, positive definite.
        observation: H.
        observation_covariance: R, positive definite.
        initial_mean: m, of the state at the first observation.
        initial_covariance: P, positive definite.

    Raises:
        ValueError: If a shape does not fit the others, a covariance is not symmetric and positive definite,
            or a number is not finite.

    References:
        Särkkä & Svensson (2023), "Bayesian filtering and smoothing", second edition, chapters 6 and 12; for
        the roots, Kaminski, Bryson & Schmidt (1971), "Discrete square root filtering".
    """

    transition: Float[Array | np.ndarray, "dim dim"]
    transition_covariance: Float[Array | np.ndarray, "dim dim"]
    observation: Float[Array | np.ndarray, "num_observed dim"]
    observation_covariance: Float[Array | np.ndarray, "num_observed num_observed"]
    initial_mean: Float[Array | np.ndarray, " dim"]
    initial_covariance: Float[Array | np.ndarray, "dim dim"]

    def __init__(
        self,
        *,
        transition: ArrayLike,
        transition_covariance: ArrayLike,
        observation: ArrayLike,
        observation_covariance: ArrayLike,
        initial_mean: ArrayLike,
        initial_covariance: ArrayLike,
    ):
        self.transition = _matrix(transition, "transition")
        self.transition_covariance = _matrix(transition_covariance, "transition_covariance")
        self.observation = _matrix(observation, "observation")
        self.observation_covariance = _matrix(observation_covariance, "observation_covariance")
        mean = parameter(initial_mean, "initial_mean")
        self.initial_mean = mean[None] if mean.ndim == 0 else mean
        self.initial_covariance = _matrix(initial_covariance, "initial_covariance")
        dim, num_observed = len(self.transition), len(self.observation)
        why = f"for a transition of {dim} rows"
        require_shape(self.transition, (dim, dim), "transition", "square")
        require_shape(self.observation, (num_observed, dim), "observation", why)
        require_shape(self.initial_mean, (dim,), "initial_mean", why)
        _require_covariance(self.transition_covariance, dim, "transition_covariance", why)
        _require_covariance(self.initial_covariance, dim, "initial_covariance", why)
        why = f"for an observation of {num_observed} rows"
        _require_covariance(self.observation_covariance, num_observed, "observation_covariance", why)

    def __call__(
        self, ys: Num[ArrayLike, "..."] | None = None, num_steps: int | None = None
    ) -> Float[Array, " dim"]:
        """Run the NumPyro model.

        Args:
            ys: The series, of shape `(num_steps, num_observed)`, or `(num_steps,)` where one number is
                observed; NaN where an observation is missing. `None` draws it.
            num_steps: The number of steps where the series is drawn.

        Returns:
            The last state.

        Raises:
            ValueError: If the series is empty or of another shape, or if both arguments are given, or none.
        """
        model = ambient(self)
        values = None if ys is None else self._series(ys)
        num_steps = length_of(values, num_steps)
        first, later = map(jnp.linalg.cholesky, (model.initial_covariance, model.transition_covariance))
        roots = jnp.concatenate([first[None], jnp.broadcast_to(later, (num_steps - 1, *later.shape))])
        offsets = jnp.zeros((num_steps, len(first))).at[0].set(model.initial_mean)
        observed = None if values is None else _observed(model, values)

        def step(state: Array, now: Any) -> tuple[Array, None]:
            offset, root, observed = now
            state = numpyro.sample(
                "state", dist.MultivariateNormal(model.transition @ state + offset, scale_tril=root)
            )
            if observed is None:
                noise = model.observation_covariance
                numpyro.sample("y", dist.MultivariateNormal(model.observation @ state, noise))
            else:
                y, observation, noise_root = observed
                seen = dist.MultivariateNormal(observation @ state, scale_tril=noise_root)
                numpyro.sample("y", seen, obs=y)
            return state, None

        return lax.scan(step, jnp.zeros(len(first)), (offsets, roots, observed))[0]

    def log_evidence(self, ys: Num[ArrayLike, "..."]) -> Float[Array, ""]:
        """Return the log density of a series, all states integrated out: Kalman's filter.

        Args:
            ys: The series, as for the model; NaN where an observation is missing.

        Returns:
            The log density of what is observed.

        Raises:
            ValueError: If the series is empty, of another shape, or infinite.
        """
        return _filter(self, self._series(ys))[0]

    def filter(self, ys: Num[ArrayLike, "..."]) -> GaussianStates:
        """Return the distribution of each state given the observations up to it.

        Args:
            ys: The series, as for the model.

        Returns:
            Means and covariances.

        Raises:
            ValueError: If the series is empty, of another shape, or infinite.
        """
        _, means, roots = _filter(self, self._series(ys))
        return _states(means, roots)

    def smooth(self, ys: Num[ArrayLike, "..."]) -> GaussianStates:
        """Return the distribution of each state given all observations.

        Args:
            ys: The series, as for the model.

        Returns:
            Means and covariances.

        Raises:
            ValueError: If the series is empty, of another shape, or infinite.

        References:
            Rauch, Tung & Striebel (1965), "Maximum likelihood estimates of linear dynamic systems".
        """
        return _states(*_smooth(self, self._series(ys)))

    def simulate(
        self, key: Key[Array, ""], num_steps: int
    ) -> tuple[Float[Array, "num_steps dim"], Float[Array, "num_steps num_observed"]]:
        """Draw a series and its states.

        Args:
            key: A JAX key.
            num_steps: The number of observations.

        Returns:
            The states, and the series.

        Raises:
            ValueError: If `num_steps` is not a whole number above 0.
        """
        return _simulate(self, key, require_steps(num_steps))

    def _series(self, ys: Any) -> Float[Array, "num_steps num_observed"]:
        return series(ys, (len(self.observation),)).astype(float)


def _matrix(value: Any, name: str) -> Any:
    array = parameter(value, name)
    if array.ndim == 0:
        return array[None, None]
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be a number or a matrix, not an array of shape {array.shape}")
    return array


def _require_covariance(array: Any, size: int, name: str, why: str) -> None:
    require_shape(array, (size, size), name, why)
    if not is_known(array):
        return
    values = np.asarray(array, dtype=float)
    if not np.allclose(values, values.T, rtol=1e-5, atol=1e-6 * np.abs(values).max()):
        raise ValueError(f"{name} must be symmetric, not {values}")
    try:
        np.linalg.cholesky(values)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"{name} must be positive definite, not {values}") from error


def _observed(model: Any, ys: Array) -> tuple[Array, Array, Array]:
    r"""Return values, H, and a root of R for each step, with what is missing taken out.

    A missing component is 0, whatever the state, with noise of variance \(1 / 2 \pi\), whose density is 1 at
    0: it adds nothing.
    """
    is_there = ~jnp.isnan(ys)
    noise = jnp.where(is_there[:, :, None] & is_there[:, None, :], model.observation_covariance, 0.0)
    noise += jnp.where(is_there, 0.0, 0.5 / jnp.pi)[:, None, :] * jnp.eye(ys.shape[1])
    observation = jnp.where(is_there[:, :, None], model.observation, 0.0)
    return jnp.where(is_there, ys, 0.0), observation, jnp.linalg.cholesky(noise)


def _triangle(blocks: list[list[Array]]) -> Array:
    """Return the lower triangular L whose L L^T is B B^T, of a matrix B in blocks; signs are free."""
    return jnp.linalg.qr(jnp.block(blocks).T, mode="r").T


@eqx.filter_jit
def _filter(given: LinearGaussian, ys: Array) -> tuple[Array, Array, Array]:
    """Return the log evidence, and the means and roots of covariances of the filtered states."""
    model = ambient(given)
    num_observed, dim = model.observation.shape
    moves = jnp.linalg.cholesky(model.transition_covariance)

    def step(predicted: Any, now: Any) -> Any:
        (mean, root), (y, observation, noise) = predicted, now
        joint = _triangle([[noise, observation @ root], [jnp.zeros((dim, num_observed)), root]])
        spread, gain = joint[:num_observed, :num_observed], joint[num_observed:, :num_observed]
        root = joint[num_observed:, num_observed:]
        whitened = solve_triangular(spread, y - observation @ mean, lower=True)
        log_scale = jnp.log(jnp.abs(jnp.diagonal(spread))) + 0.5 * jnp.log(2 * jnp.pi)
        mean = mean + gain @ whitened
        moved = model.transition @ mean, _triangle([[model.transition @ root, moves]])
        return moved, (-jnp.sum(0.5 * whitened**2 + log_scale), mean, root)

    start = model.initial_mean, jnp.linalg.cholesky(model.initial_covariance)
    log_densities, means, roots = lax.scan(step, start, _observed(model, ys))[1]
    return jnp.sum(log_densities), means, roots


@eqx.filter_jit
def _smooth(given: LinearGaussian, ys: Array) -> tuple[Array, Array]:
    """Return the means and roots of covariances of the smoothed states."""
    model = ambient(given)
    _, means, roots = _filter(given, ys)
    dim = len(model.transition)
    moves = jnp.linalg.cholesky(model.transition_covariance)

    def step(later: Any, now: Any) -> Any:
        (later_mean, later_root), (mean, root) = later, now
        joint = _triangle([[model.transition @ root, moves], [root, jnp.zeros((dim, dim))]])
        gain = solve_triangular(joint[:dim, :dim], joint[dim:, :dim].T, lower=True, trans="T").T
        mean = mean + gain @ (later_mean - model.transition @ mean)
        smoothed = mean, _triangle([[joint[dim:, dim:], gain @ later_root]])
        return smoothed, smoothed

    last = means[-1], roots[-1]
    early = lax.scan(step, last, (means[:-1], roots[:-1]), reverse=True)[1]
    return jax.tree.map(lambda before, end: jnp.concatenate([before, end[None]]), early, last)


def _states(means: Array, roots: Array) -> GaussianStates:
    return GaussianStates(means, roots @ jnp.swapaxes(roots, -1, -2))


@eqx.filter_jit
def _simulate(given: LinearGaussian, key: Array, num_steps: int) -> tuple[Array, Array]:
    model = ambient(given)
    of_states, of_noise = jax.random.split(key)
    num_observed, dim = model.observation.shape
    moves = jax.random.normal(of_states, (num_steps, dim))
    noise = jax.random.normal(of_noise, (num_steps, num_observed))
    first = model.initial_mean + jnp.linalg.cholesky(model.initial_covariance) @ moves[0]
    root = jnp.linalg.cholesky(model.transition_covariance)

    def step(state: Array, move: Array) -> tuple[Array, Array]:
        state = model.transition @ state + root @ move
        return state, state

    states = jnp.concatenate([first[None], lax.scan(step, first, moves[1:])[1]])
    root = jnp.linalg.cholesky(model.observation_covariance)
    return states, states @ model.observation.T + noise @ root.T
