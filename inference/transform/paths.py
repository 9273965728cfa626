"""The paths of particles through a scan: what its steps put out, found again by ancestors in the end.

Either every step of every particle is stored, beside its ancestor, or a tree of a fixed number of nodes, from
which the lines that died out are cut off whenever it is full. Only what is read in the end is put together.

References:
    Jacob, Murray & Rubenthaler (2015), "Path storage in the particle filter", section 2: the surviving tree
    has about T + c N log N nodes instead of T N, for T steps of N particles.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from qbs.effects import score
from qbs.inference.transform.suspension import History, Value


class Paths(History):
    """What the steps of a scan put out, of all particles, kept with their ancestors.

    What moves with the particles is where each was at the start of the step.
    """

    def __init__(
        self,
        kinds: list[jax.ShapeDtypeStruct],
        length: int,
        num_particles: int,
        num_nodes: int | None,
        *,
        is_backwards: bool,
    ):
        super().__init__(kinds, length, is_backwards=is_backwards)
        self.particles, self.num_nodes = jnp.arange(num_particles), num_nodes
        if num_nodes is not None and num_nodes >= num_particles * length:
            self.num_nodes = None

    def start(self) -> tuple[list[Array], Any]:
        """Return the particles, and an empty tree if there is one."""
        if self.num_nodes is None:
            return [self.particles], ()
        return [self.particles], Tree.empty(self.num_nodes, self.particles.size, self.kinds)

    def record(
        self,
        moving: list[Array],
        carried: Any,
        step: Array,  # noqa: ARG002
        outputs: list[Array],
    ) -> tuple[list[Array], Any, Any]:
        """Store a step, in the tree or as part of all steps."""
        if self.num_nodes is None:
            return [self.particles], (), (moving[0], outputs)
        return [self.particles], carried.grown(moving[0], outputs), ()

    def values(self, moving: list[Array], carried: Any, stacked: Any) -> list[Value]:  # noqa: ARG002
        """Return the outputs, to be put together along the paths of some particles when they are read."""
        if self.num_nodes is None:
            along, last = partial(self._along_steps, *stacked), self.particles
        else:
            few = jnp.where(carried.is_full, jnp.nan, 0.0)
            score(few, name=f"paths: num_path_nodes={self.num_nodes} is too few")
            along, last = partial(self._along_tree, carried), carried.leaves
        return [Value(last, moves=True, path=partial(along, number)) for number in range(len(self.kinds))]

    def _along_steps(self, ancestors: Array, values: list[Array], number: int, last: Array) -> Array:
        def back(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
            own, value = step
            return own[later], value[later]

        return self._back(back, last, (ancestors, values[number]))

    def _along_tree(self, tree: "Tree", number: int, leaves: Array) -> Array:
        def back(node: Array, _: None) -> tuple[Array, Array]:
            return tree.parents[node], tree.values[number][node]

        return self._back(back, leaves, None)

    def _back(self, back: Any, last: Array, steps: Any) -> Array:
        """Return what is met on the way from the last step to the first; particles first, then steps."""
        _, met = lax.scan(back, last, steps, length=self.length, reverse=not self.is_backwards)
        return jnp.moveaxis(met, 0, 1)


class Tree(NamedTuple):
    """The paths that survive, as nodes that know their parents.

    Attributes:
        parents: The node before each node, in its path.
        values: What the step of a node put out.
        is_alive: Which nodes are part of a path.
        free: Nodes that are not, in its first `num_free` places.
        num_free: How many there are.
        leaves: The node of each particle at the last step.
        is_full: Whether there were ever too few nodes; then the paths are wrong.
    """

    parents: Int[Array, " nodes"]
    values: list[Array]
    is_alive: Bool[Array, " nodes"]
    free: Int[Array, " nodes"]
    num_free: Int[Array, ""]
    leaves: Int[Array, " particles"]
    is_full: Bool[Array, ""]

    @classmethod
    def empty(cls, num_nodes: int, num_particles: int, values: list[jax.ShapeDtypeStruct]) -> "Tree":
        """Return a tree without nodes, for what one particle puts out in a step."""
        return cls(
            jnp.zeros(num_nodes, int),
            [jnp.zeros((num_nodes, *value.shape), value.dtype) for value in values],
            jnp.zeros(num_nodes, bool),
            jnp.arange(num_nodes),
            jnp.asarray(num_nodes),
            jnp.full(num_particles, num_nodes),
            jnp.zeros((), bool),
        )

    def grown(self, ancestors: Int[Array, " particles"], values: list[Array]) -> "Tree":
        """Return the tree with a new step: a node for each particle, behind that of its ancestor."""
        count = ancestors.size
        parents = self.leaves[ancestors]
        tree = lax.cond(self.num_free < count, Tree._pruned, lambda same, _: same, self, parents)
        nodes = lax.dynamic_slice_in_dim(tree.free, jnp.maximum(tree.num_free - count, 0), count)
        return tree._replace(
            parents=tree.parents.at[nodes].set(parents),
            values=[old.at[nodes].set(new) for old, new in zip(tree.values, values, strict=True)],
            is_alive=tree.is_alive.at[nodes].set(True),
            num_free=tree.num_free - count,
            leaves=nodes,
            is_full=tree.is_full | (tree.num_free < count),
        )

    def _pruned(self, leaves: Int[Array, " particles"]) -> "Tree":
        """Return the tree without the nodes that no leaf descends from."""
        num_nodes = self.parents.size
        is_leaf = jnp.zeros(num_nodes, bool).at[leaves].set(True, mode="drop")

        def cut(loop: tuple[Array, Array]) -> tuple[Array, Array]:
            is_alive, _ = loop
            parents = jnp.where(is_alive, self.parents, num_nodes)
            is_parent = jnp.zeros(num_nodes, bool).at[parents].set(True, mode="drop")
            kept = is_alive & (is_leaf | is_parent)
            return kept, jnp.any(kept != is_alive)

        is_alive, _ = lax.while_loop(lambda loop: loop[1], cut, (self.is_alive, jnp.ones((), bool)))
        free = jnp.nonzero(~is_alive, size=num_nodes, fill_value=0)[0]
        return self._replace(is_alive=is_alive, free=free, num_free=jnp.sum(~is_alive))
