"""Likelihoods for tests of worker processes, which import what they call."""

import math
import os
import signal
import time
from pathlib import Path


def gaussian(p):
    """A normal density of sd 0.1 in x, without its constant; a few milliseconds."""
    time.sleep(0.002)
    return -0.5 * ((float(p["x"]) - 0.5) / 0.1) ** 2


def in_jax(p):
    """Return the digits that JAX computes with, where the function loads it."""
    import jax.numpy

    return float(jax.numpy.finfo(jax.numpy.asarray(0.0).dtype).bits) + 0.0 * float(p["x"])


def careless(p, data):
    """The same, whatever the data."""
    return gaussian(p)


def counting(p, folder):
    """The same in two dimensions, and a line for each call, in a file of the process."""
    time.sleep(0.005)
    with (Path(folder) / f"{os.getpid()}.txt").open("a") as file:
        file.write(f"{float(p['x'])!r} {float(p['y'])!r}\n")
    return -0.5 * ((float(p["x"]) - 0.5) ** 2 + (float(p["y"]) - 0.5) ** 2) / 0.1**2


def _hang(p):
    time.sleep(1000)


def _raise(p):
    raise RuntimeError("the solver diverged")


def _die(p):
    os.kill(os.getpid(), signal.SIGKILL)


def _leave(p):
    os._exit(3)


def _end(p):
    raise SystemExit("done")


WAYS = {
    "hang": _hang,
    "raise": _raise,
    "nan": lambda p: math.nan,
    "inf": lambda p: math.inf,
    "none": lambda p: None,
    "shape": lambda p: [0.0, 1.0],
    "text": lambda p: "1.5",
    "type": lambda p: {"value": 1.0},
    "die": _die,
    "leave": _leave,
    "end": _end,
}


def bad(p, way, where):
    """The Gaussian, and something bad above a value of x."""
    return WAYS[way](p) if float(p["x"]) > where else gaussian(p)


def once(p, folder):
    """Kill the worker at the first call of a point below 0, and answer the second."""
    mark = Path(folder) / f"{float(p['x'])!r}"
    if float(p["x"]) < 0 and not mark.exists():
        mark.touch()
        _die(p)
    return float(p["x"])


def meet(p, folder, num_processes):
    """Wait until calls are under way in so many processes, at most a minute; return which process it is."""
    (Path(folder) / str(os.getpid())).touch()
    end = time.monotonic() + 60
    while len(list(Path(folder).iterdir())) < num_processes and time.monotonic() < end:
        time.sleep(0.01)
    return os.getpid()
