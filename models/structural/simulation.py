"""Random directed acyclic graphs, and data from structural equation models on them."""

import numpy as np
from jaxtyping import ArrayLike, Float

from qbs.inference.dag.equivalence import topological_order

_NUM_HIDDEN = 100
_LEAST, _MOST = 0.5, 2.0  # of the size of a weight


def simulate_dag(
    num_nodes: int, num_edges: int, graph: str = "ER", *, seed: int = 0
) -> Float[np.ndarray, "num_nodes num_nodes"]:
    r"""Return the weights of a random directed acyclic graph: of row -> column, zero where there is no edge.

    Args:
        num_nodes: Number of nodes.
        num_edges: Number of edges; 2 `num_nodes` of them is what is called ER2 or SF2.
        graph: `"ER"`, Erdős-Rényi: every set of edges along a random order is as likely; the number is exact.
            `"SF"`, scale-free: each next node has `num_edges / num_nodes` parents (rounded up), chosen the
            more likely the more edges they have (Barabási-Albert).
        seed: Of the random numbers.

    Returns:
        Weights with a random sign and a size uniform in [0.5, 2], as usual since Zheng et al. (2018).

    Raises:
        ValueError: If there cannot be so many edges, or the kind of graph is not known.

    References:
        Erdős & Rényi (1960); Barabási & Albert (1999), "Emergence of scaling in random networks"; Zheng,
        Aragam, Ravikumar & Xing (2018), "DAGs with NO TEARS".
    """
    if num_nodes < 1:
        raise ValueError(f"simulate_dag: num_nodes must be 1 or more, not {num_nodes}")
    most = num_nodes * (num_nodes - 1) // 2
    if not 0 <= num_edges <= most:
        raise ValueError(
            f"simulate_dag: num_edges must be 0 ... {most} for {num_nodes} nodes, not {num_edges}"
        )
    rng = np.random.default_rng(seed)
    is_edge = np.zeros((num_nodes, num_nodes), bool)
    if graph == "ER":
        first, second = np.triu_indices(num_nodes, 1)
        chosen = rng.choice(most, num_edges, replace=False)
        is_edge[first[chosen], second[chosen]] = True
    elif graph == "SF":
        _grow(is_edge, -(-num_edges // num_nodes), rng)
    else:
        raise ValueError(f"simulate_dag: graph must be 'ER' or 'SF', not {graph!r}")
    order = rng.permutation(num_nodes)
    is_edge = is_edge[np.ix_(order, order)]
    sizes = rng.uniform(_LEAST, _MOST, is_edge.shape) * rng.choice([-1.0, 1.0], is_edge.shape)
    return np.where(is_edge, sizes, 0.0)


def _grow(is_edge: np.ndarray, num_parents: int, rng: np.random.Generator) -> None:
    """Add edges to each node from those before it, the more likely the more edges they have."""
    degrees = np.ones(len(is_edge))
    for node in range(1, len(is_edge)):
        count = min(node, num_parents)
        chances = degrees[:node] / degrees[:node].sum()
        parents = rng.choice(node, count, replace=False, p=chances)
        is_edge[parents, node] = True
        degrees[parents] += 1
        degrees[node] += count


def simulate_sem(
    weights: ArrayLike,
    num_rows: int,
    noise: str = "gaussian",
    *,
    equations: str = "linear",
    noise_scale: ArrayLike = 1.0,
    seed: int = 0,
) -> Float[np.ndarray, "num_rows num_nodes"]:
    """Return rows of data from a structural equation model on a weighted graph.

    Args:
        weights: Of row -> column, square; the graph must be acyclic.
        num_rows: Number of rows.
        noise: Law of the noise: `"gaussian"`, `"exponential"`, `"gumbel"` or `"uniform"`, with mean zero and
            standard deviation `noise_scale`.
        equations: `"linear"`: the parents' weighted sum plus noise. `"logistic"`: columns of 0 and 1, with
            that sum as the log odds and no other noise. `"mlp"`: noise plus a random network of the parents
            with one layer of 100 sigmoid units, weights as those of a graph; the graph's own weights say only
            where edges are.
        noise_scale: Standard deviation of the noise, of all nodes or of each.
        seed: Of the random numbers.

    Raises:
        ValueError: If the graph has a cycle, or a name is not known.
    """
    weights = np.asarray(weights, float)
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
        raise ValueError(f"simulate_sem: weights must be a square matrix, not of shape {weights.shape}")
    rng, num_nodes = np.random.default_rng(seed), len(weights)
    scales = np.broadcast_to(np.asarray(noise_scale, float), (num_nodes,))
    data = np.zeros((num_rows, num_nodes))
    for node in causal_order(weights):
        parents = np.flatnonzero(weights[:, node])
        if equations == "mlp" and len(parents):
            signal = _network(data[:, parents], rng)
        elif equations in ("linear", "logistic", "mlp"):
            signal = data[:, parents] @ weights[parents, node]
        else:
            raise ValueError(f"simulate_sem: equations must be linear, logistic or mlp, not {equations!r}")
        if equations == "logistic":
            data[:, node] = rng.uniform(size=num_rows) < 1 / (1 + np.exp(-signal))
        else:
            data[:, node] = signal + scales[node] * _noise(noise, num_rows, rng)
    return data


def causal_order(weights: ArrayLike) -> np.ndarray:
    """Return the nodes such that all edges go forward; the lower number first where either may be.

    Raises:
        ValueError: If there is a cycle.
    """
    is_edge = np.asarray(weights) != 0
    order = topological_order(is_edge)
    if len(order) < len(is_edge):
        raise ValueError("the graph has a cycle: data can be simulated from acyclic graphs only")
    return order


def _network(parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    first, second = (
        rng.uniform(_LEAST, _MOST, shape) * rng.choice([-1.0, 1.0], shape)
        for shape in ((parents.shape[1], _NUM_HIDDEN), (_NUM_HIDDEN,))
    )
    return 1 / (1 + np.exp(-(parents @ first))) @ second


def _noise(law: str, count: int, rng: np.random.Generator) -> np.ndarray:
    if law == "gaussian":
        return rng.normal(size=count)
    if law == "exponential":
        return rng.exponential(size=count) - 1
    if law == "gumbel":
        return (rng.gumbel(size=count) - np.euler_gamma) * np.sqrt(6) / np.pi
    if law == "uniform":
        return rng.uniform(-np.sqrt(3), np.sqrt(3), count)
    raise ValueError(f"simulate_sem: noise must be gaussian, exponential, gumbel or uniform, not {law!r}")
