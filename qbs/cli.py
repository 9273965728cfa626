"""The `qbs` command: parses, calls and prints; everything else is elsewhere."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import qbs
from qbs.errors import QbsError

app = typer.Typer(
    help="Bayesian inference and structure learning in JAX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_BAD_INPUT = 2
_PROBLEMS = 3
_INTERRUPTED = 130


def _version(asked: bool | None) -> None:
    if asked:
        print(f"qbs {qbs.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = None,
) -> None:
    pass


@app.command()
def cosmology(
    run_file: Annotated[
        Path | None,
        typer.Argument(metavar="RUN.yaml", help="The run file; or the name of an example, after --example."),
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a run file that explains every key, or the one named.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json and nothing else.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Fit again what an earlier run of this file finished or began.")
    ] = False,
) -> None:
    """Fit cosmological models to survey data: posterior, evidence, chains and figures.

    Exit status: 0 all well; 2 the run file or the data cannot be used; 3 done, with problems that the
    output names; 130 interrupted, with the results so far written.
    """
    from qbs.models.cosmology.results import model_table
    from qbs.models.cosmology.run import analyses, carry_out
    from qbs.models.cosmology.run_file_examples import EXAMPLES
    from qbs.models.cosmology.runfile import read_run_file
    from qbs.models.cosmology.tensions import tension_table

    if example:
        name = "all_keys" if run_file is None else str(run_file)
        if name not in EXAMPLES:
            raise typer.BadParameter(f"there is no example {name!r}; there are {', '.join(EXAMPLES)}")
        print(EXAMPLES[name], end="")
        return
    if run_file is None:
        raise typer.BadParameter("give a run file, or --example to get one to start from")
    console = Console(stderr=as_json, quiet=as_json, soft_wrap=True, highlight=False)
    with _one_sentence():
        settings = read_run_file(run_file)
        outcome = carry_out(
            settings,
            analyses(settings),
            tell=console.print,
            progress=not as_json,
            fresh=fresh,
        )
    if as_json:
        print(json.dumps(outcome.contents, indent=2))
    console.print(model_table(outcome.models))
    if outcome.tensions:
        console.print(tension_table(outcome.tensions))
    for name, problem in outcome.problems:
        console.print(f"! {name}: {problem}")
    if outcome.is_interrupted:
        raise typer.Exit(_INTERRUPTED)
    if outcome.problems:
        raise typer.Exit(_PROBLEMS)


@app.command()
def dag(
    table: Annotated[Path, typer.Argument(metavar="DATA", help="A .csv or .parquet file with a header.")],
    out: Annotated[Path | None, typer.Option(help="Folder for edges.csv, graph.json, graph.svg.")] = None,
    score: Annotated[
        str, typer.Option(help="equal-variance, bic, lingam, logistic, mixed or mlp.")
    ] = "equal-variance",
    tiers: Annotated[
        str | None, typer.Option(help="Columns by tier, causes first: 'age,sex;dose;outcome'.")
    ] = None,
    require: Annotated[list[str] | None, typer.Option(help="An edge that must be: 'dose->outcome'.")] = None,
    forbid: Annotated[list[str] | None, typer.Option(help="An edge that must not be.")] = None,
    bootstraps: Annotated[
        int | None,
        typer.Option(min=0, help="Resampled data sets for the confidence; 200, or 0 for slow scores."),
    ] = None,
    missing: Annotated[str, typer.Option(help="Rows with gaps: drop, mean (fill in) or raise.")] = "drop",
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print graph.json and nothing else.")] = False,
) -> None:
    """Learn a causal graph of the columns of a table.

    Exit status: 0 all well; 2 the table or an option cannot be used; 3 done, with problems that the output
    names; 130 interrupted.
    """
    with _one_sentence(TypeError, ValueError, ImportError):
        from qbs.models.structural.report import edge_table, honesty_table, learn, write_report

        found = learn(
            table,
            score=score,
            tiers=tiers,
            required=require or (),
            forbidden=forbid or (),
            bootstraps=bootstraps,
            missing=missing,
            seed=seed,
            progress=False if as_json else None,
        )
        document = write_report(found, out)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        console = Console(soft_wrap=True, highlight=False)
        console.print(edge_table(found))
        console.print(honesty_table(found))
        for problem in found.problems_:
            console.print(f"! {problem}", markup=False)
        if out is not None:
            console.print(f"Written to {out}: edges.csv, graph.json, graph.svg", markup=False)
    if found.problems_:
        raise typer.Exit(_PROBLEMS)


@contextlib.contextmanager
def _one_sentence(*more: type[Exception]) -> Iterator[None]:
    """Turn what went wrong into one sentence and exit status 2."""
    expected: tuple[type[Exception], ...] = (QbsError, OSError, *more)
    try:
        yield
    except expected as error:
        print(f"qbs: {error}", file=sys.stderr)
        raise typer.Exit(_BAD_INPUT) from None
    except KeyboardInterrupt as interrupt:
        print(f"qbs: {str(interrupt) or 'interrupted before there was anything to keep'}", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None


def main() -> None:
    """Run the command line."""
    app()
