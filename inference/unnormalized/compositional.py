r"""Maximum likelihood by compositional optimization: the log of an expectation, from small batches.

The model is \(p_\theta(x) = e^{f(\theta, x)} / Z(\theta)\), and \(Z(\theta) = E_q[e^{f(\theta, y)} / q(y)]\)
for noise `q` of known density. The negative log likelihood \(-E f(\theta, x) + \log Z(\theta)\) has an
expectation inside a logarithm, so that a batch alone gives a biased gradient. A running estimate of \(\log
Z\) mends this.

References:
    Jiang, Qin, Wu, Chen, Yang & Zhang (2023), "Learning unnormalized statistical models via compositional
    optimization", ICML: the method MECO.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Shaped

from qbs.inference.method import require_positive
from qbs.inference.unnormalized.noise import GaussianNoise, Noise
from qbs.inference.unnormalized.training_method import (
    Direction,
    Info,
    LogDensities,
    TrainingMethod,
    effective_size,
    tree_dot,
)

_LAG = 5.0  # the rate, at least, over the change of log Z in a step
_ENOUGH = 50.0  # effective draws that the running estimate rests on
_FASTEST, _SLOWEST = 0.1, 0.01  # rates where nothing moves
_SMOOTH_DRIFT, _SMOOTH_SIZE = 0.1, 0.05
_REFIT = 0.2  # of the noise's moments, in a step


class Running(NamedTuple):
    """The state of `Compositional`.

    Attributes:
        noise: As refitted so far.
        log_partition: The running estimate.
        drift: What its change in a step is, by the gradient: a moving average.
        effective_size: Of the noise draws of a step: a moving average.
        rate: The share of the last batch in the estimate.
        last_params: Before the last step.
        slope: Gradient of log Z there.
        is_first: Whether no step was made yet.
    """

    noise: Noise
    log_partition: Float[Array, ""]
    drift: Float[Array, ""]
    effective_size: Float[Array, ""]
    rate: Float[Array, ""]
    last_params: Any
    slope: Any
    is_first: Bool[Array, ""]


class Compositional(TrainingMethod):
    r"""Maximum likelihood with a running estimate of the normalizing constant (MECO).

    The estimate is moved along with the parameters, by the gradient of \(\log Z\), and then a share of it,
    the rate \(\gamma\), is renewed from the noise draws of the step. By default the rate follows how fast
    \(\log Z\) moves, and otherwise is as small as keeps the estimate resting on some 50 effective draws.

    Attributes:
        num_steps: Steps of the optimizer.
        batch_size: Rows of the data in a step.
        learning_rate: Of Adam, in the first half of the steps; then it falls to zero along a line.
        num_noise: Noise draws in a step; by default as many as rows.
        rate: A fixed share of each batch in the running estimate, in (0, 1]; by default it is chosen, and the
            estimate moved along. A fixed rate is the method as published.
        adapt_noise: Whether Gaussian noise follows the model as it is trained; other noise stays as it is.

    References:
        Jiang, Qin, Wu, Chen, Yang & Zhang (2023), "Learning unnormalized statistical models via compositional
        optimization", ICML, algorithm 1.
    """

    num_noise: int | None = eqx.field(static=True, default=None)
    rate: float | None = eqx.field(static=True, default=None)
    adapt_noise: bool = eqx.field(static=True, default=True)

    def __check_init__(self) -> None:
        """Refuse settings that cannot be."""
        if self.num_noise is not None:
            require_positive(self, "num_noise", whole=True)
        if self.rate is not None and not 0 < self.rate <= 1:
            raise ValueError(f"Compositional: rate must be a number in (0, 1], not {self.rate!r}")

    def init(self, params: Any, noise: Noise) -> Running:
        """Return the state before the first step."""
        zero, one = jnp.zeros(()), jnp.ones(())
        nothing = jax.tree.map(jnp.zeros_like, params)
        return Running(noise, zero, zero, zero, one, params, nothing, jnp.ones((), bool))

    def direction(
        self,
        key: Array,
        params: Any,
        state: Running,
        batch: Shaped[Array, "num_rows ..."],
        densities: LogDensities,
    ) -> Direction:
        """Return the gradient of the negative log likelihood, with the running estimate for its constant."""
        num_noise = self.num_noise or len(batch)
        draws = jax.lax.stop_gradient(state.noise.sample(key, num_noise))
        of_rows, pull_rows = jax.vjp(lambda own: densities(own, batch), params)
        of_draws, pull_draws = jax.vjp(lambda own: densities(own, draws), params)
        log_weights = of_draws - state.noise.log_prob(draws)
        fresh = logsumexp(log_weights) - math.log(num_noise)
        size = effective_size(log_weights)
        running = self._moved(state, params, fresh, size)
        (upward,) = pull_rows(jnp.full_like(of_rows, 1 / len(batch)))
        (slope,) = pull_draws(jax.nn.softmax(log_weights))
        # The weights of the draws are over the estimate, not over their own sum.
        share = jnp.exp(fresh - running.log_partition)
        gradient = jax.tree.map(lambda up, down: share * down - up, upward, slope)
        noise = state.noise
        if self.adapt_noise and isinstance(noise, GaussianNoise):
            noise = noise.towards(draws, log_weights, _REFIT)
        objective = running.log_partition - jnp.mean(of_rows)
        info = Info(objective, running.log_partition, size)
        state = running._replace(noise=noise, last_params=params, slope=slope, is_first=jnp.zeros((), bool))
        return Direction(gradient, state, info, jnp.concatenate([of_rows, of_draws]))

    def _moved(self, state: Running, params: Any, fresh: Array, size: Array) -> Running:
        """Return the running estimate after the fresh one of a step."""
        steps = jax.tree.map(jnp.subtract, params, state.last_params)
        change = tree_dot(state.slope, steps)
        drift = state.drift + _SMOOTH_DRIFT * (change - state.drift)
        sizes = jnp.where(
            state.is_first, size, state.effective_size + _SMOOTH_SIZE * (size - state.effective_size)
        )
        if self.rate is None:
            steady = jnp.clip(sizes / _ENOUGH, _SLOWEST, _FASTEST)
            rate = jnp.clip(jnp.maximum(_LAG * jnp.abs(drift), steady), _SLOWEST, 1.0)
        else:
            rate, change = jnp.full((), self.rate), jnp.zeros(())
        rate = jnp.where(state.is_first, 1.0, rate)
        old = jnp.log1p(-jnp.minimum(rate, 1 - 1e-6)) + state.log_partition + change
        # An estimate of a constant that underflowed at some step is replaced whole.
        keeps = (rate < 1) & jnp.isfinite(old)
        mixed = jnp.where(keeps, jnp.logaddexp(jnp.where(keeps, old, 0.0), jnp.log(rate) + fresh), fresh)
        return state._replace(log_partition=mixed, drift=drift, effective_size=sizes, rate=rate)

    def trouble(self, state: Running) -> list[str]:
        """Return whether the running estimate was worth something at the end."""
        size, rate, drift = float(state.effective_size), float(state.rate), abs(float(state.drift))
        if size / rate < _ENOUGH:
            return [
                f"At the end the estimate of the constant rested on {size / rate:.0f} effective noise "
                f"draws, and needs {_ENOUGH:.0f}: {size:.1f} of those of a step at a rate of {rate:.2g}. "
                "The noise is far from the model, or num_noise is too small."
            ]
        if _LAG * drift > max(rate, _LAG * _SLOWEST):
            return [
                f"At the end log Z still changed by {drift:.2g} in a step, and the estimate of it lags "
                f"behind (rate {rate:.2g}): more steps, or a smaller learning_rate."
            ]
        return []


class ImportanceLikelihood(Compositional):
    """Maximum likelihood with the constant estimated from the noise draws of each step alone.

    This is `Compositional` of rate 1: a biased gradient where few of the draws count, and nothing that lags
    behind.
    """

    rate: float | None = eqx.field(static=True, default=1.0)
