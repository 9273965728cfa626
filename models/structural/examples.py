"""Real data to try structure learning on: a table, and the graphs that others compare with."""

from importlib import resources

from qbs.errors import MissingExtraError

try:
    import pandas as pd
except ImportError as error:
    raise MissingExtraError("example data need pandas: pip install 'qbs-jax[frames]'") from error

_REFERENCES = ("17", "20")  # numbers of edges


def load_sachs() -> pd.DataFrame:
    """Return the protein-signalling data of Sachs et al. (2005): 853 cells by 11 proteins and lipids.

    It is the observational condition (anti-CD3/CD28) alone, in the units of the flow cytometer: no
    logarithms, no scaling, no missing values. The data are under CC0 1.0; `data/SOURCE.md` says where they
    come from.

    References:
        Sachs, Perez, Pe'er, Lauffenburger & Nolan (2005), "Causal protein-signaling networks derived from
        multiparameter single-cell data".
    """
    return _read("sachs.csv")


def sachs_edges(reference: str = "17") -> pd.DataFrame:
    """Return a network that graphs learned from `load_sachs` are compared with.

    Neither is known to be true, and they differ in four edges: say which one a comparison is with.

    Args:
        reference: `"17"`, that of Sachs et al. as the bnlearn repository has it; `"20"`, a consensus that
            turns plc -> pip3 round and has three more.

    Returns:
        1 for an edge of row -> column, else 0; names in the order of the data. Both are acyclic.

    Raises:
        ValueError: If there is no such reference.
    """
    if reference not in _REFERENCES:
        raise ValueError(f"sachs_edges: reference must be one of {', '.join(_REFERENCES)}, not {reference!r}")
    names = list(load_sachs().columns)
    adjacency = pd.DataFrame(0, index=names, columns=names)
    for cause, effect in _read(f"sachs_edges_{reference}.csv").itertuples(index=False):
        adjacency.loc[cause, effect] = 1
    return adjacency


def _read(name: str) -> pd.DataFrame:
    with (resources.files("qbs.models.structural") / "data" / name).open("rb") as file:
        return pd.read_csv(file)
