"""What a run needs to go on where it was stopped, in a file.

A method keeps *sections*: named parts of its state, each of plain facts and arrays. Randomness comes from the
key and from counters in the state, so that a run that goes on draws what it would have drawn.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from qbs.errors import CheckpointError
from qbs.inference.results import archive

T = TypeVar("T")

_KIND = archive.Kind("qbs checkpoint", 1, "a checkpoint", CheckpointError)
_SHARE = 0.05  # of the time that may go into writing
_MAY_DIFFER = ("versions", "device")
LOG_PROBS = "log_probs"  # the entry of a run's identity with what the model gives at fixed draws
_EXPLAINS = {  # differences that follow from others
    "method": ("settings", "precision", "data_sha256", LOG_PROBS),
    "precision": ("data_sha256", LOG_PROBS),
    "data_sha256": (LOG_PROBS,),
}


@dataclass(frozen=True)
class Checkpoint:
    """Where to keep the state of a run, and how often.

    Attributes:
        path: The file. Where it exists, the run goes on from it.
        seconds: Least time between two writes, in seconds; it grows where writing takes long.
    """

    path: str | Path
    seconds: float = 30.0

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | Path):
            raise TypeError(f"checkpoint must be a path or a Checkpoint, not {type(self.path).__name__}")
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"Checkpoint: seconds must be a number from 0 up, not {self.seconds!r}")


class Saved(NamedTuple):
    """A section of a checkpoint.

    Attributes:
        facts: Plain values: numbers, text, lists of them.
        arrays: Arrays by name.
    """

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the arrays whose names have a prefix, by the rest of the name."""
        return {n.removeprefix(prefix): v for n, v in self.arrays.items() if n.startswith(prefix)}


def call_files(path: Path) -> tuple[Path, Path]:
    """Return the log of likelihood calls beside a checkpoint, and the text file of those that failed."""
    return path.with_name(f"{path.name}.calls"), path.with_name(f"{path.name}.failures")


def discard(path: str | Path) -> None:
    """Delete a checkpoint and what lies beside it, as far as it is there."""
    path = Path(path)
    for file in (path, *call_files(path)):
        file.unlink(missing_ok=True)


class Keeper:
    """Keeps the sections of a run in its file, and finds those of the run that was stopped.

    Args:
        checkpoint: The file; `None` keeps nothing.
        identity: What must be the same for a run to go on, as plain values.

    Raises:
        CheckpointError: If the file is something else, is damaged, or is of another run; it says what
            differs.
        OSError: If the folder does not exist, or cannot be written.
    """

    def __init__(
        self,
        checkpoint: str | Path | Checkpoint | None = None,
        identity: Mapping[str, Any] | None = None,
    ):
        if not isinstance(checkpoint, Checkpoint | None):
            checkpoint = Checkpoint(checkpoint)
        self._path = None if checkpoint is None else Path(checkpoint.path)
        self._seconds = 0.0 if checkpoint is None else checkpoint.seconds
        self._identity = dict(identity or {})
        self._sections: dict[str, Saved] = {}
        self._last, self._took = time.monotonic(), 0.0
        self._moved: str | None = None
        self._failure: str | None = None
        self._beside: list[Callable[[], list[str]]] = []
        if self._path is None:
            return
        if not self._path.parent.is_dir():
            raise FileNotFoundError(f"cannot keep {self._path}: there is no folder {self._path.parent}")
        if not os.access(self._path.parent, os.W_OK):
            raise PermissionError(f"cannot keep {self._path}: its folder cannot be written")
        if self._path.exists():
            self._read(self._path)

    def _read(self, path: Path) -> None:
        header, arrays = archive.read(path, _KIND)
        if found := self.compare(path, header["identity"]):
            self._moved = (
                f"The run was stopped and went on elsewhere ({'; '.join(found)}): the numbers are valid, and "
                "not those of a run in one go."
            )
        for name, facts in header["sections"].items():
            self._sections[name] = Saved(facts, Saved({}, arrays).group(f"{name}/"))

    def compare(self, path: Path, identity: Mapping[str, Any]) -> list[str]:
        """Return where the run of a file differs from this one, in what may differ.

        Raises:
            CheckpointError: If it differs in what may not.
        """
        found = dict(_differences(identity, self._identity))
        if blocking := [name for name in found if _root(name) not in _MAY_DIFFER]:
            raise CheckpointError(
                f"{path} is of another run: {_told({name: found[name] for name in blocking})}. Name another "
                "file, or delete this one to start anew"
            )
        return list(found.values())

    @property
    def path(self) -> Path | None:
        """The file, if there is one."""
        return self._path

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        return self._identity

    def attach(self, problems: Callable[[], list[str]]) -> None:
        """Let a file beside this one say what a reader of the result must know."""
        self._beside.append(problems)

    @property
    def problems(self) -> list[str]:
        """What a reader of the result must know."""
        own = [text for text in (self._moved, self._failure) if text is not None]
        return own + [text for beside in self._beside for text in beside()]

    @property
    def promise(self) -> str:
        """What to tell a user whose run was interrupted: a sentence after a space, or nothing."""
        if self._path is None or self._failure is not None or not self._path.exists():
            return ""
        return f" The same call goes on from {self._path}."

    @property
    def is_on(self) -> bool:
        """Whether anything is kept at all."""
        return self._path is not None

    @property
    def is_due(self) -> bool:
        """Whether it is time to write again; ask before work that only serves the file."""
        pause = max(self._seconds, self._took / _SHARE)
        return self._path is not None and time.monotonic() - self._last >= pause

    def found(self, section: str) -> Saved | None:
        """Return a section of the run that was stopped, if it had got there."""
        return self._sections.get(section)

    def keep(self, section: str, state: Callable[[], Saved], *, at_once: bool = False) -> None:
        """Write a section, and those kept before, if it is time.

        Args:
            section: Its name, without a slash.
            state: Makes what to write; called when it is written.
            at_once: Write in any case, as at an interrupt or at the end.
        """
        if self._path is None or not (at_once or self.is_due):
            return
        start = time.monotonic()
        self._sections[section] = state()
        try:
            self._write(self._path)
        except OSError as error:
            # The run is worth more than its checkpoint.
            if self._failure is None:
                print(
                    f"qbs: the checkpoint {self._path} could not be written ({error}); the run goes on, and "
                    "tries again",
                    file=sys.stderr,
                )
            self._failure = f"The checkpoint {self._path} could not be written: {error}."
        else:
            self._failure = None
        self._last = time.monotonic()
        self._took = self._last - start

    def _write(self, path: Path) -> None:
        header = {
            "identity": self._identity,
            "sections": {name: saved.facts for name, saved in self._sections.items()},
        }
        arrays = {f"{n}/{key}": v for n, saved in self._sections.items() for key, v in saved.arrays.items()}
        archive.write(path, _KIND, header, arrays, is_compressed=False)


def pack(tree: Any, prefix: str = "state") -> dict[str, np.ndarray]:
    """Return the leaves of a tree of arrays by name, keys as their words."""
    return {f"{prefix}/{index}": _as_numpy(leaf) for index, leaf in enumerate(jax.tree.leaves(tree))}


def unpack(arrays: Mapping[str, np.ndarray], like: T, prefix: str = "state") -> T:
    """Return the tree of arrays that `pack` took apart.

    Args:
        arrays: What `pack` returned, among other arrays.
        like: A tree of the same structure, shapes and types.
        prefix: As given to `pack`.

    Raises:
        CheckpointError: If the leaves are not those of such a tree.
    """
    leaves, structure = jax.tree.flatten(like)
    found = [arrays.get(f"{prefix}/{index}") for index in range(len(leaves))]
    for words, leaf in zip(found, leaves, strict=True):
        wanted = _as_numpy(leaf)
        if words is None or words.shape != wanted.shape or words.dtype != wanted.dtype:
            raise CheckpointError(
                "the checkpoint does not hold the state of this run: it was written by another version of qbs"
            )
    return jax.tree.unflatten(structure, [_as_jax(w, leaf) for w, leaf in zip(found, leaves, strict=True)])


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _as_jax(words: Any, like: Any) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(words), impl=jax.random.key_impl(like))
    return jnp.asarray(words) if isinstance(like, jax.Array) else words


def _differences(old: Any, new: Any, name: str = "") -> list[tuple[str, str]]:
    """Return where two trees of plain values differ: the place, and a few words."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(f"{name}.{key}".lstrip("."), old.get(key), new.get(key)) for key in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(f"{name}[{index}]", *pair) for index, pair in enumerate(zip(old, new, strict=True))]
    elif old == new or (name.startswith(LOG_PROBS) and _is_close(old, new)):
        return []
    else:
        return [(name, f"{name} was {old!r} and is {new!r}")]
    return [found for place, before, after in pairs for found in _differences(before, after, place)]


def _root(name: str) -> str:
    return name.split(".")[0].split("[")[0]


def _told(differences: dict[str, str]) -> str:
    """Say where two runs differ, without what only follows from what is said."""
    explained = {root for name in differences for root in _EXPLAINS.get(_root(name), ())}
    said = []
    for name, text in differences.items():
        if (root := _root(name)) == LOG_PROBS:
            text = f"the model differs at {name.removeprefix(f'{LOG_PROBS}.').split('[')[0]}"
        if root not in explained:
            said.append("the data differ" if root == "data_sha256" else text)
    return "; ".join(dict.fromkeys(said))


def _is_close(old: Any, new: Any) -> bool:
    """Whether two log probabilities are the same but for the order of sums."""
    if not (isinstance(old, float) and isinstance(new, float)):
        return False  # a site that is new, or gone
    return bool(np.isclose(old, new, rtol=1e-4, atol=1e-4, equal_nan=True))
