"""What every fit returns: draws, weights, evidence with its error, what is wrong, and where it is from."""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qbs.inference.results.diagnostics import kish_ess
from qbs.inference.results.summary import Summary, summarise

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws from a posterior, with evidence where the method gives one.

    Attributes:
        samples: Name to array, with leading axes chain and draw; latent sites and derived quantities.
            NumPy arrays, in the precision of the run.
        log_weights: Log weight of each draw, shape (chain, draw), normalised to a total weight of 1; or
            `None` where all draws weigh the same.
        log_evidence: Log of the marginal likelihood, in nats; `None` where the method gives none.
        log_evidence_error: Its standard error, in nats; `None` where there is no evidence.
        num_likelihood_calls: Evaluations of the likelihood (for NUTS, of its gradient) that the run made.
        problems: What a reader must know before trusting the result, in plain sentences; empty is good.
        derived: Names in `samples` that are functions of the others.
        stats: Statistics of each draw, arrays of shape (chain, draw), such as `log_likelihood` or
            `diverging`.
        provenance: Versions, seed, settings, data fingerprint, wall and compile time in seconds.
    """

    samples: dict[str, np.ndarray]
    log_weights: np.ndarray | None = None
    log_evidence: float | None = None
    log_evidence_error: float | None = None
    num_likelihood_calls: int = 0
    problems: list[str] = field(default_factory=list)
    derived: tuple[str, ...] = ()
    stats: dict[str, np.ndarray] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("a Posterior needs at least one parameter in samples")
        leading = {name: np.shape(values)[:2] for name, values in self.samples.items()}
        if len(set(leading.values())) != 1 or any(len(shape) < 2 for shape in leading.values()):
            raise ValueError(f"samples must share their leading axes (chain, draw); they are {leading}")
        if 0 in self.shape:
            raise ValueError(f"a Posterior needs at least one draw; its chains and draws are {self.shape}")
        if missing := [name for name in self.derived if name not in self.samples]:
            raise ValueError(f"derived names {missing}, which are not in samples: {list(self.samples)}")
        if self.log_weights is None:
            return
        if np.shape(self.log_weights) != self.shape:
            raise ValueError(
                f"log_weights must have shape {self.shape}, like the draws, not {np.shape(self.log_weights)}"
            )
        if not np.isfinite(np.max(self.log_weights)):
            raise ValueError("log_weights must be below +inf, one of them finite, and none of them NaN")

    @property
    def shape(self) -> tuple[int, int]:
        """Number of chains, number of draws in each."""
        chains, draws = next(iter(self.samples.values())).shape[:2]
        return chains, draws

    @property
    def weights(self) -> np.ndarray:
        """Normalised weight of each draw, shape (chain, draw); equal where the draws are unweighted."""
        if self.log_weights is None:
            return np.full(self.shape, 1 / np.prod(self.shape))
        weights = np.exp(self.log_weights - np.max(self.log_weights))
        return weights / weights.sum()

    @cached_property
    def ess(self) -> float:
        """Kish's effective sample size of the weights; the number of draws where they are unweighted."""
        return float(np.prod(self.shape)) if self.log_weights is None else kish_ess(self.log_weights)

    def mean(self, name: str) -> np.ndarray:
        """Return the posterior mean of a parameter."""
        return np.asarray(np.tensordot(self.weights, self._values(name), axes=2))

    def sd(self, name: str) -> np.ndarray:
        """Return the posterior standard deviation of a parameter."""
        deviation = self._values(name) - self.mean(name)
        return np.asarray(np.sqrt(np.tensordot(self.weights, deviation**2, axes=2)))

    def best_fit(self) -> dict[str, np.ndarray]:
        """Return the draw of the highest likelihood, or density where only that was recorded.

        Raises:
            ValueError: If the run recorded neither.
        """
        for name in ("log_likelihood", "log_density"):
            if name in self.stats:
                best = np.unravel_index(np.argmax(self.stats[name]), self.shape)
                return {key: np.asarray(values[best]) for key, values in self.samples.items()}
        raise ValueError("the run recorded no density for its draws, so there is no best one")

    def resample(self, num_draws: int | None = None, *, seed: int = 0) -> dict[str, np.ndarray]:
        """Return equally weighted draws, without the chain axis: arrays with a leading axis `num_draws`.

        Args:
            num_draws: How many; by default all draws, or for weighted draws the effective sample size.
            seed: Of the systematic resampling.

        Raises:
            ValueError: If `num_draws` is not positive.
        """
        if num_draws is not None and num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, not {num_draws}")
        if self.log_weights is None and num_draws is None:
            return self._flat()
        count = num_draws if num_draws is not None else max(1, int(self.ess))
        rng = np.random.default_rng(seed)
        steps = (rng.random() + np.arange(count)) / count
        cumulative = np.cumsum(self.weights.ravel())
        chosen = np.searchsorted(cumulative, steps * cumulative[-1]).clip(0, cumulative.size - 1)
        chosen = rng.permutation(chosen)
        return {name: values[chosen] for name, values in self._flat().items()}

    def summary(self) -> Summary:
        """Return the table of moments, quantiles and diagnostics; `.frame` is a data frame."""
        return summarise(self.samples, self.log_weights, self._headline())

    def predict(
        self, model: Callable, *data: Any, key: Array, num_draws: int | None = None
    ) -> dict[str, np.ndarray]:
        """Draw from the posterior predictive distribution of a NumPyro model.

        Args:
            model: The model, usually the one that was fitted.
            *data: Its arguments, with `None` for the observations to be predicted.
            key: A typed JAX key.
            num_draws: How many predictions; by default one for every (equally weighted) draw.

        Returns:
            Site name to array with a leading axis over predictions: every site of the model that is not
            in `samples`, drawn, and the deterministic ones, computed anew.
        """
        from qbs.inference.binding import bind
        from qbs.inference.sites import walk

        bound = bind(model, data)
        draws = self.resample(num_draws)
        given = {name: jnp.asarray(values) for name, values in draws.items() if name not in self.derived}

        def predicted(key_and_draw: tuple[Array, dict[str, Array]]) -> dict[str, Array]:
            trace = walk(bound.program, bound.arrays, *key_and_draw).trace
            return {name: value for name, value in trace.items() if name not in given}

        keys = jax.random.split(key, len(next(iter(draws.values()))))
        return to_numpy(jax.lax.map(predicted, (keys, given)))

    def to_datatree(self) -> "xarray.DataTree":
        """Return the posterior as an ArviZ data tree, for all of ArviZ's plots and statistics.

        Weighted draws are resampled to equal weights first; evidence, seed and settings are attributes.
        """
        from qbs.inference.results.export import to_datatree

        return to_datatree(self)

    def to_getdist(
        self,
        root: str | Path,
        *,
        labels: Mapping[str, str] | None = None,
        ranges: Mapping[str, tuple[float | None, float | None]] | None = None,
    ) -> list[Path]:
        """Write GetDist text chains: `root_1.txt` ..., `root.paramnames`, `root.ranges`.

        Args:
            root: Folder and start of the file names.
            labels: LaTeX label of a parameter, without dollar signs; its name by default. One number of
                an array is named like `theta[0]`, here and in `ranges`.
            ranges: Hard limits of a parameter; `None` on a side without one.

        Returns:
            The files written.
        """
        from qbs.inference.results.export import to_getdist

        return to_getdist(self, Path(root), labels or {}, ranges or {})

    def save(self, path: str | Path) -> Path:
        """Write everything to one file, which `qbs.load` reads; an existing file is replaced at the end."""
        from qbs.inference.results.storage import save

        return save(self, Path(path))

    def _flat(self) -> dict[str, np.ndarray]:
        count = self.shape[0] * self.shape[1]
        return {name: values.reshape(count, *values.shape[2:]) for name, values in self.samples.items()}

    def _values(self, name: str) -> np.ndarray:
        if name not in self.samples:
            raise KeyError(f"no parameter {name!r}; there are {', '.join(self.samples)}")
        return self.samples[name]

    def _headline(self) -> str:
        chains, draws = self.shape
        count = f"{draws:,} draws" if chains == 1 else f"{chains} chains of {draws:,} draws"
        weighted = f", effective size {self.ess:,.0f}" if self.log_weights is not None else ""
        model, method = self.provenance.get("model", "posterior"), self.provenance.get("method", "")
        return f"{model}{' by ' + method if method else ''}: {count}{weighted}"

    def __repr__(self) -> str:
        lines = [repr(self.summary())]
        if self.log_evidence is not None:
            error = f" +- {self.log_evidence_error:.3f}" if self.log_evidence_error is not None else ""
            lines.append(f"log evidence {self.log_evidence:.3f}{error}")
        if self.num_likelihood_calls:
            wall = self.provenance.get("wall_seconds")
            took = f" in {wall:.1f} s" if wall is not None else ""
            lines.append(f"{self.num_likelihood_calls:,} likelihood calls{took}")
        for problem in self.problems:
            lines += textwrap.wrap(f"! {problem}", 120, subsequent_indent="  ")
        if not self.problems:
            lines.append("no problems found")
        return "\n".join(lines)


def to_numpy(tree: Any) -> Any:
    """Return a tree of JAX arrays as NumPy arrays."""
    return jax.tree.map(np.asarray, tree)
