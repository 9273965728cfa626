"""Learn a graph from a file, and write what was found into a folder."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pandas as pd
from rich.table import Table

from qbs.errors import DataError
from qbs.inference.dag.orders import OF_MOMENTS
from qbs.inference.results.atomic import replacing
from qbs.models.structural.export import to_json
from qbs.models.structural.streaming import Gram, StreamMissing, is_large, stream_gram
from qbs.models.structural.topological_dag import GraphWarning, TopologicalDAG


def learn(
    path: Path, *, tiers: str | None, required: Iterable[str], forbidden: Iterable[str], **settings: Any
) -> TopologicalDAG:
    """Learn the graph of the columns of a file.

    Args:
        path: A `.csv` or `.parquet` file.
        tiers: Names by tier, causes first: commas between names, semicolons between tiers.
        required: Edges as `"cause->effect"`.
        forbidden: The same.
        settings: Others of `TopologicalDAG`.

    A file of more than 20 million numbers (parquet) or 200 MB (CSV) is not held in memory: only its moments
    are, which the scores `"equal-variance"` and `"bic"` can do with.

    Raises:
        DataError: If the file cannot be read as a table, an edge is not written so, or the file is large and
            the score needs its rows.
    """
    rules: dict[str, Any] = {
        "tiers": [_names(tier) for tier in tiers.split(";")] if tiers else None,
        "required": [_edge(text) for text in required],
        "forbidden": [_edge(text) for text in forbidden],
    }
    method = TopologicalDAG(**rules, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GraphWarning)  # said in the report
        return method.fit_gram(_moments(path, method)) if is_large(path) else method.fit(_read(path))


def _moments(path: Path, method: TopologicalDAG) -> Gram:
    for name, allowed in {"score": OF_MOMENTS, "missing": ("drop", "raise")}.items():
        if getattr(method, name) not in allowed:
            raise DataError(
                f"{path} is too large to hold, and {name}={getattr(method, name)!r} needs its rows: choose "
                f"{' or '.join(allowed)}, or give a sample of the rows"
            )
    missing = cast(StreamMissing, method.missing)
    return stream_gram(path, missing=missing, progress=method.progress)


def _read(path: Path) -> pd.DataFrame:
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    if path.suffix not in readers:
        raise DataError(f"{path}: a .csv or .parquet file is needed")
    try:
        return readers[path.suffix](path)
    except (ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _edge(text: str) -> tuple[str, str]:
    parts = [part.strip() for part in text.split("->")]
    if len(parts) != 2 or not all(parts):
        raise DataError(f"an edge is written 'cause->effect', not {text!r}")
    return parts[0], parts[1]


def write_report(found: TopologicalDAG, folder: Path | None) -> dict[str, Any]:
    """Write `edges.csv`, `graph.json` and `graph.svg` into a folder, if there is one; return the JSON."""
    document = to_json(found.graph_) | {
        "order": found.order_,
        "loss": found.loss_,
        "honesty": {name: _plain(value) for name, value in found.honesty_._asdict().items()},
        "problems": found.problems_,
    }
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "graph.json") as path:
            path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        with replacing(folder / "edges.csv") as path:
            found.edges_.to_csv(path, index=False)
        with replacing(folder / "graph.svg") as path:
            found.plot().savefig(path, format="svg", bbox_inches="tight")
    return document


def _plain(value: Any) -> Any:
    return None if value != value else value


def edge_table(found: TopologicalDAG) -> Table:
    """Return the edges as a table for a terminal."""
    table = Table("cause", "effect", "weight", "confidence", "turned", "direction from", title="Edges")
    for edge in found.graph_.edges():
        both = edge.confidence, edge.confidence_turned
        shares = ["" if share is None else f"{share:.0%}" for share in both]
        table.add_row(edge.cause, edge.effect, f"{edge.weight:.3g}", *shares, edge.oriented_by)
    return table


def honesty_table(found: TopologicalDAG) -> Table:
    """Return how far to trust the directions, as a table for a terminal."""
    honesty, table = found.honesty_, Table("", "found", "reads", title="How far to trust the directions")
    rows = [
        ("spread of residual variances", honesty.residual_variation, "equal variances: below 0.2"),
        ("varsortability", honesty.varsortability, "near 1: sorting by variance says the same"),
        ("R2-sortability", honesty.r2_sortability, "near 1 or 0: so does sorting by explained share"),
        (
            "arrows as by sorted variances",
            honesty.same_as_variance_order,
            "1: the search added nothing to it",
        ),
        ("arrows as by top-down order", honesty.same_as_top_down, "1: nor to this"),
        ("cost of turning an arrow (nats)", honesty.margin, "below 2: some direction is a guess"),
    ]
    for name, value, reading in rows:
        if value == value:
            table.add_row(name, f"{value:.2f}", reading)
    return table
