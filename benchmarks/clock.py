"""What benchmarks time: CPU time, or elapsed time where another device does the work."""

import time

import jax


def now() -> float:
    """Return CPU seconds of this process, or on an accelerator seconds elapsed."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def kind() -> str:
    """Return what `now` counts."""
    return "CPU" if jax.default_backend() == "cpu" else "elapsed"
