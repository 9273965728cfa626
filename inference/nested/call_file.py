"""The files of a log of likelihood calls: records of one size, only ever appended, and failures as text.

`NAME.calls` has a header, which says what run it is of, and a record for each call. `NAME.failures` has a
line of JSON for each call that failed. A record or a line that a killed process has left unfinished is cut
off when the run goes on; a damaged one is left out.
"""

import contextlib
import json
import math
import os
import struct
import time
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qbs.errors import CheckpointError
from qbs.inference.black_box import Outcome, Status
from qbs.inference.results.atomic import replacing

_MAGIC = b"QBSCALLS"
_VERSION = 1
_SYNC = 1.0  # least seconds between two orders to the disk
_LOST = "failed, and the reason is not on record"


class Layout(NamedTuple):
    """What a record holds.

    Attributes:
        dim: Dimension of the unit cube.
        sites: Names of the parameters and their shapes; the columns of a record, in order.
    """

    dim: int
    sites: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def num_columns(self) -> int:
        """How many numbers the parameters are."""
        return sum(math.prod(shape) for _, shape in self.sites)

    @property
    def record(self) -> np.dtype:
        """The record, whose checksum is its last word and covers all before."""
        return np.dtype(
            [
                ("point", "<f8", (self.dim,)),
                ("parameters", "<f8", (self.num_columns,)),
                ("log_likelihood", "<f8"),
                ("seconds", "<f8"),
                ("status", "<u4"),
                ("checksum", "<u4"),
            ]
        )

    def pack(self, point: np.ndarray, parameters: Mapping[str, Any], outcome: Outcome) -> bytes:
        """Return the record of a call."""
        found = np.zeros((), self.record)
        found["point"] = point
        columns = [np.ravel(np.asarray(parameters[name], dtype=np.float64)) for name, _ in self.sites]
        found["parameters"] = np.concatenate(columns) if columns else []
        found["log_likelihood"], found["seconds"] = outcome.value, outcome.seconds
        found["status"] = outcome.status
        data = found.tobytes()[:-4]
        return data + struct.pack("<I", zlib.crc32(data))


class Found(NamedTuple):
    """What a log holds.

    Attributes:
        identity: Of the run.
        layout: Of the records.
        records: All records, damaged ones included.
        is_whole: For each record whether its checksum is right.
        size: Bytes of the file up to the end of the last whole record.
    """

    identity: dict[str, Any]
    layout: Layout
    records: np.ndarray
    is_whole: np.ndarray
    size: int


def create(path: Path, identity: Mapping[str, Any], layout: Layout) -> None:
    """Write a log without calls.

    Raises:
        OSError: If it cannot be written.
    """
    said = {"dim": layout.dim, "sites": layout.sites, "identity": identity}
    text = json.dumps(said, default=lambda value: value.item()).encode()
    data = _MAGIC + struct.pack("<II", _VERSION, len(text)) + text
    with replacing(path) as temporary:
        temporary.write_bytes(data + struct.pack("<I", zlib.crc32(data)))


def read(path: Path) -> Found:
    """Read a log; nothing is written.

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If the file is something else, its header is damaged, or it is of a newer version.
    """
    data = path.read_bytes()
    start = len(_MAGIC) + 8
    if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
        raise CheckpointError(f"{path} is not a log of likelihood calls")
    version, length = struct.unpack_from("<II", data, len(_MAGIC))
    if version > _VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this qbs reads up to {_VERSION}: update qbs to open it"
        )
    end = start + length + 4
    try:
        if struct.unpack_from("<I", data, end - 4)[0] != zlib.crc32(data[: end - 4]):
            raise ValueError("the checksum does not match")
        said = json.loads(data[start : end - 4])
        layout = Layout(said["dim"], tuple((name, tuple(shape)) for name, shape in said["sites"]))
        identity = dict(said["identity"])
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged: its header cannot be read ({error})") from None
    size = layout.record.itemsize
    records = np.frombuffer(data, layout.record, (len(data) - end) // size, end)
    is_whole = np.array(
        [
            zlib.crc32(data[at : at + size - 4]) == checksum
            for at, checksum in zip(range(end, len(data), size), records["checksum"], strict=False)
        ],
        dtype=bool,
    )
    num_kept = int(np.max(np.flatnonzero(is_whole), initial=-1)) + 1
    return Found(identity, layout, records[:num_kept], is_whole[:num_kept], end + num_kept * size)


def outcomes(found: Found, failures: Mapping[int, str]) -> list[Outcome]:
    """Return what came of the calls of a log."""
    columns = (found.records[name].tolist() for name in ("log_likelihood", "status", "seconds"))
    return [
        Outcome(value, status, "" if status == Status.OK else failures.get(number, _LOST), seconds)
        for number, (value, status, seconds) in enumerate(zip(*columns, strict=True))
    ]


def failure_line(number: int, parameters: Mapping[str, Any], outcome: Outcome) -> bytes:
    """Return the line for a call that failed; `number` is that of its record."""
    said = {
        "call": number,
        "status": Status(outcome.status).name,
        "reason": outcome.reason,
        "parameters": {name: np.asarray(value).tolist() for name, value in parameters.items()},
    }
    return f"{json.dumps(said)}\n".encode()


def read_failures(path: Path) -> tuple[dict[int, str], int]:
    """Return the reasons by number of the record, and the bytes of the file up to the last whole line."""
    if not path.exists():
        return {}, 0
    data = path.read_bytes()
    size = data.rfind(b"\n") + 1
    reasons = {}
    for line in data[:size].splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged line
            said = json.loads(line)
            reasons[int(said["call"])] = str(said["reason"])
    return reasons, size


class Appender:
    """Adds to the end of a file, and keeps what the disk does not take until it does.

    The file is at any time the beginning of what was appended, so that nothing is lost but with the process.

    Args:
        path: The file; it is made where it is missing.
        size: Cut it to so many bytes first.

    Raises:
        OSError: If it cannot be opened.
    """

    def __init__(self, path: Path, size: int | None = None):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags, 0o666)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._waiting = bytearray()
        self._synced = time.monotonic()
        if size is not None and os.fstat(self._descriptor).st_size > size:
            os.ftruncate(self._descriptor, size)

    def append(self, data: bytes) -> None:
        """Hand data to the operating system, and now and then to the disk.

        Raises:
            OSError: If it does not take all; the rest goes before the next.
        """
        self._waiting += data
        self.flush()
        if time.monotonic() - self._synced >= _SYNC:
            self.sync()

    def flush(self) -> None:
        """Hand over what waits."""
        while self._waiting:
            written = _write(self._descriptor, self._waiting)
            del self._waiting[:written]

    def sync(self) -> None:
        """Have the disk take what the operating system holds."""
        self.flush()
        os.fsync(self._descriptor)
        self._synced = time.monotonic()


def _write(descriptor: int, data: bytearray) -> int:
    return os.write(descriptor, data)
