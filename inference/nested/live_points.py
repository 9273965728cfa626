"""Live points: the least likely die, and others are born above them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from qbs.inference.nested.constrained import Course, Walks

_TRIALS = 3.0  # for a step of a walk, which the length of stretches is adapted to
_RIDGE = 1e-10


class Live(NamedTuple):
    """The live points, and how far the run is.

    Attributes:
        points: In the unit cube.
        log_likelihoods: There.
        births: The bound that each was born above.
        is_alive: Whether the place holds a live point.
        bound: Log likelihood of the last that died.
        width: Length of stretches, in units of the live points' spread.
        log_volume: Of the prior above the bound.
        log_evidence: Of the dead.
        num_iterations: So far.
    """

    points: Float[Array, "num_live dim"]
    log_likelihoods: Float[Array, " num_live"]
    births: Float[Array, " num_live"]
    is_alive: Bool[Array, " num_live"]
    bound: Float[Array, ""]
    width: Float[Array, ""]
    log_volume: Float[Array, ""]
    log_evidence: Float[Array, ""]
    num_iterations: Int[Array, ""]

    @property
    def highest(self) -> Float[Array, ""]:
        """The greatest log likelihood of a live point."""
        return jnp.where(self.is_alive, self.log_likelihoods, -jnp.inf).max()

    @property
    def lowest(self) -> Float[Array, ""]:
        """The least log likelihood of a live point."""
        return jnp.where(self.is_alive, self.log_likelihoods, jnp.inf).min()

    @property
    def is_flat(self) -> Bool[Array, ""]:
        """Whether all live points are equally likely, so that what they hold is known."""
        return self.highest <= self.lowest

    @property
    def remaining(self) -> Float[Array, ""]:
        """How much the live points may add to the log evidence, in nats, if none is likelier to come."""
        return jnp.logaddexp(self.log_evidence, self.highest + self.log_volume) - self.log_evidence


class Dead(NamedTuple):
    """Points that died in an iteration, or none.

    Attributes:
        points: In the unit cube.
        log_likelihoods: There.
        births: The bounds that they were born above.
        is_dead: Whether the entry is one.
    """

    points: Float[Array, "batch dim"]
    log_likelihoods: Float[Array, " batch"]
    births: Float[Array, " batch"]
    is_dead: Bool[Array, " batch"]


class Vacancies(NamedTuple):
    """Places that are to be filled, and where the walks to fill them start.

    Attributes:
        places: Among the live points.
        is_vacant: Whether the entry is one; all are False where ties have yet to die.
        starts: Live points that the walks start at.
    """

    places: Int[Array, " batch"]
    is_vacant: Bool[Array, " batch"]
    starts: Int[Array, " batch"]


def first_live(points: Float[Array, "num_live dim"], log_likelihoods: Float[Array, " num_live"]) -> Live:
    """Return live points that were drawn from the prior."""
    zero, least = jnp.zeros(()), jnp.asarray(-jnp.inf)
    return Live(
        points,
        log_likelihoods,
        jnp.full(len(points), -jnp.inf),
        jnp.ones(len(points), bool),
        least,
        jnp.ones(()),
        zero,
        least,
        jnp.zeros((), int),
    )


def deaths(live: Live, batch: int) -> tuple[Live, Dead]:
    """Let the least likely die: up to `batch`, but none that is as likely as the likeliest.

    None dies while places are vacant, but for those that tie with the last that died.
    """
    standing = jnp.where(live.is_alive, live.log_likelihoods, jnp.inf)
    least, places = jax.lax.top_k(-standing, batch)
    values = -least
    may_die = live.is_alive.all() | (live.lowest <= live.bound)
    is_dead = may_die & live.is_alive[places] & (values < live.highest)
    dead = Dead(live.points[places], values, live.births[places], is_dead)
    # They die one after the other.
    alive = live.is_alive.sum() - jnp.arange(batch)
    falls = jnp.where(is_dead, 1.0 / jnp.maximum(alive, 1), 0.0)
    before = live.log_volume - jnp.concatenate([jnp.zeros(1), jnp.cumsum(falls)[:-1]])
    shells = jnp.where(is_dead, values + before + jnp.log(-jnp.expm1(-falls)), -jnp.inf)
    return (
        live._replace(
            is_alive=live.is_alive.at[places].set(live.is_alive[places] & ~is_dead),
            bound=jnp.maximum(live.bound, jnp.where(is_dead, values, -jnp.inf).max()),
            log_volume=live.log_volume - falls.sum(),
            log_evidence=jnp.logaddexp(live.log_evidence, jax.scipy.special.logsumexp(shells)),
        ),
        dead,
    )


def vacancies(key: Array, live: Live, batch: int) -> Vacancies:
    """Return the places to fill, none while a live point ties with the last that died."""
    _, places = jax.lax.top_k(~live.is_alive, batch)
    is_vacant = ~live.is_alive[places] & (live.lowest > live.bound)
    logits = jnp.where(live.is_alive, 0.0, -jnp.inf)
    return Vacancies(places, is_vacant, jax.random.categorical(key, logits, shape=(batch,)))


def course(key: Array, live: Live, batch: int, num_steps: int) -> Course:
    """Draw directions: half of them by the covariance of the live points, half between two of them."""
    which, whiten, ends, places = jax.random.split(key, 4)
    dim = live.points.shape[1]
    shares = live.is_alive / live.is_alive.sum()
    mean = shares @ live.points
    centred = live.points - mean
    covariance = (shares[:, None] * centred).T @ centred
    scales = jnp.sqrt(jnp.maximum(jnp.diagonal(covariance), 1e-300))
    correlation = covariance / scales / scales[:, None] + _RIDGE * jnp.eye(dim)
    factor = scales[:, None] * jnp.linalg.cholesky(correlation)
    normals = jax.random.normal(whiten, (batch, num_steps, dim))
    lengths = jnp.linalg.norm(normals, axis=-1, keepdims=True)
    # The surface of the ellipsoid whose uniform distribution has this covariance.
    whitened = (normals / lengths) @ factor.T * jnp.sqrt(dim + 2.0)
    logits = jnp.where(live.is_alive, 0.0, -jnp.inf)
    first, second = jax.random.categorical(ends, logits, shape=(2, batch, num_steps))
    between = (live.points[first] - live.points[second]) / jnp.sqrt(2.0)
    is_between = jax.random.uniform(which, (batch, num_steps)) < 0.5
    is_between &= first != second
    return Course(
        jnp.where(is_between[..., None], between, whitened),
        jax.random.uniform(places, (batch, num_steps)),
        live.width,
        live.bound,
    )


def births(key: Array, live: Live, vacant: Vacancies, walks: Walks) -> tuple[Live, Float[Array, " batch"]]:
    """Put the ends of walks in the places to fill; and return their ranks among those there before.

    Ranks are shares in [0, 1], with a random number added to the count; NaN for those not put.
    """
    new = walks.log_likelihoods[:, None]
    below = jnp.sum(live.is_alive & (live.log_likelihoods < new), axis=1)
    ties = jnp.sum(live.is_alive & (live.log_likelihoods == new), axis=1)
    shares = jax.random.uniform(key, below.shape)
    ranks = (below + shares * (ties + 1)) / (live.is_alive.sum() + 1)
    # Entries that are not vacant are put nowhere.
    places = jnp.where(vacant.is_vacant, vacant.places, len(live.points))
    trials = walks.num_trials / jnp.maximum(walks.steps.sum(), 1)
    grown = live.width * jnp.exp(jnp.clip(0.5 * (_TRIALS - trials) / _TRIALS, -0.5, 0.5))
    is_any = vacant.is_vacant.any()
    return (
        live._replace(
            points=live.points.at[places].set(walks.points, mode="drop"),
            log_likelihoods=live.log_likelihoods.at[places].set(walks.log_likelihoods, mode="drop"),
            births=live.births.at[places].set(live.bound, mode="drop"),
            is_alive=live.is_alive.at[places].set(True, mode="drop"),
            width=jnp.where(is_any, grown, live.width),
        ),
        jnp.where(vacant.is_vacant, ranks, jnp.nan),
    )


def counted(live: Live) -> Live:
    """Return the live points after one more iteration."""
    return live._replace(num_iterations=live.num_iterations + 1)


def is_over(live: Live, dlogz: ArrayLike) -> Bool[Array, ""]:
    """Whether the live points can add too little to go on, or what they add is known."""
    return (live.remaining < dlogz) | live.is_flat
