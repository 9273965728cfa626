"""Simulation-based calibration: whether a method draws from posteriors, by the ranks of known truths."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

import qbs
from qbs.inference.seeds import numpy_generator
from qbs.inference.validate.simulator import LIKELIHOOD, Observed, Simulator, scalars, simulator
from qbs.inference.validate.uniformity import uniform_p_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class CalibrationReport:
    """Ranks of the truths among the draws: uniform, if the method is right.

    Attributes:
        ranks: Name of a quantity to the rank of its truth, in 0 ... `num_draws`, in each dataset.
        num_draws: How many draws a truth is ranked among.
        p_values: Of the test of uniform ranks, for each quantity.
        level: The least p-value that passes: the family-wise error over the number of quantities.
        ok: Whether all passed.
    """

    ranks: dict[str, np.ndarray]
    num_draws: int
    p_values: dict[str, float]
    level: float
    ok: bool

    def __repr__(self) -> str:
        passed = sum(p_value > self.level for p_value in self.p_values.values())
        text = f"{'' if self.ok else 'NOT '}calibrated: {passed} of {len(self.p_values)} quantities have "
        text += f"uniform ranks (p > {self.level:.2g}) over {len(next(iter(self.ranks.values())))} datasets"
        for name, p_value in sorted(self.p_values.items(), key=lambda item: item[1])[:8]:
            shares = (self.ranks[name] + 0.5) / (self.num_draws + 1)
            text += f"\n{'  ' if p_value > self.level else '! '}{name}: p = {p_value:.2g}; ranks of mean "
            text += f"{shares.mean():.3f} (0.5 if right) and spread {shares.std():.3f} (0.289)"
        return text

    def plot(self, names: Collection[str] | None = None) -> "Figure":
        """Draw rank histograms, and ECDF differences with bands, of some quantities or all.

        Raises:
            MissingExtraError: If Matplotlib is not installed.
        """
        from qbs.inference.validate.rank_plot import draw_ranks

        return draw_ranks(self, list(names or self.ranks))


def calibration(
    model: Callable,
    method: Any,
    *args: Any,
    key: Array,
    observed: Observed,
    num_datasets: int = 200,
    num_draws: int = 99,
    thin: int = 1,
    family_error: float = 1e-3,
    batch_size: int = 100,
) -> CalibrationReport:
    """Check that a method draws from the posteriors of a model, by simulation-based calibration.

    Parameters are drawn from the prior and data given them; the rank of each parameter among the method's
    draws must be uniform. Ranked are all numbers of all latent sites, and the log likelihood: without it a
    method that ignores the data would pass.

    Args:
        model: A NumPyro model that draws its data where they are `None`.
        method: A function of a key and the model's arguments, data included, in JAX, which returns draws
            by site, leading axis first; or a method of `qbs.fit`, which fits the datasets one by one.
        *args: The model's arguments in order, the data left out.
        key: A typed JAX key.
        observed: The sites that are data, named like their arguments; or site to name of the argument.
        num_datasets: How many truths are drawn.
        num_draws: How many draws a truth is ranked among.
        thin: Use one draw in so many: ranks are uniform for independent draws only.
        family_error: The probability that any quantity fails where all is right.
        batch_size: How many datasets are computed at once.

    Raises:
        ValueError: If data cannot be drawn from the model, or the method's draws lack a site, are too few,
            or are NaN.

    References:
        Talts et al. (2018), "Validating Bayesian inference algorithms with simulation-based calibration";
        Modrak et al. (2023), "Simulation-based calibration checking for Bayesian computation: the choice of
        test quantities shapes sensitivity".
    """
    if min(num_datasets, num_draws, thin) < 1 or not 0 < family_error < 1:
        raise ValueError(
            "num_datasets, num_draws and thin must be 1 or more, and family_error between 0 and 1, not "
            f"{num_datasets}, {num_draws}, {thin}, {family_error}"
        )
    law = simulator(model, args, observed)
    key_truth, key_fit, key_ties = jax.random.split(key, 3)
    keys = jax.random.split(key_fit, num_datasets)
    truths, data = jax.jit(jax.vmap(lambda k: law.draw(k, {})))(jax.random.split(key_truth, num_datasets))

    def each(function: Callable, *inputs: Any) -> Any:
        return jax.jit(lambda *xs: lax.map(lambda x: function(*x), xs, batch_size=batch_size))(*inputs)

    if callable(method):
        found = each(lambda key, data: dict(method(key, *law.with_data(data))), keys, data)
    else:
        found = _fit_each(law, method, keys, data, num_draws * thin)
    if missing := [name for name in truths if name not in found]:
        raise ValueError(f"method returned no draws of {missing}, only of {list(found)}")
    kept = {}
    for name, truth in truths.items():
        draws = jnp.asarray(found[name])[:, ::thin][:, :num_draws]
        if draws.shape != (num_datasets, num_draws, *truth.shape[1:]):
            raise ValueError(
                f"method returned draws of {name!r} of shape {found[name].shape[1:]}; wanted were num_draws "
                f"* thin = {num_draws * thin} or more, of shape {truth.shape[1:]}"
            )
        kept[name] = jnp.concatenate([truth[:, None], draws.astype(truth.dtype)], axis=1)
    log_likelihoods = jax.vmap(law.log_likelihood, in_axes=(0, None))
    kept[LIKELIHOOD] = each(log_likelihoods, dict(kept), data)
    rng = numpy_generator(key_ties)
    ranks = {name: _ranks(name, values, rng) for name, values in scalars(kept, 2)}
    p_values = {name: uniform_p_value(rank, num_draws + 1) for name, rank in ranks.items()}
    level = family_error / len(p_values)
    return CalibrationReport(ranks, num_draws, p_values, level, min(p_values.values()) > level)


def _fit_each(law: Simulator, method: Any, keys: Array, data: Any, num_draws: int) -> dict[str, np.ndarray]:
    """Fit the datasets one by one; weighted draws become as many equal ones as they are worth."""
    fits = []
    for i, key in enumerate(keys):
        arguments = law.with_data({name: np.asarray(values[i]) for name, values in data.items()})
        posterior = qbs.fit(law.model, *arguments, method=method, key=key, progress=False)
        fits.append({name: values[:num_draws] for name, values in posterior.resample(seed=i).items()})
    shortest = min(len(values) for fit in fits for values in fit.values())
    return {name: np.stack([fit[name][:shortest] for fit in fits]) for name in fits[0]}


def _ranks(name: str, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the rank of the first of each row among the others, ties broken at random."""
    if np.isnan(values).any():
        raise ValueError(f"method returned draws where {name!r} is NaN")
    truth, draws = values[:, :1], values[:, 1:]
    return (draws < truth).sum(1) + rng.integers(0, (draws == truth).sum(1), endpoint=True)
