"""Carry out a run file: fit every model, and write posteriors, chains, figures and results."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from qbs.errors import PosteriorFileError, RunFileError
from qbs.inference.fitting import fit
from qbs.inference.results.atomic import replacing
from qbs.inference.results.posterior import Posterior
from qbs.inference.results.provenance import settings, versions
from qbs.inference.results.storage import load
from qbs.models.cosmology.analysis import Analysis, used_parameters
from qbs.models.cosmology.parameters import DERIVED, OPTIONAL, PARAMETERS
from qbs.models.cosmology.results import ModelResult, results_as_dict
from qbs.models.cosmology.runfile import RunFile

Tell = Callable[[str], None]


def analyses(run_file: RunFile) -> dict[str, Analysis]:
    """Return the analysis of each model of a run file; reads the data, computes nothing.

    Raises:
        DataError: If a table is missing or damaged.
        RunFileError: If a prior is for a parameter of none of the models.
    """

    def build(model: str, priors: dict[str, Any]) -> Analysis:
        return Analysis(
            model=model,
            data=run_file.data,
            priors=priors,
            sound_horizon=run_file.sound_horizon,
            data_path=run_file.data_path,
        )

    used = {
        name: {*used_parameters(name, run_file.data, sound_horizon=run_file.sound_horizon), *OPTIONAL}
        for name in run_file.models
    }
    for parameter in run_file.priors:
        if not any(parameter in names for names in used.values()):
            every = sorted(set().union(*used.values()))
            raise RunFileError(
                f"priors: {parameter} is not a parameter of {', '.join(used)} with these data; "
                f"accepted: {', '.join(every)}"
            )
    problems = {
        name: build(name, {key: prior for key, prior in run_file.priors.items() if key in names})
        for name, names in used.items()
    }
    for name, analysis in problems.items():
        if not analysis.parameters:
            raise RunFileError(f"priors: every parameter of {name} is fixed, so there is nothing to fit")
    return problems


def carry_out(
    run_file: RunFile,
    problems: dict[str, Analysis],
    *,
    tell: Tell = print,
    progress: bool | None = None,
    fresh: bool = False,
) -> dict[str, ModelResult]:
    """Fit the models of a run file and write everything to its output folder.

    Each posterior is saved as soon as it is there. Run again with the same settings, models that are
    already finished are read instead of fitted, and one that was stopped goes on from its checkpoint.

    Args:
        run_file: The settings.
        problems: What `analyses` returns for it.
        tell: Called with each sentence for the user.
        progress: Whether to show progress; by default on a terminal.
        fresh: Fit again what an earlier run has finished or begun.

    Returns:
        The result of each model, complete or interrupted; a Ctrl-C ends the run after the model that it
        interrupts.
    """
    folder = run_file.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFileError(f"output: cannot make the folder {folder}: {error.strerror}") from error
    results: dict[str, ModelResult] = {}
    for name, analysis in problems.items():
        path = folder / f"{name}.qbs"
        fingerprint = _fingerprint(run_file, analysis)
        posterior = None if fresh else _finished(path, fingerprint)
        if posterior is not None:
            tell(f"{name}: already fitted with these settings, read from {path} (--fresh fits it again)")
        else:
            checkpoint = folder / f"{name}.{fingerprint[:8]}.checkpoint"
            if fresh:
                checkpoint.unlink(missing_ok=True)
            elif checkpoint.exists():
                tell(f"{name}: going on from {checkpoint} (--fresh starts anew)")
            posterior = _fit(run_file, analysis, fingerprint, checkpoint, progress=progress)
            posterior.save(path)
            if not posterior.provenance.get("is_interrupted"):
                checkpoint.unlink(missing_ok=True)
        results[name] = ModelResult(name, analysis, posterior)
        if posterior.provenance.get("is_interrupted"):
            tell(
                f"{name}: interrupted; what was done is kept in {path}, to be read with qbs.load; the same "
                "command goes on from there"
            )
            break
    _write(run_file, results, tell)
    return results


def _fit(
    run_file: RunFile, analysis: Analysis, fingerprint: str, checkpoint: Path, *, progress: bool | None
) -> Posterior:
    posterior = fit(
        analysis.numpyro_model,
        name=analysis.model,
        method=run_file.method,
        key=jax.random.key(run_file.seed),
        precision="float64",
        progress=progress,
        checkpoint=checkpoint,
    )
    posterior.provenance.update(run_fingerprint=fingerprint)
    return posterior


def _fingerprint(run_file: RunFile, analysis: Analysis) -> str:
    """Return a hash of everything that decides the result of one model."""
    decisive = {
        "model": analysis.model,
        "data": run_file.data,
        "priors": {name: run_file.priors[name] for name in sorted(run_file.priors)},
        "sound_horizon": run_file.sound_horizon,
        "method": [type(run_file.method).__name__, settings(run_file.method)],
        "seed": run_file.seed,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _finished(path: Path, fingerprint: str) -> Posterior | None:
    try:
        posterior = load(path)
    except (FileNotFoundError, PosteriorFileError):
        return None
    record = posterior.provenance
    is_same = record.get("run_fingerprint") == fingerprint and not record.get("is_interrupted")
    return posterior if is_same else None


def _write(run_file: RunFile, results: dict[str, ModelResult], tell: Tell) -> None:
    from qbs.models.cosmology.plots import write_figures

    folder = run_file.output
    labels = {name: parameter.label for name, parameter in {**DERIVED, **PARAMETERS}.items()}
    for name, result in results.items():
        result.posterior.to_getdist(
            folder / name,
            labels=labels,
            ranges={key: result.analysis.prior_range(key) for key in result.analysis.parameters},
        )
    contents = results_as_dict(results, provenance_of_run(run_file))
    with replacing(folder / "results.json") as path:
        path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    tell(f"results: {folder / 'results.json'}; posteriors: {folder}/*.qbs; GetDist chains: {folder}/*_1.txt")
    figures = write_figures(results, folder, run_file.figures)
    tell("figures: " + ", ".join(str(path) for path in figures))


def provenance_of_run(run_file: RunFile) -> dict[str, Any]:
    """Return what a reader needs to repeat the run."""
    return {
        "models": list(run_file.models),
        "data": list(run_file.data),
        "priors": dict(run_file.priors),
        "sound_horizon": run_file.sound_horizon,
        "method": {"name": type(run_file.method).__name__.lower(), **settings(run_file.method)},
        "seed": run_file.seed,
        "versions": versions(),
    }
