"""A posterior in the formats of other programs: ArviZ data trees and GetDist text chains."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qbs.inference.results.atomic import replacing
from qbs.inference.results.diagnostics import scalars

if TYPE_CHECKING:
    import xarray

    from qbs.inference.results.posterior import Posterior

Ranges = Mapping[str, tuple[float | None, float | None]]


def to_datatree(posterior: "Posterior") -> "xarray.DataTree":
    """Return an ArviZ data tree with the groups `posterior` and, for chains, `sample_stats`.

    A slash in a name, which would be a path in the tree, becomes a dot.
    """
    from arviz_base import from_dict

    if posterior.log_weights is None:
        groups = {"posterior": posterior.samples}
        if posterior.stats:
            names = {"log_density": "lp"}
            groups["sample_stats"] = {names.get(name, name): v for name, v in posterior.stats.items()}
    else:
        groups = {"posterior": {name: values[None] for name, values in posterior.resample().items()}}
    tree = from_dict(
        {
            group: {name.replace("/", "."): values for name, values in variables.items()}
            for group, variables in groups.items()
        }
    )
    facts = {
        "inference_library": "qbs",
        "log_evidence": posterior.log_evidence,
        "log_evidence_error": posterior.log_evidence_error,
        "num_likelihood_calls": posterior.num_likelihood_calls,
        "problems": json.dumps(posterior.problems),
        "provenance": json.dumps(posterior.provenance),
    }
    tree["posterior"].attrs.update({name: fact for name, fact in facts.items() if fact is not None})
    return tree


def to_getdist(posterior: "Posterior", root: Path, labels: Mapping[str, str], ranges: Ranges) -> list[Path]:
    """Write GetDist text chains: weight, minus log density, parameters, derived parameters (marked `*`).

    White space in a name, which would end it there, becomes an underscore. Further chains of the same
    root, left by an earlier and longer run, are deleted, as GetDist would read them too.

    References:
        GetDist documentation, "Samples file format" (Lewis 2019, arXiv:1910.13970).
    """
    flat = scalars(posterior.samples)
    derived = set(scalars({name: posterior.samples[name] for name in posterior.derived}))
    names = sorted(flat, key=lambda name: name in derived)
    weights = posterior.weights / posterior.weights.max()
    density = posterior.stats.get("log_density", posterior.stats.get("log_likelihood"))
    minus_log = np.zeros(posterior.shape) if density is None else -density
    root.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for chain in range(posterior.shape[0]):
        columns = [weights[chain], minus_log[chain], *[flat[name][chain] for name in names]]
        rows = np.column_stack(columns)
        written.append(Path(f"{root}_{chain + 1}.txt"))
        with replacing(written[-1]) as path:
            np.savetxt(path, rows[rows[:, 0] > 0], fmt="%.8e")
    stale = posterior.shape[0] + 1
    while (left_over := Path(f"{root}_{stale}.txt")).exists():
        left_over.unlink()
        stale += 1
    listed = [
        f"{_one_word(name)}{'*' if name in derived else ''} {labels.get(name, _as_latex(name))}"
        for name in names
    ]
    limits = [
        f"{_one_word(name)} {'N' if low is None else low} {'N' if high is None else high}"
        for name, (low, high) in ranges.items()
        if name in flat
    ]
    for suffix, lines in ((".paramnames", listed), (".ranges", limits)):
        written.append(Path(f"{root}{suffix}"))
        with replacing(written[-1]) as path:
            path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return written


def _one_word(name: str) -> str:
    return "_".join(name.split())


def _as_latex(name: str) -> str:
    return name.replace("_", r"\_")
