"""What runs in a worker process: it loads a likelihood once, and calls it on what it is sent.

Worker processes import this module, so it loads neither JAX nor a method.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections import OrderedDict
from collections.abc import Mapping
from multiprocessing import connection
from typing import Any, NamedTuple

from qbs.inference.black_box import BlackBox, Outcome

READY = "ready"
_NUM_LOADED = 4  # likelihoods that a process of somebody else's executor keeps


class Refused(NamedTuple):
    """What a worker sends when it cannot load its likelihood.

    Attributes:
        reason: The error, in words.
    """

    reason: str


class Shipped(NamedTuple):
    """A pickled likelihood that a worker loads once.

    Attributes:
        payload: The pickle.
        digest: Its SHA-256, by which a worker knows it again.
    """

    payload: bytes
    digest: str


def serve(link: connection.Connection, payload: bytes) -> None:
    """Load a likelihood, say so, and answer parameters with outcomes until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    _end_with_parent()
    try:
        likelihood = pickle.loads(payload)
    except BaseException as error:
        link.send(Refused(f"{type(error).__name__}: {error}"))
        return
    link.send(READY)
    with contextlib.suppress(EOFError, OSError):  # nobody asks any more
        while True:
            link.send(likelihood.attempt(link.recv()))


def _end_with_parent() -> None:
    """End this process when its parent is killed, also in the middle of a call."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_loaded: OrderedDict[str, BlackBox] = OrderedDict()


def load(likelihood: BlackBox | Shipped) -> BlackBox:
    """Return a likelihood, unpickled the first time that this process meets it."""
    if isinstance(likelihood, BlackBox):
        return likelihood
    found = _loaded.get(likelihood.digest)
    if found is None:
        found = _loaded[likelihood.digest] = pickle.loads(likelihood.payload)
        while len(_loaded) > _NUM_LOADED:
            _loaded.popitem(last=False)
    return found


def answer(
    likelihood: BlackBox | Shipped, parameters: Mapping[str, Any] | None, _serial: int
) -> Outcome | str:
    """Call a likelihood in a worker of somebody else's executor; without parameters only load it."""
    loaded = load(likelihood)
    return READY if parameters is None else loaded.attempt(parameters)
