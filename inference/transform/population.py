"""`population`: a program of X becomes a program of n weighted particles of X, with the same meaning.

Wherever the program scores, the particles gain weight, and the evidence that they bring is pushed into the
outer score. At suspension points they are resampled: the continuation of each particle follows its ancestor.
This is sequential Monte Carlo.

References:
    Scibior et al. (2018), "Denotational validation of higher-order Bayesian inference", sections 4 and 5.
    Lunden, Borgstrom & Broman (2021), "Correctness of sequential Monte Carlo inference": any placement of
    suspension points is valid.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from qbs.effects import score, score_p, unrecorded, unused
from qbs.inference.transform.paths import Paths
from qbs.inference.transform.resampling import SCHEMES, Scheme, multinomial
from qbs.inference.transform.rolling import rolled
from qbs.inference.transform.suspension import Value, Walk, evaluate_plain, moving_in_cond, read_all
from qbs.jaxprs import all_names, bind_equation, open_jaxpr, variables
from qbs.program import Program, Staged


class Particles(NamedTuple):
    """The value of a population.

    Attributes:
        value: The program's value, with a leading axis over particles.
        log_weights: Log weight of each particle; the mean weight is 1, for the evidence has been scored.
    """

    value: Any
    log_weights: Float[Array, " num_particles"]


def population(
    program: Program,
    num_particles: int,
    *,
    resample: str | Scheme = "systematic",
    threshold: float = 1.0,
    at: Collection[str] | None = None,
    num_returned: int | None = None,
    chunk_size: int | None = None,
    num_path_nodes: int | None = None,
) -> Program:
    """Return the program that runs a number of copies of a program side by side, resampling on the way.

    Its value is `Particles`, and the expected weighted average over them is the measure of the program:
    sequential Monte Carlo. Populations nest: inside a program that draws parameters, a population is a
    particle filter whose evidence weighs the parameters. Whole paths of the particles are recorded by
    `population(traced(program), ...)`; what the particles draw is not in the trace of `qbs.run`.

    Args:
        program: The program.
        num_particles: How many copies.
        resample: `"multinomial"`, `"stratified"`, `"systematic"`, `"residual"`, `"ssp"`, or a scheme of the
            same form.
        threshold: Resample when the effective sample size is below this share of `num_particles`; 1 means
            always, 0 never.
        at: The names of the scores (observed sites, factors) to resample at; all by default.
        num_returned: How many particles to return: drawn by weight in the end, so that whole paths are put
            together for these alone; all by default.
        chunk_size: How many particles to evaluate at a time between one site or score and the next: less
            memory where a score passes through something large, such as a plate of many rows. All by default.
        num_path_nodes: Store what the steps of a scan put out as a tree of so many nodes, not as all steps of
            all particles: for whole paths of series that do not fit into memory otherwise, at some twenty
            times the time. T + 5 N log N is ample for N particles that are resampled at most of T steps.
            Where it is too small, the log weight is NaN, which `qbs.run` refuses.

    Returns:
        A program whose value is `Particles`.

    Raises:
        ValueError: If a setting is not valid, or `at` names no score of the program.
    """
    scheme = SCHEMES.get(resample) if isinstance(resample, str) else resample
    if scheme is None:
        raise ValueError(f"resample must be one of {', '.join(SCHEMES)} or a function, not {resample!r}")
    require_count(num_particles, "num_particles")
    for name, number in (("num_returned", num_returned), ("chunk_size", chunk_size)):
        if number is not None:
            require_count(number, name)
    if num_path_nodes is not None and require_count(num_path_nodes, "num_path_nodes") < num_particles:
        raise ValueError(f"num_path_nodes must be at least num_particles, not {num_path_nodes}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], not {threshold!r}")
    points = None if at is None else frozenset(at)

    def run_all(*args: Any) -> Particles:
        staged = program.stage(*args)
        if points is not None:
            require_scores(staged, points)
        staged, own_points, _ = rolled(staged, points)
        settings = Settings(
            num_particles,
            scheme,
            all_names(staged.jaxpr),
            float(threshold),
            own_points,
            chunk_size,
            num_path_nodes,
        )
        return walk_particles(Cloud(settings), staged, num_returned)

    return Program(run_all, f"population of {program.name}")


def collapse(particles_program: Program) -> Program:
    """Return the program that draws one particle of a population by weight: an ordinary program again."""

    def draw_one(*args: Any) -> Any:
        particles = particles_program(*args)
        index = multinomial(f"one of {particles_program.name}", particles.log_weights, 1)[0]
        return jax.tree.map(lambda leaf: leaf[index], particles.value)

    return Program(draw_one, f"one of {particles_program.name}")


def require_count(number: Any, name: str) -> int:
    """Return a setting; raise `ValueError` unless it is a whole number above 0."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} must be a whole number above 0, not {number!r}")
    return number


def require_scores(staged: Staged, names: Collection[str]) -> None:
    """Raise `ValueError` unless all names are scores of a program."""
    there = all_names(staged.jaxpr, (score_p,))
    if missing := sorted(set(names) - there):
        raise ValueError(f"at: the program has no score named {missing}; it has {sorted(there)}")


def walk_particles(cloud: "Cloud", staged: Staged, num_returned: int | None = None) -> Particles:
    """Run all particles of a cloud through a program, and return them or some, drawn by weight."""
    operands = [Value(operand, moves=False) for operand in staged.operands]
    outputs = cloud.walk(*open_jaxpr(staged.jaxpr), operands, is_put_off=num_returned is not None)
    log_weights = cloud.normalised()
    if num_returned is not None:
        name = unused("returned", cloud.settings.taken)
        with unrecorded():
            chosen = cloud.settings.scheme(name, log_weights, num_returned)
        outputs = [v._replace(array=follow(v.array, chosen)) if v.moves else v for v in outputs]
        log_weights = jnp.zeros(num_returned)
    spread = [spread_over(log_weights.size, output.read()) for output in outputs]
    return Particles(staged.unflatten(spread), log_weights)


def spread_over(size: int, value: Value) -> Array:
    """Return a value with a leading axis over particles."""
    if value.moves:
        return value.array
    return jnp.broadcast_to(value.array, (size, *jnp.shape(value.array)))


class Settings(NamedTuple):
    """What all particles of a cloud share."""

    num_particles: int
    scheme: Scheme
    taken: frozenset[str]
    threshold: float = 1.0
    at: frozenset[str] | None = None
    chunk_size: int | None = None
    num_path_nodes: int | None = None


class Cloud(Walk):
    """Particles at a point of the walk; the state: their log weights, and whether they were resampled."""

    lead = 1

    def __init__(self, settings: Settings):
        super().__init__((jnp.zeros(settings.num_particles), jnp.ones((), bool)))
        self.settings = settings
        self.masks: list[tuple[int, int]] = []  # branches around: the frame with the index, and which one

    def spread(self, value: Value) -> Array:
        """Return a value with a leading axis over particles."""
        return spread_over(self.settings.num_particles, value)

    def history(self, kinds: list, length: int, *, is_backwards: bool) -> Paths:
        """Keep the outputs of the steps of a scan with their ancestors."""
        sizes = self.settings.num_particles, self.settings.num_path_nodes
        return Paths(kinds, length, *sizes, is_backwards=is_backwards)

    def suspends(self, name: str) -> bool:
        """Whether the particles may be resampled at a score."""
        return self.settings.threshold > 0 and (self.settings.at is None or name in self.settings.at)

    def resampled(self, name: str) -> Value:  # noqa: ARG002
        """Return whether the particles were resampled last."""
        return Value(self.state[1], moves=False)

    def sample(self, equation: Any, values: list[Value]) -> Value:
        """Draw for each particle on its own, also where nothing that the draw depends on differs."""
        own = tuple(0 if value.moves else None for value in values)
        axes = ((self.settings.num_particles, own), *equation.params["axes"])
        (drawn,) = bind_equation(equation, [value.array for value in values], axes=axes, is_recorded=False)
        return Value(drawn, moves=True)

    def evaluate(self, equation: Any, values: list[Value]) -> list[Value]:
        """Evaluate for all particles; once for all where no operand differs among them."""
        if not any(value.moves for value in values):
            return evaluate_plain(equation, values)
        axes = tuple(0 if value.moves else None for value in values)
        evaluate = jax.vmap(
            lambda *arrays: bind_equation(equation, arrays),
            in_axes=axes,
            axis_size=self.settings.num_particles,
        )
        return [Value(result, moves=True) for result in evaluate(*[value.array for value in values])]

    def evaluate_all(self, equations: list, env: dict[Any, Value], last: dict[Any, int], end: int) -> None:
        """Evaluate equations without effects, some particles at a time if asked to."""
        size = self.settings.chunk_size
        if size is None or size >= self.settings.num_particles:
            super().evaluate_all(equations, env, last, end)
            return
        moving = {v for v, value in env.items() if value.moves}
        later: list[Any] = []
        plain: list[Any] = []
        for equation in equations:
            depends = not moving.isdisjoint(variables(equation))
            moving.update(equation.outvars if depends else ())
            (later if depends else plain).append(equation)
        super().evaluate_all(plain, env, last, end)
        made = list(dict.fromkeys(v for equation in later for v in equation.outvars))
        read = list(dict.fromkeys(v for e in later for v in variables(e) if v not in set(made)))
        outputs = [v for v in made if last.get(v, -1) >= end]
        if not outputs:
            return
        for v in read:
            env[v] = env[v].read()

        moves = [v for v in read if env[v].moves]

        def of_one(own: list[Array]) -> list[Array]:
            inside = env | {v: Value(array, moves=False) for v, array in zip(moves, own, strict=True)}
            for equation in later:
                results = evaluate_plain(equation, read_all(equation.invars, inside))
                inside.update(zip(equation.outvars, results, strict=True))
            return [inside[v].array for v in outputs]

        results = lax.map(of_one, [env[v].array for v in moves], batch_size=size)
        env.update({v: Value(array, moves=True) for v, array in zip(outputs, results, strict=True)})

    def score(self, name: str, value: Value, live: list[Array]) -> list[Array]:
        """Add log weights, push the evidence into the outer score, and resample if it is time to."""
        increments = self.spread(value)
        for frame, branch in self.masks:
            increments = jnp.where(self.frames[frame][0] == branch, increments, 0.0)
        log_weights = self.state[0] + increments
        evidence = jax.nn.logsumexp(log_weights) - jnp.log(self.settings.num_particles)
        self.push(name, evidence)
        log_weights = jnp.where(evidence == -jnp.inf, 0.0, log_weights - evidence)
        self.state = (log_weights, jnp.zeros((), bool))
        return self._select(name, live) if self.suspends(name) else live

    def push(self, name: str, evidence: Array) -> None:
        """Push the evidence that a score brought into the outer score."""
        score(evidence, name=name)

    def ancestors(self, name: str, log_weights: Array) -> Array:
        """Draw the ancestor of each particle."""
        wanted = unused(f"{name}_ancestors", self.settings.taken)
        with unrecorded():
            return self.settings.scheme(wanted, log_weights, self.settings.num_particles)

    def normalised(self) -> Array:
        """Return the log weights at the end; their mean is 1."""
        return self.state[0]

    def _select(self, name: str, live: list[Array]) -> list[Array]:
        threshold, log_weights = self.settings.threshold, self.state[0]

        def resample(log_weights: Array, moving: Any) -> Any:
            ancestors = self.ancestors(name, log_weights)
            zeros = jnp.zeros_like(log_weights)
            return (zeros, jnp.ones((), bool)), jax.tree.map(lambda leaf: follow(leaf, ancestors), moving)

        def keep(log_weights: Array, moving: Any) -> Any:
            return (log_weights, jnp.zeros((), bool)), moving

        moving = (live, self.frames)
        if threshold >= 1:
            self.state, (live, self.frames) = resample(log_weights, moving)
        else:
            ess = jnp.exp(2 * jax.nn.logsumexp(log_weights) - jax.nn.logsumexp(2 * log_weights))
            is_low = ess < threshold * self.settings.num_particles
            self.state, (live, self.frames) = lax.cond(is_low, resample, keep, log_weights, moving)
        return live

    def branch(self, equation: Any, values: list[Value]) -> list[Value]:
        """Walk one branch where all particles agree on it, and else all, for the particles that take each."""
        branches = equation.params["branches"]
        index, *operands = values
        if index.moves:
            return self._each_branch(branches, index, operands)
        flags = moving_in_cond(equation, [value.moves for value in values])

        def take(branch: Any) -> Callable:
            def taken(state: Any, frames: list, arrays: list[Array]) -> Any:
                inside = self.inside(state, frames)
                own = [Value(a, moves=v.moves) for a, v in zip(arrays, operands, strict=True)]
                ends = inside.walk(*open_jaxpr(branch), own)
                outputs = [inside.spread(o) if m else o.array for o, m in zip(ends, flags, strict=True)]
                return inside.state, inside.frames, outputs

            return taken

        arrays = [value.array for value in operands]
        self.state, self.frames, outputs = lax.switch(
            index.array, [take(branch) for branch in branches], self.state, self.frames, arrays
        )
        return [Value(output, moves=moves) for output, moves in zip(outputs, flags, strict=True)]

    def _each_branch(self, branches: Any, index: Value, operands: list[Value]) -> list[Value]:
        """Walk all branches, masking the scores of each; resampling in one takes the others' values along."""
        held, done = len(self.frames), len(self.frames) + 1
        self.frames += [[index.array, *[value.array for value in operands if value.moves]], []]
        for number, branch in enumerate(branches):
            own = iter(self.frames[held][1:])
            inputs = [Value(next(own), moves=True) if value.moves else value for value in operands]
            self.masks.append((held, number))
            outputs = self.walk(*open_jaxpr(branch), inputs)
            self.masks.pop()
            self.frames[done] = [*self.frames[done], *[self.spread(value) for value in outputs]]
        (which, *_), ends = self.frames[held:]
        del self.frames[held:]
        count = len(ends) // len(branches)
        picked = []
        for position in range(count):
            cases = ends[position::count]
            shape = (-1, *[1] * (cases[0].ndim - 1))
            picked.append(
                lax.select_n(jnp.broadcast_to(which.reshape(shape), cases[0].shape), *cases)
                if len(cases) > 1
                else cases[0]
            )
        return [Value(case, moves=True) for case in picked]


def follow(leaf: Array, ancestors: Array) -> Array:
    """Return what the ancestors have."""
    return leaf.at[ancestors].get(mode="promise_in_bounds")
