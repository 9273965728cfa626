"""Convergence diagnostics of posterior draws, and their translation into plain sentences."""

import math
import warnings
from collections.abc import Mapping

import numpy as np

R_HAT_LIMIT = 1.01  # Vehtari et al. (2021), section 4
MIN_ESS_PER_CHAIN = 100  # the same, section 4: 400 for four chains
LARGEST_PARETO_K = 0.7  # Vehtari et al. (2024), section 3.2
_LEAST_DRAWS = 100  # fewer have no tail to fit a Pareto distribution to
_SHOWN = 5  # how many parameter names a sentence lists

Draws = Mapping[str, np.ndarray]


def scalars(samples: Draws) -> dict[str, np.ndarray]:
    """Split arrays of draws into one `(chain, draw)` array per number, named `theta[0,1]`."""
    flat = {}
    for name, values in samples.items():
        if values.ndim == 2:
            flat[name] = values
            continue
        for index in np.ndindex(values.shape[2:]):
            flat[f"{name}[{','.join(map(str, index))}]"] = values[(slice(None), slice(None), *index)]
    return flat


def kish_ess(log_weights: np.ndarray) -> float:
    r"""Return \((\sum_i w_i)^2 / \sum_i w_i^2\) of unnormalized log weights (Kish 1965)."""
    weights = np.exp(log_weights - np.max(log_weights))
    return float(weights.sum() ** 2 / (weights**2).sum())


def pareto_k(log_weights: np.ndarray) -> float | None:
    """Return the Pareto k of weights, or `None` where there are too few to tell.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry (2024), "Pareto smoothed importance sampling", JMLR 25(72).
    """
    finite = log_weights[np.isfinite(log_weights)]
    if finite.size < _LEAST_DRAWS or is_constant(finite):
        return None
    from arviz_stats.base import array_stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _, k = array_stats.psislw(-finite)
        except ValueError:  # a tail of equal weights
            return None
    return float(k) if math.isfinite(k) else None


def is_constant(draws: np.ndarray) -> bool:
    """Whether all draws of all chains are the same number."""
    return bool(np.all(draws == draws.flat[0]))


def chain_statistics(draws: np.ndarray, *, with_mcse: bool = True) -> dict[str, float]:
    """Return R-hat, bulk and tail ESS and the Monte Carlo error of the mean of `(chain, draw)` draws.

    Args:
        draws: The draws.
        with_mcse: Whether to compute the Monte Carlo error too, a fourth of the work.

    References:
        Vehtari, Gelman, Simpson, Carpenter & Buerkner (2021), "Rank-normalization, folding, and
        localization: An improved R-hat", by way of arviz-stats.
    """
    from arviz_stats.base import array_stats

    values = np.asarray(draws, dtype=np.float64)
    if is_constant(values) or not np.all(np.isfinite(values)) or values.shape[1] < 4:
        names = ("mcse_mean",) * with_mcse + ("ess_bulk", "ess_tail", "r_hat")
        return dict.fromkeys(names, float("nan"))
    axes = {"chain_axis": 0, "draw_axis": 1}
    with np.errstate(divide="ignore", invalid="ignore"):  # chains that stand still have no variance
        mcse = {"mcse_mean": float(array_stats.mcse(values, method="mean", **axes))} if with_mcse else {}
        return mcse | {
            "ess_bulk": float(array_stats.ess(values, method="bulk", **axes)),
            "ess_tail": float(array_stats.ess(values, method="tail", prob=(0.05, 0.95), **axes)),
            "r_hat": float(array_stats.rhat(values, **axes)),
        }


def chain_problems(samples: Draws, stats: Mapping[str, np.ndarray]) -> list[str]:
    """Return what is wrong with unweighted chains, as plain sentences.

    Args:
        samples: Draws with leading axes chain and draw.
        stats: Statistics per draw; `diverging` and `reached_max_depth` are read where present.
    """
    flat = scalars(samples)
    if not flat:
        return ["There is no number in the draws: every parameter is an empty array."]
    found = [*_nonfinite(flat), *_stuck(flat), *_divergences(stats)]
    num_chains, num_draws = next(iter(flat.values())).shape
    if num_draws < 4:
        return [*found, f"Only {num_draws} draws per chain: too few to judge convergence."]
    diagnosed = {name: chain_statistics(draws, with_mcse=False) for name, draws in flat.items()}
    high = {name: d["r_hat"] for name, d in diagnosed.items() if d["r_hat"] > R_HAT_LIMIT}
    if num_chains == 1:
        found.append("A single chain: R-hat cannot show whether chains agree; run four.")
    elif high:
        found.append(
            f"R-hat is above {R_HAT_LIMIT} for {_worst(high, '.3f')}: the chains do not agree yet; "
            "draw longer, or reparameterise."
        )
    needed = MIN_ESS_PER_CHAIN * num_chains
    low = {
        name: -min(d["ess_bulk"], d["ess_tail"])
        for name, d in diagnosed.items()
        if min(d["ess_bulk"], d["ess_tail"]) < needed
    }
    if low:
        found.append(
            f"The effective sample size is below {needed} for "
            f"{_worst(low, '.0f', sign=-1)}: means and quantiles are rough; draw more."
        )
    return found


def _nonfinite(flat: Draws) -> list[str]:
    counts = {name: float(np.sum(~np.isfinite(draws))) for name, draws in flat.items()}
    counts = {name: count for name, count in counts.items() if count}
    if not counts:
        return []
    return [f"NaN or infinite draws, with their number: {_worst(counts, '.0f')}; the rest are not judged."]


def _stuck(flat: Draws) -> list[str]:
    num_chains = next(iter(flat.values())).shape[0]
    moved = np.zeros(num_chains, dtype=bool)
    for draws in flat.values():
        moved |= np.any(draws != draws[:, :1], axis=1)
    stuck = [str(chain) for chain in np.flatnonzero(~moved)]
    if not stuck or next(iter(flat.values())).shape[1] < 2:
        return []
    return [f"Chain {', '.join(stuck)} did not move at all: leave it out or start again elsewhere."]


def _divergences(stats: Mapping[str, np.ndarray]) -> list[str]:
    found = []
    if "diverging" in stats and (count := int(np.sum(stats["diverging"]))):
        share = count / np.size(stats["diverging"])
        found.append(
            f"{count} divergent transitions ({share:.1%} of the draws): parts of the posterior may be "
            "missed; raise target_accept, or reparameterise."
        )
    if "reached_max_depth" in stats and (share := float(np.mean(stats["reached_max_depth"]))) > 0.01:
        found.append(
            f"{share:.0%} of the trajectories reached the maximum tree depth: sampling is slow, not "
            "wrong; raise max_tree_depth, or rescale the parameters."
        )
    return found


def weight_problems(log_weights: np.ndarray, *, min_ess: float = 100.0) -> list[str]:
    """Return what is wrong with weighted draws, as plain sentences."""
    ess = kish_ess(log_weights)
    if ess >= min_ess:
        return []
    return [f"The effective sample size of the weighted draws is {ess:.0f}: means and quantiles are rough."]


def _worst(values: Mapping[str, float], form: str, sign: int = 1) -> str:
    ordered = sorted(values.items(), key=lambda item: -item[1])
    text = ", ".join(f"{name} ({sign * value:{form}})" for name, value in ordered[:_SHOWN])
    return text + (f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else "")
