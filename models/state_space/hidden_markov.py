"""Hidden Markov models: particle filters on one side, the forward and backward passes on the other."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Key, Shaped
from numpyro import handlers

from qbs.captured import own_constants
from qbs.models.state_space._series import (
    ambient,
    is_known,
    length_of,
    parameter,
    require_shape,
    require_steps,
    series,
    split_missing,
)

_ROUNDING = 1e-5
"""How far the sum of a row of probabilities may be from 1: rows may come in float32."""


class HiddenMarkov(eqx.Module):
    r"""A state of finitely many that moves by a matrix of probabilities, seen through a distribution each.

    \(x_1 \sim p, \quad P(x_{t+1} = j \mid x_t = i) = P_{ij}, \quad y_t \sim \mathrm{emission}(x_t).\)

    Called with a series it is a NumPyro model: a `jax.lax.scan` over time with the sites `"state"`, which
    counts from 0, and `"y"`, and returns the last state. It can be given to `qbs.reify` as it is. The first
    observation belongs to the first state: a model that moves before its first observation has the initial
    probabilities \(p_0 P\).

    A step of a series that holds NaN is missing: it is skipped, all of it.

    ```python
    means = jnp.array([-1.0, 0.0, 1.0])
    model = HiddenMarkov(transition, initial, lambda state: dist.Normal(means[state], 0.5))
    ```

    Values are checked where they are known; inside `jax.jit`, `jax.vmap` and `jax.grad` they are not. All
    computes in the precision of the moment: enter `jax.enable_x64(True)` for more digits.

    Attributes:
        transition: P; each row sums to 1. A zero is a move that never happens, with a zero gradient.
        initial: p, of the state at the first observation.
        emission: From states, one or an array of them, to a NumPyro distribution with their shape in front
            of its batch shape: it is written with array indexing, as above.

    Raises:
        ValueError: If a shape does not fit, or a row is not made of probabilities that sum to 1.

    References:
        Rabiner (1989), "A tutorial on hidden Markov models and selected applications in speech recognition",
        Proceedings of the IEEE 77.
    """

    transition: Float[Array | np.ndarray, "num_states num_states"]
    initial: Float[Array | np.ndarray, " num_states"]
    emission: Callable = eqx.field(static=True)

    def __init__(self, transition: ArrayLike, initial: ArrayLike, emission: Callable):
        self.transition = parameter(transition, "transition")
        self.initial = parameter(initial, "initial")
        self.emission = emission
        if self.transition.ndim != 2 or self.transition.size == 0:
            raise ValueError(f"transition must be a square matrix, not of shape {self.transition.shape}")
        size = len(self.transition)
        require_shape(self.transition, (size, size), "transition", "square")
        require_shape(self.initial, (size,), "initial", f"for {size} states")
        _require_probabilities(self.transition, "each row of transition")
        _require_probabilities(self.initial, "initial")
        if not callable(emission):
            raise ValueError(f"emission must be a function of states, not {type(emission).__name__}")

    def __call__(
        self, ys: Shaped[ArrayLike, "..."] | None = None, num_steps: int | None = None
    ) -> Int[Array, ""]:
        """Run the NumPyro model.

        Args:
            ys: The series, time in front; a step that holds NaN is missing. `None` draws it.
            num_steps: The number of steps where the series is drawn.

        Returns:
            The last state.

        Raises:
            ValueError: If the series is empty or of another shape, or if both arguments are given, or none.
        """
        transition, initial = ambient((self.transition, self.initial))
        emission = own_constants(self.emission)
        observed = None if ys is None else split_missing(self._series(ys))
        num_steps = length_of(None if observed is None else observed[0], num_steps)

        def step(state: Array, now: Any) -> tuple[Array, None]:
            is_first, observed = now
            row = jnp.where(is_first, initial, transition[state])
            state = numpyro.sample("state", dist.Categorical(probs=row))
            if observed is None:
                numpyro.sample("y", emission(state))
            else:
                y, is_observed = observed
                with handlers.mask(mask=is_observed):
                    numpyro.sample("y", emission(state), obs=y)
            return state, None

        return lax.scan(step, jnp.zeros((), int), (jnp.arange(num_steps) == 0, observed))[0]

    def log_evidence(self, ys: Shaped[ArrayLike, "..."]) -> Float[Array, ""]:
        """Return the log density of a series, all paths summed: the forward algorithm.

        Args:
            ys: The series, as for the model.

        Returns:
            The log density of what is observed; `-inf` where no path allows it.

        Raises:
            ValueError: If the series is empty, of another shape, or infinite.
        """
        return _forward(*self._logs(ys))[0]

    def filter(self, ys: Shaped[ArrayLike, "..."]) -> Float[Array, "num_steps num_states"]:
        """Return the probabilities of each state given the observations up to it.

        Args:
            ys: The series, as for the model.

        Returns:
            The probabilities; zeros from the step on that makes the series impossible.

        Raises:
            ValueError: If the series is empty, of another shape, or infinite.
        """
        return jnp.exp(_forward(*self._logs(ys))[1])

    def smooth(self, ys: Shaped[ArrayLike, "..."]) -> Float[Array, "num_steps num_states"]:
        """Return the probabilities of each state given all observations: the forward-backward algorithm.

        Args:
            ys: The series, as for the model.

        Returns:
            The probabilities; zeros where the series is impossible.

        Raises:
            ValueError: If the series is empty, of another shape, or infinite.
        """
        return _smooth(*self._logs(ys))

    def most_likely_path(self, ys: Shaped[ArrayLike, "..."]) -> Int[Array, " num_steps"]:
        """Return the states that are most probable together given all observations: Viterbi's algorithm.

        Args:
            ys: The series, as for the model.

        Returns:
            The path; one of them, where several are equally probable.

        Raises:
            ValueError: If the series is empty, of another shape, or infinite.

        References:
            Viterbi (1967), "Error bounds for convolutional codes", IEEE Transactions on Information
            Theory 13.
        """
        return _most_likely(*self._logs(ys))

    def simulate(
        self, key: Key[Array, ""], num_steps: int
    ) -> tuple[Int[Array, " num_steps"], Shaped[Array, "num_steps ..."]]:
        """Draw a series and its states.

        Args:
            key: A JAX key.
            num_steps: The number of observations.

        Returns:
            The states, and the series.

        Raises:
            ValueError: If `num_steps` is not a whole number above 0.
        """
        of_states, of_noise = jax.random.split(key)
        initial, transition = ambient((self.initial, self.transition))
        states = _draw_states(initial, transition, of_states, require_steps(num_steps))
        return states, self._emissions(states).sample(of_noise)

    def _emissions(self, states: Array) -> dist.Distribution:
        """Return the distributions of observations at states."""
        found = own_constants(self.emission)(states)
        if not isinstance(found, dist.Distribution):
            raise ValueError(f"emission must return a NumPyro distribution, not {type(found).__name__}")
        if found.batch_shape != states.shape:
            raise ValueError(
                f"emission must return a distribution of batch shape {states.shape} for as many states, not "
                f"{found.batch_shape}: give the axes of one observation to the event with to_event"
            )
        return found

    def _series(self, ys: Any) -> Array:
        return series(ys, self._in_each_state().event_shape)

    def _in_each_state(self) -> dist.Distribution:
        return self._emissions(jnp.arange(len(self.transition)))

    def _logs(self, ys: Any) -> tuple:
        """Return log probabilities: of the first state, of moves, and of each observation in each state."""
        values, is_observed = split_missing(self._series(ys))
        log_prob = self._in_each_state().log_prob(values[:, None])
        return _to_logs(*ambient((self.initial, self.transition)), log_prob, is_observed)


def _require_probabilities(rows: Any, name: str) -> None:
    if not is_known(rows):
        return
    values = np.asarray(rows, dtype=float)
    sums = values.sum(-1)
    if np.any(values < 0) or np.any(np.abs(sums - 1) > _ROUNDING):
        raise ValueError(f"{name} must be made of probabilities that sum to 1, not {values} of sum {sums}")


def _log(x: Array) -> Array:
    """Return the log, `-inf` with a zero gradient at 0."""
    is_positive = x > 0
    return jnp.where(is_positive, jnp.log(jnp.where(is_positive, x, 1.0)), -jnp.inf)


def _log_sum(x: Array, axis: int) -> Array:
    """Return the log of a sum of exponentials, `-inf` with a zero gradient where all of them are zero."""
    top = _or_zero(lax.stop_gradient(jnp.max(x, axis, keepdims=True)))
    return _log(jnp.sum(jnp.exp(x - top), axis)) + jnp.squeeze(top, axis)


def _or_zero(x: Array) -> Array:
    """Return what to subtract from log probabilities: 0 where all of them are `-inf`."""
    return jnp.where(x == -jnp.inf, 0.0, x)


@jax.jit
def _to_logs(initial: Array, transition: Array, log_prob: Array, is_observed: Array) -> tuple:
    log_likelihoods = jnp.where(is_observed[:, None], log_prob, 0.0)
    return _log(initial), _log(transition), log_likelihoods.astype(float)


@jax.jit
def _forward(initial: Array, transition: Array, log_likelihoods: Array) -> tuple[Array, Array]:
    """Return the log evidence, and the log filtering probabilities."""

    def step(predicted: Array, log_likelihood: Array) -> tuple[Array, tuple[Array, Array]]:
        joint = predicted + log_likelihood
        increment = _log_sum(joint, 0)
        filtered = joint - _or_zero(increment)
        return _log_sum(filtered[:, None] + transition, 0), (increment, filtered)

    increments, filtered = lax.scan(step, initial, log_likelihoods)[1]
    return jnp.sum(increments), filtered


@jax.jit
def _smooth(initial: Array, transition: Array, log_likelihoods: Array) -> Array:
    def step(later: Array, log_likelihood: Array) -> tuple[Array, Array]:
        now = _log_sum(transition + log_likelihood + later, 1)
        now = now - _or_zero(jnp.max(now))
        return now, now

    last = jnp.zeros(len(initial))
    _, backward = lax.scan(step, last, log_likelihoods[1:], reverse=True)
    joint = _forward(initial, transition, log_likelihoods)[1] + jnp.concatenate([backward, last[None]])
    return jnp.exp(joint - _or_zero(_log_sum(joint, 1))[:, None])


@jax.jit
def _most_likely(initial: Array, transition: Array, log_likelihoods: Array) -> Array:
    def step(best: Array, log_likelihood: Array) -> tuple[Array, Array]:
        ways = best[:, None] + transition
        return jnp.max(ways, 0) + log_likelihood, jnp.argmax(ways, 0)

    best, origins = lax.scan(step, initial + log_likelihoods[0], log_likelihoods[1:])
    last = jnp.argmax(best)

    def back(state: Array, origin: Array) -> tuple[Array, Array]:
        return origin[state], origin[state]

    _, path = lax.scan(back, last, origins, reverse=True)
    return jnp.concatenate([path, last[None]])


@eqx.filter_jit
def _draw_states(initial: Array, transition: Array, key: Array, num_steps: int) -> Array:
    first, *_ = keys = jax.random.split(key, num_steps)

    def step(state: Array, key: Array) -> tuple[Array, Array]:
        state = jax.random.categorical(key, _log(transition)[state])
        return state, state

    start = jax.random.categorical(first, _log(initial))
    return jnp.concatenate([start[None], lax.scan(step, start, keys[1:])[1]])
