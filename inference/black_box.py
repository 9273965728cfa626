"""A likelihood in plain Python: what one call of it gives, and how a call can fail.

Worker processes import this module, so it loads neither JAX nor a method.
"""

import contextlib
import enum
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qbs.errors import LikelihoodError

_LONGEST = 500  # characters of a reason


class Status(enum.IntEnum):
    """How a call ended; all but `OK` are failures and count as a log likelihood of `-inf`."""

    OK = 0
    RAISED = 1
    NAN = 2
    INFINITE = 3
    NOT_A_NUMBER = 4
    TIMED_OUT = 5
    DIED = 6

    @property
    def words(self) -> str:
        """What a sentence calls such calls."""
        return _WORDS[self]


_WORDS = {
    Status.OK: "gave a number",
    Status.RAISED: "raised",
    Status.NAN: "returned NaN",
    Status.INFINITE: "returned +inf",
    Status.NOT_A_NUMBER: "did not return one number",
    Status.TIMED_OUT: "took too long",
    Status.DIED: "ended their worker",
}


class Outcome(NamedTuple):
    """What came of a call.

    Attributes:
        value: The log likelihood in nats; `-inf` where the call failed.
        status: A `Status`, as a whole number.
        reason: What failed, a phrase whose subject is the likelihood; empty where nothing did.
        seconds: How long the call took.
    """

    value: float
    status: int
    reason: str
    seconds: float

    @property
    def is_failure(self) -> bool:
        """Whether the call failed."""
        return self.status != Status.OK


def failed(status: Status, reason: str, seconds: float) -> Outcome:
    """Return the outcome of a call that failed."""
    if len(reason) > _LONGEST:
        reason = f"{reason[:_LONGEST]}..."
    return Outcome(-math.inf, int(status), reason, seconds)


@dataclass(frozen=True, eq=False)
class BlackBox:
    """A log likelihood with its data, called on one dictionary of NumPy values at a time.

    Attributes:
        function: Called as `function(parameters, *data)`.
        data: The data.
        name: What messages call it.
        is_float64: Whether JAX, where the function uses it, computes in float64; `None` leaves it as it is.
    """

    function: Callable[..., Any]
    data: tuple
    name: str
    is_float64: bool | None = None

    def __call__(self, parameters: Mapping[str, Any]) -> float:
        """Return the log likelihood, NaN and infinities as they are.

        Raises:
            LikelihoodError: If the function raises, or does not return one number.
        """
        outcome, cause = self._attempt(parameters)
        if outcome.status in (Status.RAISED, Status.NOT_A_NUMBER):
            raise LikelihoodError(
                f"log_likelihood of {self.name!r} {outcome.reason}; the parameters were "
                f"{describe(parameters)}"
            ) from cause
        return {Status.NAN: math.nan, Status.INFINITE: math.inf}.get(Status(outcome.status), outcome.value)

    def attempt(self, parameters: Mapping[str, Any]) -> Outcome:
        """Call the function, and return what came of it; only an interrupt goes through."""
        return self._attempt(parameters)[0]

    def _attempt(self, parameters: Mapping[str, Any]) -> tuple[Outcome, BaseException | None]:
        start = time.perf_counter()
        try:
            result = self._result(parameters)
        except (Exception, SystemExit) as error:
            return failed(Status.RAISED, f"raised {_told(error)}", time.perf_counter() - start), error
        return _judged(result, time.perf_counter() - start), None

    def _result(self, parameters: Mapping[str, Any]) -> Any:
        """Call the function in the precision of the run, which threads and processes do not inherit."""
        jax = sys.modules.get("jax")
        is_set = jax is None or self.is_float64 in (None, jax.config.jax_enable_x64)
        with contextlib.nullcontext() if is_set else jax.enable_x64(self.is_float64):  # type: ignore[union-attr]
            result = self.function(dict(parameters), *self.data)
        if jax is None and self.is_float64 and "jax" in sys.modules:
            return self._result(parameters)  # it was this call that loaded JAX, and had its default
        return result


def _judged(result: Any, seconds: float) -> Outcome:
    """Return the outcome of a call that returned something."""
    if isinstance(result, float) and -math.inf <= result < math.inf:
        return Outcome(float(result), int(Status.OK), "", seconds)

    def wrong(reason: str) -> Outcome:
        return failed(Status.NOT_A_NUMBER, reason, seconds)

    if result is None:
        return wrong("returned None: its return is missing")
    try:
        array = np.asarray(result, dtype=np.float64)
    except Exception as error:
        kind = type(result).__name__
        return wrong(f"returned a {kind}, and to make one number of it raised {_told(error)}")
    if isinstance(result, str | bytes):
        return wrong(f"returned text, {result!r}, which is not a number")
    if array.shape != ():
        return wrong(not_scalar(array.shape))
    value = float(array)
    if math.isnan(value):
        return failed(Status.NAN, "returned nan", seconds)
    if value == math.inf:
        return failed(Status.INFINITE, "returned inf", seconds)
    return Outcome(value, int(Status.OK), "", seconds)


def not_scalar(shape: tuple[int, ...]) -> str:
    """Say that a log likelihood is an array."""
    return f"must return one number; it returned an array of shape {shape}: sum over the data"


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # an exception whose message cannot be made
        return type(error).__name__


def describe(parameters: Mapping[str, Any]) -> str:
    """Return parameter values as a short text for messages."""
    parts = []
    for name, value in parameters.items():
        array = np.asarray(value)
        text = f"{array:.6g}" if array.ndim == 0 else np.array2string(array, precision=4, threshold=6)
        parts.append(f"{name} = {text}")
    return ", ".join(parts)
