"""Carry out a run file: fit every model, and write posteriors, chains, figures, tables and results."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from qbs.errors import PosteriorFileError, RunFileError
from qbs.inference.fitting import fit
from qbs.inference.results.atomic import replacing
from qbs.inference.results.posterior import Posterior
from qbs.inference.results.provenance import settings, versions
from qbs.inference.results.storage import load
from qbs.inference.results.summary import render
from qbs.models.cosmology.analysis import Analysis, used_parameters
from qbs.models.cosmology.parameters import DERIVED, OPTIONAL, PARAMETERS
from qbs.models.cosmology.results import ModelResult, model_table, results_as_dict
from qbs.models.cosmology.runfile import RunFile
from qbs.models.cosmology.tensions import Comparison, tension, tension_table

Tell = Callable[[str], None]
_SIDES = ("joint: ", "first: ", "second: ")


@dataclass(frozen=True)
class Outcome:
    """What a run file gave.

    Attributes:
        models: The result of each model, complete or interrupted.
        tensions: How data sets agree, one entry for each pair of the run file and each model.
        contents: What is in `results.json`.
        problems: What a reader must know before trusting it, as name of the fit and sentence.
        is_interrupted: Whether something is still to be done.
    """

    models: dict[str, ModelResult]
    tensions: tuple[Comparison, ...]
    contents: dict[str, Any]
    problems: tuple[tuple[str, str], ...]
    is_interrupted: bool


def analyses(run_file: RunFile) -> dict[str, Analysis]:
    """Return the analysis of each model of a run file; reads the data, computes nothing.

    Raises:
        DataError: If a table is missing or damaged.
        RunFileError: If a prior is for a parameter of none of the models.
    """
    data_sets = {run_file.data, *(side for pair in run_file.tension for side in pair)}
    used = set().union(
        *(_known_parameters(run_file, name, data) for name in run_file.models for data in data_sets)
    )
    for parameter in run_file.priors:
        if parameter not in used:
            raise RunFileError(
                f"priors: {parameter} is not a parameter of {', '.join(run_file.models)} with these data; "
                f"accepted: {', '.join(sorted(used))}"
            )
    return {name: _analysis(run_file, name, run_file.data) for name in run_file.models}


def _known_parameters(run_file: RunFile, model: str, data: Iterable[str]) -> set[str]:
    return {*used_parameters(model, data, sound_horizon=run_file.sound_horizon), *OPTIONAL}


def _analysis(run_file: RunFile, model: str, data: tuple[str, ...]) -> Analysis:
    known = _known_parameters(run_file, model, data)
    analysis = Analysis(
        model=model,
        data=data,
        priors={name: prior for name, prior in run_file.priors.items() if name in known},
        sound_horizon=run_file.sound_horizon,
        data_path=run_file.data_path,
    )
    if not analysis.parameters:
        of = "" if data == run_file.data else f" with {', '.join(data)}"
        raise RunFileError(f"priors: every parameter of {model}{of} is fixed, so there is nothing to fit")
    return analysis


def carry_out(
    run_file: RunFile,
    problems: dict[str, Analysis],
    *,
    tell: Tell = print,
    progress: bool | None = None,
    fresh: bool = False,
) -> Outcome:
    """Fit the models of a run file and write everything to its output folder.

    Each posterior is saved as soon as it is there. Run again with the same settings, models that are
    already finished are read instead of fitted, and one that was stopped goes on from its checkpoint. The
    same holds for the fits that the tension between data sets takes.

    Args:
        run_file: The settings.
        problems: What `analyses` returns for it.
        tell: Called with each sentence for the user.
        progress: Whether to show progress; by default on a terminal.
        fresh: Fit again what an earlier run has finished or begun.

    Returns:
        The results; a Ctrl-C ends the run after the fit that it interrupts.
    """
    return _Run(run_file, tell, progress=progress, fresh=fresh).carried_out(problems)


class _Run:
    """The fits of a run file, each made once."""

    def __init__(self, run_file: RunFile, tell: Tell, *, progress: bool | None, fresh: bool):
        self._run_file, self._tell, self._progress, self._fresh = run_file, tell, progress, fresh
        self._folder = run_file.output
        self._fits: dict[tuple[str, frozenset[str]], ModelResult] = {}
        self._problems: list[tuple[str, str]] = []
        self._is_interrupted = False

    def carried_out(self, problems: dict[str, Analysis]) -> Outcome:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFileError(f"output: cannot make the folder {self._folder}: {error.strerror}") from error
        models: dict[str, ModelResult] = {}
        for name, analysis in problems.items():
            models[name] = self._fit(name, analysis)
            if self._is_interrupted:
                break
        # Before the tensions, which take longer: the models are then safe.
        contents = self._write(models)
        (self._folder / "tension.txt").unlink(missing_ok=True)  # of an earlier run
        tensions = self._tensions(list(models))
        if tensions:
            contents["tension"] = [comparison.as_dict() for comparison in tensions]
            self._save("results.json", _as_json(contents))
            self._save("tension.txt", render(tension_table(tensions)) + "\n")
            self._tell(f"tension between data sets: {self._folder / 'tension.txt'}")
        return Outcome(models, tensions, contents, tuple(self._problems), self._is_interrupted)

    def _tensions(self, models: list[str]) -> tuple[Comparison, ...]:
        found: list[Comparison] = []
        for model in models:
            for first, second in self._run_file.tension:
                sides = []
                for data in ((*first, *second), first, second):
                    if self._is_interrupted:
                        return tuple(found)
                    sides.append(self._fit_to(model, data))
                if self._is_interrupted:
                    return tuple(found)
                found.append(Comparison(model, first, second, tension(*sides)))
                name = f"{model}, {'+'.join(first)} against {'+'.join(second)}"
                # Those of the fits are told with the fits.
                own = [text for text in found[-1].tension.problems if not text.startswith(_SIDES)]
                self._problems += [(name, text) for text in own]
        return tuple(found)

    def _fit_to(self, model: str, data: tuple[str, ...]) -> ModelResult:
        known = self._fits.get((model, frozenset(data)))
        return known or self._fit(f"{model}.{'+'.join(data)}", _analysis(self._run_file, model, data))

    def _fit(self, name: str, analysis: Analysis) -> ModelResult:
        path = self._folder / f"{name}.qbs"
        fingerprint = _fingerprint(self._run_file, analysis)
        posterior = None if self._fresh else _finished(path, fingerprint)
        if posterior is not None:
            self._tell(
                f"{name}: already fitted with these settings, read from {path} (--fresh fits it again)"
            )
        else:
            checkpoint = self._folder / f"{name}.{fingerprint[:8]}.checkpoint"
            if self._fresh:
                checkpoint.unlink(missing_ok=True)
            elif checkpoint.exists():
                self._tell(f"{name}: going on from {checkpoint} (--fresh starts anew)")
            posterior = _fit(self._run_file, analysis, name, fingerprint, checkpoint, progress=self._progress)
            posterior.save(path)
            if not posterior.provenance.get("is_interrupted"):
                checkpoint.unlink(missing_ok=True)
        self._problems += [(name, text) for text in posterior.problems]
        if posterior.provenance.get("is_interrupted"):
            self._is_interrupted = True
            self._tell(
                f"{name}: interrupted; what was done is kept in {path}, to be read with qbs.load; the same "
                "command goes on from there"
            )
        result = ModelResult(analysis.model, analysis, posterior)
        return self._fits.setdefault((analysis.model, frozenset(analysis.data)), result)

    def _write(self, models: dict[str, ModelResult]) -> dict[str, Any]:
        from qbs.models.cosmology.plots import write_figures

        folder = self._folder
        labels = {name: parameter.label for name, parameter in {**DERIVED, **PARAMETERS}.items()}
        for name, result in models.items():
            result.posterior.to_getdist(
                folder / name,
                labels=labels,
                ranges={key: result.analysis.prior_range(key) for key in result.analysis.parameters},
            )
        contents = results_as_dict(models, provenance_of_run(self._run_file))
        self._save("results.json", _as_json(contents))
        self._save("models.txt", render(model_table(models)) + "\n")
        self._tell(
            f"results: {folder / 'results.json'}; table: {folder / 'models.txt'}; "
            f"posteriors: {folder}/*.qbs; GetDist chains: {folder}/*_1.txt"
        )
        figures = write_figures(models, folder, self._run_file.figures)
        self._tell("figures: " + ", ".join(str(path) for path in figures))
        return contents

    def _save(self, name: str, text: str) -> None:
        with replacing(self._folder / name) as path:
            path.write_text(text, encoding="utf-8")


def _as_json(contents: dict[str, Any]) -> str:
    return json.dumps(contents, indent=2) + "\n"


def _fit(
    run_file: RunFile,
    analysis: Analysis,
    name: str,
    fingerprint: str,
    checkpoint: Path,
    *,
    progress: bool | None,
) -> Posterior:
    posterior = fit(
        analysis.numpyro_model,
        name=name,
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
        "data": analysis.data,
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


def provenance_of_run(run_file: RunFile) -> dict[str, Any]:
    """Return what a reader needs to repeat the run."""
    return {
        "models": list(run_file.models),
        "data": list(run_file.data),
        "priors": dict(run_file.priors),
        "sound_horizon": run_file.sound_horizon,
        "method": {"name": type(run_file.method).__name__.lower(), **settings(run_file.method)},
        "tension": [[list(first), list(second)] for first, second in run_file.tension],
        "seed": run_file.seed,
        "versions": versions(),
    }
