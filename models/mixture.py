"""Normal mixtures of an unknown number of components.

Which component an observation comes from is summed out, and the weights are independent variables that are
divided by their sum. So the components are independent draws, given one rate that they share, and reversible
jump adds and removes, splits and merges them as they are.

References:
    Richardson & Green (1997), "On Bayesian analysis of mixtures with an unknown number of components".
    Data: Roeder (1990), "Density estimation with confidence sets exemplified by superclusters and voids in
    the galaxies".
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Bool, Float

from qbs.effects import sample
from qbs.errors import ModelError
from qbs.inference import mcmc
from qbs.inference.mcmc.kernel import Target, finite_or_impossible, report
from qbs.inference.results.diagnostics import chain_statistics
from qbs.inference.results.posterior import Posterior

GALAXY_VELOCITIES = (
    *(9.172, 9.350, 9.483, 9.558, 9.775, 10.227, 10.406, 16.084, 16.170, 18.419, 18.552, 18.600, 18.927),
    *(19.052, 19.070, 19.330, 19.343, 19.349, 19.440, 19.473, 19.529, 19.541, 19.547, 19.663, 19.846),
    *(19.856, 19.863, 19.914, 19.918, 19.973, 19.989, 20.166, 20.175, 20.179, 20.196, 20.215, 20.221),
    *(20.415, 20.629, 20.795, 20.821, 20.846, 20.875, 20.986, 21.137, 21.492, 21.701, 21.814, 21.921),
    *(21.960, 22.185, 22.209, 22.242, 22.249, 22.314, 22.374, 22.495, 22.746, 22.747, 22.888, 22.914),
    *(23.206, 23.241, 23.263, 23.484, 23.538, 23.542, 23.666, 23.706, 23.711, 24.129, 24.285, 24.289),
    *(24.366, 24.717, 24.990, 25.633, 26.960, 26.995, 32.065, 32.789, 34.279),
)
"""Velocities of 82 galaxies in Corona Borealis, in 1000 km/s.

The 78th is 26.960. The table `galaxies` of R's MASS has 26.690 there, by a typing error that its page names.
"""

GALAXY_COUNTS = (0.0, 0.0, 0.061, 0.128, 0.182, 0.199, 0.160, 0.109, 0.071, 0.040, 0.023, 0.013, 0.006, 0.003)
"""Published posterior probabilities of 1, 2, ... components of them; Richardson & Green (1997)."""


class Mixture(eqx.Module):
    """A mixture of normal distributions, of unknown number, weights, means and variances.

    Called as a NumPyro model, of the sites

    * `count`: the number of components, uniform from 1 to `max_count`;
    * `weight`: of each component, an exponential variable; what the mixture weighs are they over their sum,
      uniform on the simplex;
    * `mean`: of each component, normal about `middle` with standard deviation `width`;
    * `precision`: one over the variance of each component, a gamma variable of `shape` and of the rate
    * `rate`: which the components share, a gamma variable of `rate_shape` and `rate_scale / width**2`.

    Only the first `count` weights, means and precisions exist, in no order. The defaults are the priors of
    Richardson & Green.

    ```python
    model = qbs.models.mixture.Mixture()
    method = mcmc.Chains(model.kernel(y), is_unconstrained=False)
    posterior = qbs.fit(model, y, method=method, key=key)
    ```

    Attributes:
        max_count: Most components.
        middle: Of the prior of the means, in the unit of the observations; half-way between the least and
            the greatest by default.
        width: Of that prior; from the least observation to the greatest by default.
        shape: Of the gamma prior of precisions.
        rate_shape: Of the gamma prior of their rate.
        rate_scale: Of that prior, times `width**2`.
    """

    max_count: int = eqx.field(static=True, default=30)
    middle: float | None = None
    width: float | None = None
    shape: float = 2.0
    rate_shape: float = 0.2
    rate_scale: float = 10.0

    def __check_init__(self) -> None:
        if isinstance(self.max_count, bool) or not isinstance(self.max_count, int) or self.max_count < 2:
            raise ValueError(f"max_count must be a whole number above 1, not {self.max_count!r}")
        for name in ("width", "shape", "rate_shape", "rate_scale"):
            value = getattr(self, name)
            if not (name == "width" and value is None) and not (np.ndim(value) == 0 and 0 < value < np.inf):
                raise ValueError(f"{name} must be a number above 0, not {value!r}")

    def __call__(self, y: ArrayLike) -> None:
        """Be the NumPyro model of observations; see the class."""
        y = self._checked(y)
        middle, width = self._place(y)
        count = numpyro.sample("count", dist.DiscreteUniform(1, self.max_count))
        rate = numpyro.sample("rate", dist.Gamma(self.rate_shape, self.rate_scale / width**2))
        slots = {
            name: numpyro.sample(name, law.expand([self.max_count]).mask(self._is_there(count)))
            for name, law in self._component(middle, width, rate).items()
        }
        if y.size:  # else the prior is all there is, and NumPyro has no empty plates
            with numpyro.plate("observations", y.size):
                numpyro.sample("y", law_of(count, **slots), obs=y)

    def kernel(self, y: ArrayLike) -> mcmc.Kernel:
        """Return the kernel that samples everything.

        A step is ten births or deaths, a split or merger, and then all else drawn given the number, with
        the components of the observations in between.

        Args:
            y: The observations that the model is fitted to.
        """
        y = self._checked(y)
        middle, width = self._place(y)

        def from_prior(state: dict[str, Array]) -> dict[str, dist.Distribution]:
            return self._component(middle, width, state["rate"])

        births, splits = (
            mcmc.reversible_jump(
                pair,
                slots=["weight", "mean", "precision"],
                min_count=1,
                reference={"weight": 1.0, "precision": 1.0},
            )
            for pair in (mcmc.Birth(from_prior), mcmc.Split(_propose_split, _split, _merge))
        )
        return mcmc.cycle(mcmc.repeat(births, 10), splits, _Sweep(self, y))

    def _component(self, middle: Array, width: Array, rate: Array) -> dict[str, dist.Distribution]:
        """Return the prior of one component."""
        return {
            "weight": dist.Exponential(1.0),
            "mean": dist.Normal(middle, width),
            "precision": dist.Gamma(self.shape, rate),
        }

    def _place(self, y: Array) -> tuple[Array, Array]:
        """Return the middle and the width of the prior of the means."""
        middle = (jnp.min(y) + jnp.max(y)) / 2 if self.middle is None else jnp.asarray(self.middle, y.dtype)
        width = jnp.max(y) - jnp.min(y) if self.width is None else jnp.asarray(self.width, y.dtype)
        return middle, width

    def _is_there(self, count: Array) -> Bool[Array, " max_count"]:
        return jnp.arange(self.max_count) < count

    def _checked(self, y: ArrayLike) -> Array:
        y = jnp.asarray(y, float)
        if y.ndim != 1:
            raise ModelError(f"Mixture needs a list of numbers, not an array of shape {y.shape}")
        if y.size < 2 and (self.middle is None or self.width is None):
            raise ModelError("Mixture needs two observations or more, or its middle and its width")
        return y


def law_of(count: Array, weight: Array, mean: Array, precision: Array) -> dist.MixtureSameFamily:
    """Return the mixture with the first `count` of the components, as a distribution of one observation."""
    logits = jnp.where(jnp.arange(weight.shape[-1]) < count, jnp.log(weight), -jnp.inf)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(mean, precision**-0.5))


class CountTable(NamedTuple):
    """The posterior of a number. Prints as a table.

    Attributes:
        values: Of the number, those that were drawn.
        probabilities: Of each.
        errors: Their Monte Carlo standard errors.
    """

    values: np.ndarray
    probabilities: np.ndarray
    errors: np.ndarray

    def __repr__(self) -> str:
        rows = [f"{value:5d}  {p:11.4f}  {error:6.4f}" for value, p, error in zip(*self, strict=True)]
        return "\n".join(["count  probability   error", *rows])


def count_table(posterior: Posterior, site: str = "count") -> CountTable:
    """Return the posterior of a number as a table.

    Args:
        posterior: The result of a fit.
        site: The name of the number; any discrete site without axes.
    """
    draws = posterior.samples[site]
    values = np.unique(draws)
    is_value = (draws == values[:, None, None]).astype(float)
    probabilities = np.sum(posterior.weights * is_value, axis=(1, 2))
    if posterior.log_weights is None:
        ess = np.array([chain_statistics(each)["ess_bulk"] for each in is_value])
    else:
        ess = np.full(values.size, posterior.ess)
    errors = np.sqrt(np.maximum(probabilities * (1 - probabilities), 0) / ess)
    return CountTable(values, probabilities, np.where(probabilities < 1, errors, 0.0))


def density(
    posterior: Posterior, grid: Float[ArrayLike, " num_points"], *, count: int | None = None
) -> np.ndarray:
    """Return the posterior predictive density of an observation.

    Args:
        posterior: The result of a fit.
        grid: Where, in the unit of the observations.
        count: Given this number of components; over all numbers by default.

    Returns:
        The density at each point of the grid, in one over that unit.

    Raises:
        ValueError: If no draw has this number of components.
    """
    chosen = _draws(posterior, count)
    return np.asarray(_mean_density(chosen, jnp.asarray(grid, float)))


def components(posterior: Posterior, count: int) -> dict[str, np.ndarray]:
    """Return the components of the draws with a number of them, in the order of their means.

    The posterior knows no order; this one gives the components names. Where two means are close, it mixes
    two components up.

    Args:
        posterior: The result of a fit.
        count: The number of components.

    Returns:
        `weight` (of sum 1), `mean` and `sd`, arrays of shape (draws, count).

    Raises:
        ValueError: If no draw has this number of components.
    """
    chosen = {
        name: values[..., :count] for name, values in _draws(posterior, count).items() if name != "count"
    }
    order = np.argsort(chosen["mean"], axis=1)
    weight, mean, precision = (
        np.take_along_axis(chosen[name], order, axis=1) for name in ("weight", "mean", "precision")
    )
    return {"weight": weight / weight.sum(1, keepdims=True), "mean": mean, "sd": precision**-0.5}


def _draws(posterior: Posterior, count: int | None) -> dict[str, np.ndarray]:
    draws = posterior.resample()
    if count is not None and not np.any(draws["count"] == count):
        raise ValueError(f"no draw has {count} components; there are {np.unique(draws['count']).tolist()}")
    is_chosen = slice(None) if count is None else draws["count"] == count
    return {name: draws[name][is_chosen] for name in ("count", "weight", "mean", "precision")}


@jax.jit
def _mean_density(draws: dict[str, Array], grid: Array) -> Array:
    def add(total: Array, draw: dict[str, Array]) -> tuple[Array, None]:
        return total + jnp.exp(law_of(**draw).log_prob(grid)), None

    total, _ = jax.lax.scan(add, jnp.zeros(grid.shape), draws)
    return total / draws["count"].shape[0]


class _Sweep(mcmc.Kernel):
    """Draws all but the number, given the number.

    The component of each observation is drawn first and forgotten at the end. A gamma variable of shape 1
    more than a number of observations is a sum of exponential variables, one for each of them and one more.
    """

    model: Mixture
    y: Float[Array, " num_observations"]

    def move(self, state: mcmc.State, target: Target, name: str = "step") -> tuple:
        model, old = self.model, state.position
        middle, width = model._place(self.y)
        is_there = model._is_there(old["count"])
        law = law_of(*(old[site] for site in ("count", "weight", "mean", "precision")))
        is_own = self._allocated(jnp.exp(law.component_log_probs(self.y)), f"{name}: component")
        sizes, totals = is_own.sum(0), jnp.sum(is_own * self.y[:, None], axis=0)

        tightness = sizes * old["precision"] + width**-2
        centre = (totals * old["precision"] + middle * width**-2) / tightness
        mean = sample(f"{name}: mean", dist.Normal(centre, tightness**-0.5))
        squares = jnp.sum(is_own * (self.y[:, None] - mean) ** 2, axis=0)
        # All gamma variables at once, of scale 1: they take long to compile.
        shapes = jnp.append(
            model.shape + sizes / 2,
            jnp.stack([model.rate_shape + model.shape * old["count"], 1.0 * old["count"]]),
        )
        drawn = sample(f"{name}: gammas", dist.Gamma(shapes))
        precision = drawn[:-2] / (old["rate"] + squares / 2)
        rate = drawn[-2] / (model.rate_scale * width**-2 + jnp.sum(precision, where=is_there))

        one = dist.Exponential(1.0)
        own = sample(f"{name}: own share", one.expand([model.max_count]))
        shares = own + sample(f"{name}: shares", one.expand([self.y.size])) @ is_own
        weight = drawn[-1] * shares / jnp.sum(shares, where=is_there)

        slots = {"mean": mean, "precision": precision, "weight": weight}
        slots = {site: jnp.where(is_there, value, old[site]) for site, value in slots.items()}
        new = {**old, **slots, "rate": rate}
        log_density, is_bad = finite_or_impossible(target(new))
        return mcmc.State(new, log_density, state.inner), report(1.0, 1, is_bad)

    def _allocated(self, probabilities: Array, name: str) -> Float[Array, "num_observations max_count"]:
        """Draw a component for each observation, and return 1 where it is and 0 elsewhere."""
        sums = jnp.cumsum(probabilities, axis=1)
        level = sample(name, dist.Uniform(0, 1).expand([self.y.size])) * sums[:, -1]
        slot = jnp.argmax(sums > level[:, None], axis=1)
        return jax.nn.one_hot(slot, self.model.max_count, dtype=self.y.dtype)


# A split keeps the weight, the mean and the variance of the whole. The two lie `apart` times the whole's
# standard deviation, to either side by their shares of its weight; what variance is left, they share.


def _propose_split(_: dict[str, Array]) -> dict[str, dist.Distribution]:
    return {
        "share": dist.Beta(2.0, 2.0),
        "apart": dist.Uniform(-1.0, 1.0),
        "variance": dist.Uniform(0.0, 1.0),
    }


def _split(one: dict[str, Array], drawn: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    left = (1 - drawn["apart"] ** 2) / one["precision"]
    step = drawn["apart"] * one["precision"] ** -0.5
    pair = [
        {
            "weight": one["weight"] * share,
            "mean": one["mean"] + sign * step * jnp.sqrt((1 - share) / share),
            "precision": share / (variance * left),
        }
        for share, variance, sign in (
            (drawn["share"], drawn["variance"], -1),
            (1 - drawn["share"], 1 - drawn["variance"], 1),
        )
    ]
    return pair[0], pair[1]


def _merge(a: dict[str, Array], b: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    weight = a["weight"] + b["weight"]
    share = a["weight"] / weight
    own, other = share / a["precision"], (1 - share) / b["precision"]
    gap = (b["mean"] - a["mean"]) * jnp.sqrt(share * (1 - share))
    variance = own + other + gap**2
    one = {
        "weight": weight,
        "mean": share * a["mean"] + (1 - share) * b["mean"],
        "precision": 1 / variance,
    }
    return one, {"share": share, "apart": gap * variance**-0.5, "variance": own / (own + other)}
