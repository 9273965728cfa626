"""Run files: what `qbs cosmology` reads, checked to the last value before anything is computed."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from qbs.errors import MissingExtraError, RunFileError
from qbs.inference.method import Method
from qbs.inference.nested import Dynesty
from qbs.models.cosmology.analysis import resolve_prior
from qbs.models.cosmology.likelihoods import DATA_SETS
from qbs.models.cosmology.methods import METHODS
from qbs.models.cosmology.parameters import MODELS, PARAMETERS
from qbs.models.cosmology.run_file_examples import EXAMPLE as EXAMPLE
from qbs.models.cosmology.shared_data import overlaps

SOUND_HORIZONS = ("formula", "free")
FIGURE_FORMATS = ("png", "pdf", "svg")

Side = tuple[str, ...]
"""Data sets that are fitted together."""


@dataclass(frozen=True)
class RunFile:
    """The contents of a run file; see `EXAMPLE` for the meaning of each key.

    `tension` has a pair of sides for each comparison, and a side is a tuple of data sets.
    """

    models: tuple[str, ...]
    data: tuple[str, ...]
    data_path: Path | None = None
    priors: Mapping[str, Any] = field(default_factory=dict)
    sound_horizon: str = "formula"
    method: Method = field(default_factory=Dynesty)
    seed: int = 0
    figures: tuple[str, ...] = ("png", "pdf")
    output: Path = Path("runs/cosmology")
    tension: tuple[tuple[Side, Side], ...] = ()
    allow_overlap: bool = False


def read_run_file(path: Path) -> RunFile:
    """Read and check a run file.

    Raises:
        RunFileError: If the file is missing, is not YAML, or a key or value is not accepted; one
            sentence with the line and the accepted values.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunFileError(
            f"no run file {path}; `qbs cosmology --example > {path}` writes one to start from"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunFileError(f"cannot read the run file {path}: {error}") from error
    return parse_run_file(text, str(path))


def parse_run_file(text: str, source: str = "run file") -> RunFile:
    """Check the text of a run file; see `read_run_file`."""
    return _Reader(source, _load_yaml(text, source)).read()


def _load_yaml(text: str, source: str) -> Any:
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError
    except ImportError as error:
        raise MissingExtraError("run files need ruamel.yaml: pip install 'qbs-jax[cosmology]'") from error
    try:
        return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        problem = str(error.problem or error.context or "syntax error").splitlines()[0]
        raise RunFileError(f"{source}{line}: not valid YAML: {problem}") from None
    except YAMLError as error:
        raise RunFileError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None


class _Reader:
    """Turns the YAML tree into a `RunFile`, knowing the line of every value."""

    def __init__(self, source: str, tree: Any):
        if not isinstance(tree, dict):
            raise RunFileError(
                f"{source}: a run file is a list of `key: value` lines, starting with `models:`"
            )
        self._source, self._tree = source, tree

    def read(self) -> RunFile:
        readers: dict[str, Callable[[str], Any]] = {
            "models": lambda key: self._names(key, MODELS, "model"),
            "data": lambda key: self._names(key, DATA_SETS, "data set"),
            "allow_overlap": self._flag,
            "data_path": self._folder,
            "priors": self._priors,
            "sound_horizon": lambda key: self._choice(key, SOUND_HORIZONS),
            "method": self._method,
            "tension": self._tension,
            "seed": self._seed,
            "figures": lambda key: self._names(key, FIGURE_FORMATS, "figure format"),
            "output": lambda key: Path(self._text(key)).expanduser(),
        }
        for key in self._tree:
            if key not in readers:
                self._fail(key, f"unknown key {key!r}; {_accepted(key, readers)}")
        for key in ("models", "data"):
            if key not in self._tree:
                raise RunFileError(f"{self._source}: the key `{key}` is missing")
        run_file = RunFile(**{key: readers[key](key) for key in self._tree})
        if not run_file.allow_overlap:
            self._refuse_overlaps("data", run_file.data)
            for first, second in run_file.tension:
                self._refuse_overlaps("tension", (*first, *second))
        return run_file

    def _refuse_overlaps(self, key: str, data: Iterable[str]) -> None:
        if found := overlaps(data):
            self._fail(
                key,
                f"{' '.join(map(str, found))} Together they would count observations twice; leave one out, "
                "or say `allow_overlap: true`",
            )

    def _fail(self, key: Any, message: str, tree: Any = None) -> NoReturn:
        where: Any = self._tree if tree is None else tree
        line = where.lc.key(key)[0] + 1
        raise RunFileError(f"{self._source} line {line}: {message}")

    def _names(self, key: str, accepted: Iterable[str], kind: str) -> tuple[str, ...]:
        value = self._tree[key]
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names:
            self._fail(key, f"`{key}` must be a list of names; accepted: {', '.join(accepted)}")
        return self._known(key, names, accepted, kind)

    def _known(
        self, key: str, names: list[Any], accepted: Iterable[str], kind: str, where: str = ""
    ) -> tuple[str, ...]:
        for name in names:
            if name not in accepted:
                self._fail(key, f"unknown {kind} {name!r}; {_accepted(name, accepted)}")
        if len(set(names)) < len(names):
            self._fail(key, f"`{key}` names one {kind} twice{where}")
        return tuple(str(name) for name in names)

    def _choice(self, key: str, accepted: Iterable[str]) -> str:
        value = self._tree[key]
        if value not in accepted:
            self._fail(key, f"`{key}` is {value!r}; accepted: {', '.join(accepted)}")
        return str(value)

    def _text(self, key: str) -> str:
        value = self._tree[key]
        if not isinstance(value, str) or not value:
            self._fail(key, f"`{key}` must be the path of a folder, not {value!r}")
        return value

    def _flag(self, key: str) -> bool:
        value = self._tree[key]
        if not isinstance(value, bool):
            self._fail(key, f"`{key}` must be true or false, not {value!r}")
        return value

    def _tension(self, key: str) -> tuple[tuple[Side, Side], ...]:
        pairs = self._tree[key] or []
        if not isinstance(pairs, list) or not all(
            isinstance(pair, list) and len(pair) == 2 for pair in pairs
        ):
            self._fail(
                key,
                f"`{key}` must be a list of pairs, such as [[desi_dr2, cc]]; a side of a pair is a data set "
                "or a list of them",
            )
        read = tuple((self._side(key, first), self._side(key, second)) for first, second in pairs)
        for first, second in read:
            if common := [name for name in first if name in second]:
                self._fail(key, f"`{key}`: {', '.join(common)} stands on both sides of a pair")
        if len(set(read)) < len(read):
            self._fail(key, f"`{key}` names one pair twice")
        return read

    def _side(self, key: str, side: Any) -> Side:
        names = [side] if isinstance(side, str) else side
        if not isinstance(names, list) or not names:
            self._fail(key, f"`{key}`: a side of a pair must be a data set or a list of them, not {side!r}")
        return self._known(key, names, DATA_SETS, "data set", " on a side")

    def _folder(self, key: str) -> Path | None:
        if self._tree[key] is None:
            return None
        folder = Path(self._text(key)).expanduser()
        if not folder.is_dir():
            self._fail(key, f"`{key}`: there is no folder {folder}")
        return folder

    def _seed(self, key: str) -> int:
        value = self._tree[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            self._fail(key, f"`{key}` must be a whole number from 0 up, not {value!r}")
        return int(value)

    def _priors(self, key: str) -> dict[str, Any]:
        value = self._tree[key]
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._fail(key, f"`{key}` must be a list of `parameter: prior`, such as Om: [0.1, 0.5]")
        return {name: self._prior(value, name) for name in value}

    def _prior(self, tree: Any, name: str) -> Any:
        if name not in PARAMETERS:
            self._fail(name, f"unknown parameter {name!r}; {_accepted(name, PARAMETERS)}", tree)
        prior = _plain(tree[name])
        try:
            resolve_prior(name, prior)
        except ValueError as error:
            self._fail(name, str(error), tree)
        return prior

    def _method(self, key: str) -> Method:
        value = self._tree[key]
        tree = {"name": value} if isinstance(value, str) else value
        if not isinstance(tree, dict) or "name" not in tree:
            self._fail(key, f"`{key}` needs a name; accepted: {', '.join(METHODS)}")
        if tree["name"] not in METHODS:
            self._fail(key, f"unknown method {tree['name']!r}; {_accepted(tree['name'], METHODS)}")
        method = METHODS[tree["name"]]
        settings = {name: _plain(setting) for name, setting in tree.items() if name != "name"}
        accepted = [setting.name for setting in fields(method)]
        for name, setting in settings.items():
            if name not in accepted:
                message = f"{tree['name']} has no setting {name!r}; {_accepted(name, accepted)}"
                self._fail(name, message, tree)
            if isinstance(setting, dict):
                self._fail(
                    name, f"the setting {name} of {tree['name']} cannot be {setting!r} in a run file", tree
                )
            if isinstance(setting, list):
                settings[name] = tuple(setting)
        try:
            return method(**settings)
        except (ValueError, TypeError) as error:
            self._fail(
                key, f"{str(error).splitlines()[0]}; settings of {tree['name']}: {', '.join(accepted)}"
            )


def _plain(value: Any) -> Any:
    """Return what YAML read as plain dictionaries, lists, numbers and strings."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _accepted(name: Any, accepted: Iterable[str]) -> str:
    names = list(accepted)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"accepted: {', '.join(names)}{hint}"
