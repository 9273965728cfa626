"""Change-points of unknown number in a series of counts.

The rate of a Poisson series is constant between change-points, whose number, places and rates are unknown.
`reversible_jump` samples all of them; `exact` sums them out by dynamic programming.

References:
    Green (1995), "Reversible jump Markov chain Monte Carlo computation and Bayesian model determination",
    section 4. Fearnhead (2006), "Exact and efficient Bayesian inference for multiple changepoint problems".
    Data: Jarrett (1979), "A note on the intervals between coal-mining disasters", counted by year.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.special
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike, Float, Int

from qbs.effects import sample
from qbs.errors import ModelError
from qbs.inference import mcmc

COAL_MINING_YEARS = range(1851, 1963)
"""The years of `COAL_MINING_DISASTERS`."""

COAL_MINING_DISASTERS = tuple(
    map(
        int,
        "4541043406334026335453144155342522342132211113001011003103220111010100021000110233112111124200014000100000"
        "100101",
    )
)
"""Explosions in British coal mines that killed ten or more, by year."""


class Exact(NamedTuple):
    """What dynamic programming finds.

    Attributes:
        log_evidence: Log marginal likelihood of the series, in nats.
        log_evidences: The same given each number of change-points.
        probabilities: Posterior probability of each number of change-points.
        places: Given each number (row), the probability that there is a change-point before each
            observation (column).
    """

    log_evidence: float
    log_evidences: np.ndarray
    probabilities: np.ndarray
    places: np.ndarray


class ChangePoint(eqx.Module):
    """A Poisson series whose rate changes at unknown times, an unknown number of times.

    Called as a NumPyro model, of the sites

    * `count`: the number of change-points;
    * `first_rate`: the rate before the first of them;
    * `place`: for each, the number of the observation (from 1 up) that it stands before, in no order;
    * `rate`: for each, the rate from there to the next.

    Only the first `count` places and rates exist. The places are a uniform draw of different ones.

    ```python
    model = qbs.models.change_point.ChangePoint()
    method = mcmc.Chains(model.kernel(counts), is_unconstrained=False)
    posterior = qbs.fit(model, counts, method=method, key=key)
    ```

    Attributes:
        max_count: Most change-points.
        prior_mean: Of the Poisson prior of their number, cut off at `max_count`.
        shape: Of the gamma prior of the rate in each segment.
        scale: Of that prior, in the unit of the counts; the mean is shape times scale.
    """

    max_count: int = eqx.field(static=True, default=10)
    prior_mean: float = 3.0
    shape: float = 1.0
    scale: float = 1.0

    def __check_init__(self) -> None:
        if isinstance(self.max_count, bool) or not isinstance(self.max_count, int) or self.max_count < 1:
            raise ValueError(f"max_count must be a whole number above 0, not {self.max_count!r}")
        for name in ("prior_mean", "shape", "scale"):
            value = getattr(self, name)
            if not (np.ndim(value) == 0 and 0 < value < np.inf):
                raise ValueError(f"{name} must be a number above 0, not {value!r}")

    def __call__(self, counts: ArrayLike) -> None:
        """Be the NumPyro model of a series of counts; see the class."""
        counts = self._checked(counts)
        num_places = counts.size - 1
        count = numpyro.sample("count", dist.Categorical(logits=self._log_prior()))
        is_there = jnp.arange(self.max_count) < count
        prior = dist.Gamma(self.shape, 1 / jnp.asarray(self.scale))
        first_rate = numpyro.sample("first_rate", prior)
        uniform = dist.DiscreteUniform(1, num_places).expand([self.max_count])
        place = numpyro.sample("place", uniform.mask(is_there))
        rate = numpyro.sample("rate", prior.expand([self.max_count]).mask(is_there))
        same = (place[:, None] == place) & is_there[:, None] & is_there
        is_twice = jnp.any(same & ~jnp.eye(self.max_count, dtype=bool))
        log_lists = gammaln(num_places + 1.0) - gammaln(num_places - count + 1.0)
        different = count * jnp.log(1.0 * num_places) - log_lists
        numpyro.factor("all places differ", jnp.where(is_twice, -jnp.inf, different))
        rates = jnp.append(rate, first_rate)[self._segments(count, place, counts.size)]
        # An impossible rate, in a slot of no use, must not reach the likelihood.
        numpyro.sample("counts", dist.Poisson(jnp.where(rates > 0, rates, 1.0)), obs=counts)
        numpyro.factor("rates are positive", jnp.where(jnp.all(rates > 0), 0.0, -jnp.inf))

    def kernel(self, counts: ArrayLike) -> mcmc.Kernel:
        """Return the kernel that samples everything: jumps, moves of places, and rates drawn given all else.

        Args:
            counts: The series that the model is fitted to.
        """
        counts = self._checked(counts)
        num_places = counts.size - 1
        everywhere = dist.DiscreteUniform(1, num_places)
        prior = dist.Gamma(self.shape, 1 / jnp.asarray(self.scale))
        jumps = mcmc.reversible_jump(
            mcmc.Birth(lambda _: {"place": everywhere, "rate": prior}),
            slots=["place", "rate"],
            reference={"place": 1, "rate": 1.0},
        )

        def shift(_: dict[str, Array]) -> None:
            sample("slot", dist.DiscreteUniform(0, self.max_count - 1))
            sample("by", dist.DiscreteUniform(-_FARTHEST, _FARTHEST))

        def shifted(state: dict[str, Array], drawn: dict[str, Array]) -> tuple:
            place = state["place"].at[drawn["slot"]].add(drawn["by"])
            return {**state, "place": place}, {**drawn, "by": -drawn["by"]}, jnp.zeros(())

        def rates_given_all(state: dict[str, Array]) -> dict[str, dist.Distribution]:
            segment = self._segments(state["count"], state["place"], counts.size)
            totals = jnp.zeros(self.max_count + 1).at[segment].add(counts)
            lengths = jnp.zeros(self.max_count + 1).at[segment].add(1.0)
            law = dist.Gamma(self.shape + totals, 1 / self.scale + lengths)
            is_there = jnp.arange(self.max_count) < state["count"]
            slots = dist.Gamma(law.concentration[:-1], law.rate[:-1]).mask(is_there)
            return {"rate": slots, "first_rate": dist.Gamma(law.concentration[-1], law.rate[-1])}

        return mcmc.cycle(jumps, mcmc.green(shift, shifted), mcmc.Conditional(rates_given_all))

    def exact(self, counts: ArrayLike) -> "Exact":
        """Return the posterior of number and places, by dynamic programming, in float64.

        The cost is of the order of `max_count * T ** 2`.
        """
        values = np.asarray(self._checked(counts), float)
        num_steps = values.size
        totals, logs = (
            np.append(0, np.cumsum(values)),
            np.append(0, np.cumsum(scipy.special.gammaln(values + 1))),
        )
        start, end = np.arange(num_steps)[:, None], np.arange(1, num_steps + 1)
        total, length = totals[end] - totals[start], np.maximum(end - start, 0)
        segment = (  # log marginal likelihood of the observations from start to end
            scipy.special.gammaln(self.shape + total)
            - scipy.special.gammaln(self.shape)
            - self.shape * np.log(self.scale)
            - (self.shape + total) * np.log(1 / self.scale + length)
            - (logs[end] - logs[start])
        )
        segment = np.where(end > start, segment, -np.inf)
        # forward[k, t]: of the first t observations, sums over sets of k change-points; backward alike.
        forward = np.full((self.max_count + 1, num_steps + 1), -np.inf)
        backward = np.full((self.max_count + 1, num_steps + 1), -np.inf)
        forward[0, 1:], backward[0, :-1] = segment[0], segment[:, -1]
        for k in range(1, self.max_count + 1):
            forward[k, 1:] = scipy.special.logsumexp(forward[k - 1, :-1, None] + segment, axis=0)
            backward[k, :-1] = scipy.special.logsumexp(segment + backward[k - 1, 1:], axis=1)
        number = np.arange(self.max_count + 1)
        log_sets = (
            scipy.special.gammaln(num_steps)
            - scipy.special.gammaln(number + 1)
            - scipy.special.gammaln(num_steps - number)
        )
        log_evidences = forward[:, -1] - log_sets
        joint = np.asarray(jax.nn.log_softmax(self._log_prior()), float) + log_evidences
        places = np.zeros((self.max_count + 1, num_steps))
        for k in range(1, self.max_count + 1):
            left = np.array([forward[j] + backward[k - 1 - j] for j in range(k)])
            places[k] = np.exp(scipy.special.logsumexp(left, axis=0) - forward[k, -1])[:-1]
        log_evidence = scipy.special.logsumexp(joint)
        return Exact(float(log_evidence), log_evidences, np.exp(joint - log_evidence), places)

    def _log_prior(self) -> Float[Array, " num_counts"]:
        number = jnp.arange(self.max_count + 1)
        return number * jnp.log(self.prior_mean) - gammaln(number + 1.0)

    def _segments(self, count: Array, place: Array, num_steps: int) -> Int[Array, " num_steps"]:
        """Return, for each time, the slot of the last change-point; the number of slots before the first."""
        is_before = (place <= jnp.arange(num_steps)[:, None]) & (jnp.arange(self.max_count) < count)
        latest = jnp.argmax(jnp.where(is_before, place, 0), axis=1)
        return jnp.where(is_before.any(1), latest, self.max_count)

    def _checked(self, counts: ArrayLike) -> Array:
        counts = jnp.asarray(counts)
        if counts.ndim != 1 or counts.size <= self.max_count + 1:
            raise ModelError(
                f"ChangePoint needs a series of more than {self.max_count + 1} counts, not an array of shape "
                f"{counts.shape}"
            )
        if not jnp.issubdtype(counts.dtype, jnp.integer):
            raise ModelError(f"ChangePoint needs whole numbers, not {counts.dtype}")
        return counts


_FARTHEST = 5  # steps of time that a change-point is moved by, at most
