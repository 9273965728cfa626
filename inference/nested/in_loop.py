"""The published in-loop method: a network replaces the likelihood during nested sampling. Not unbiased."""

from typing import ClassVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from qbs.inference.checkpoint import Keeper
from qbs.inference.method import Method, require_positive
from qbs.inference.nested.dynesty import Dynesty, Finished
from qbs.inference.nested.genetic import Genetic
from qbs.inference.nested.in_loop_slices import run_on_slices
from qbs.inference.nested.known import Known
from qbs.inference.nested.learned_likelihood import LearnedLikelihood, Switching, Training
from qbs.inference.nested.problem import CubeProblem
from qbs.inference.nested.scaled_network import ACTIVATIONS, Recipe
from qbs.inference.nested.slice import Slice
from qbs.inference.problem import Problem
from qbs.inference.progress import ProgressLine
from qbs.inference.results.posterior import Posterior
from qbs.precision import Precision

_GENETIC_POPULATION = 20  # of the search for live points, with the rates below; SimpleMC's defaults
_CROSSOVER, _MUTATION_SCALE = 0.7, 0.3


class InLoop(Method):
    """Nested sampling in which a network that learns from the live points replaces the likelihood.

    This is a method of the literature, here to be compared with. **Its evidence may be wrong by nats,
    whatever its error says**, and each result says so: points that the network placed keep the network's
    values. Where a likelihood is slow, `Corrected` calls it less often and is not biased.

    A network of hidden layers is trained on the live points, and on points around the best of them, with
    inputs and outputs scaled to (0.1, 1). It is trusted where its validation loss is low, looked after
    as the run goes on, dropped where it is wrong, and trained again. Defaults are those of the authors'
    documentation.

    Attributes:
        sampler: `"dynesty"`, as published, or `"slice"`, on the live points of `Slice`.
        num_live: Live points.
        dlogz: Stop when the live points can add less than this to the log evidence, in nats.
        init: `"prior"`, or `"genetic"`: live points from a genetic search, taken for draws from the prior,
            which they are not. It needs evosax.
        start_iterations: Networks are trained from this iteration on.
        start_dlogz: Or from where the live points can add less than this to the log evidence, in nats.
        num_random: Points drawn around the best live point for each training, from a normal distribution with
            a quarter of the live points' standard deviations. Each is a true call.
        num_layers: Hidden layers.
        width: Units of each.
        activation: `"relu"`, `"sigmoid"` or `"tanh"`.
        learning_rate: Of Adam.
        batch_size: Points of a training step.
        num_epochs: Greatest number of passes over the training points.
        patience: Stop training after so many epochs that bring no lower validation loss.
        training_share: Share of the points that the network is trained on; the rest validates.
        max_validation_loss: A network is trusted below this mean squared error, in scaled units.
        update_interval: Iterations between two looks at the network, and between a drop and a new training.
        tolerance: The network is dropped where its mean absolute error at some live points is greater than
            this share of the least log likelihood in absolute value among them.
        num_monitored: How many live points that is. Each is a true call.
        max_calls_per_point: The network is dropped where so many of its calls find no new point.
        tuning: `"none"`, or `"genetic"`: shape and training of the network by a genetic search before the
            first training, which replaces the five settings that it has genes for.
        tuning_population: Networks in a generation of that search.
        tuning_generations: Generations after the first.
        max_calls: Stop after about this many true calls, with the result so far; no limit by default.

    References:
        Gomez-Vargas & Vazquez (2024), "Deep learning and genetic algorithms for cosmological Bayesian
        inference speed-up", Physical Review D 110, 083518, arXiv:2405.03293, and the documentation of their
        program SimpleMC, section "neuralike", for the defaults.
    """

    precision: ClassVar[Precision | None] = "float64"

    sampler: str = eqx.field(static=True, default="dynesty")
    num_live: int = eqx.field(static=True, default=1000)
    dlogz: float = eqx.field(static=True, default=0.01)
    init: str = eqx.field(static=True, default="prior")
    start_iterations: int = eqx.field(static=True, default=2000)
    start_dlogz: float = eqx.field(static=True, default=100.0)
    num_random: int = eqx.field(static=True, default=1000)
    num_layers: int = eqx.field(static=True, default=3)
    width: int = eqx.field(static=True, default=200)
    activation: str = eqx.field(static=True, default="relu")
    learning_rate: float = eqx.field(static=True, default=1e-4)
    batch_size: int = eqx.field(static=True, default=8)
    num_epochs: int = eqx.field(static=True, default=100)
    patience: int = eqx.field(static=True, default=50)
    training_share: float = eqx.field(static=True, default=0.7)
    max_validation_loss: float = eqx.field(static=True, default=0.01)
    update_interval: int = eqx.field(static=True, default=500)
    tolerance: float = eqx.field(static=True, default=0.05)
    num_monitored: int = eqx.field(static=True, default=10)
    max_calls_per_point: int = eqx.field(static=True, default=1000)
    tuning: str = eqx.field(static=True, default="none")
    tuning_population: int = eqx.field(static=True, default=10)
    tuning_generations: int = eqx.field(static=True, default=5)
    max_calls: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        require_positive(
            self,
            "dlogz",
            "start_dlogz",
            "learning_rate",
            "training_share",
            "max_validation_loss",
            "tolerance",
        )
        whole = ["num_live", "num_layers", "width", "batch_size", "num_epochs", "patience", "update_interval"]
        whole += ["num_monitored", "max_calls_per_point", "tuning_population", "tuning_generations"]
        require_positive(self, *whole, *(["max_calls"] if self.max_calls is not None else []), whole=True)
        for name in ("start_iterations", "num_random"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"InLoop: {name} must be a whole number from 0 up, not {value!r}")
        for name, allowed in (
            ("sampler", ("dynesty", "slice")),
            ("init", ("prior", "genetic")),
            ("activation", ACTIVATIONS),
            ("tuning", ("none", "genetic")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"InLoop: {name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )
        if self.training_share >= 1:
            raise ValueError(f"InLoop: training_share must be a share below 1, not {self.training_share!r}")

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run until the live points can add little, and say what the result is worth; see `Method.run`."""
        of_run, of_networks, of_search = jax.random.split(key, 3)
        cube = CubeProblem(problem, keeper)
        on_slices = Slice(num_live=self.num_live, dlogz=self.dlogz) if self.sampler == "slice" else None
        learned = LearnedLikelihood(
            cube,
            self._switching,
            self._training,
            of_networks,
            num_replaced=1 if on_slices is None else on_slices.pattern(cube.dim).batch,
            max_calls=self.max_calls,
        )
        with cube.calls.kept():
            start = self._genetic_start(learned, of_search) if self.init == "genetic" else None
            if on_slices is not None:
                found = run_on_slices(on_slices, learned, of_run, line, start)
            else:
                dynesty = Dynesty(num_live=self.num_live, dlogz=self.dlogz)
                found = dynesty.drive(learned, of_run, line, start, learned.after)
        is_by_network = learned.is_by_network(found.points)
        found = found._replace(
            problems=[*self._warnings(learned, is_by_network, found), *found.problems],
            provenance=found.provenance | learned.facts,
        )
        return found.posterior(cube, learned.num_calls, is_by_network=is_by_network)

    @property
    def _switching(self) -> Switching:
        return Switching(**{name: getattr(self, name) for name in Switching._fields})

    @property
    def _training(self) -> Training:
        recipe = Recipe(**{name: getattr(self, name) for name in Recipe._fields})
        population = self.tuning_population if self.tuning == "genetic" else None
        return Training(recipe, self.training_share, self.patience, population, self.tuning_generations)

    def _genetic_start(self, learned: LearnedLikelihood, key: Array) -> tuple[np.ndarray, np.ndarray]:
        """Return possible points of all generations of a genetic search, as many as there are live points."""
        found = Known(np.zeros((0, learned.dim)), np.zeros(0))
        for number in range(100):
            search = Genetic(
                population=_GENETIC_POPULATION,
                generations=max(-(-(self.num_live - len(found.points)) // _GENETIC_POPULATION) - 1, 1),
                patience=None,
                num_elites=1,
                crossover_rate=_CROSSOVER,
                mutation_scale=_MUTATION_SCALE,
                mutation_decay=1.0,
            ).search(learned.truth, learned.dim, jax.random.fold_in(key, number))
            found = found.with_new(*search.possible)
            if len(found.points) >= self.num_live:
                return found.points[: self.num_live], found.log_likelihoods[: self.num_live]
        raise learned.impossible()

    def _warnings(self, learned: LearnedLikelihood, is_by_network: np.ndarray, found: Finished) -> list[str]:
        count, share = int(is_by_network.sum()), float(np.exp(found.log_weights[is_by_network]).sum())
        said = [
            "The evidence comes partly from a surrogate without correction, and may be biased by nats, "
            f"whatever its error says: {count:,} of {len(is_by_network):,} dead points, with {share:.0%} of "
            f"the posterior, keep a network's value, and the likelihood was called {learned.num_calls:,} "
            "times. Use nested.Corrected for an evidence that can be trusted."
        ]
        if self.init == "genetic":
            said.append(
                "The first live points are from a genetic search and no draws from the prior: the evidence "
                "may be biased by nats for that too."
            )
        return said
