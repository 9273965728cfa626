"""What went wrong in the calls of a likelihood: counted, told, and too much of it an error."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from qbs.errors import LikelihoodError
from qbs.inference.black_box import Outcome, Status, describe

_LEAST_CALLS = 20  # before a share of failures says anything
_NUM_TOLD = 3


class Failures:
    """Counts the calls of a run and those that failed, and remembers the first.

    Args:
        name: What messages call the likelihood.
        max_failures: The share of calls that may fail.
    """

    def __init__(self, name: str, max_failures: float | int):
        self._name, self._max_failures = name, max_failures
        self._kinds: Counter[Status] = Counter()
        self._first: list[tuple[int, str]] = []
        self.num_calls = 0

    @property
    def num_failed(self) -> int:
        """How many calls failed."""
        return self._kinds.total()

    def note(self, number: int, parameters: Mapping[str, Any] | None, outcome: Outcome) -> None:
        """Count a call.

        Args:
            number: Its number in the order of the run, by which the first failures are found: they do not
                depend on the order in which calls come back.
            parameters: What it was called with; not needed where it did not fail.
            outcome: What came of it.
        """
        self.num_calls += 1
        if not outcome.is_failure:
            return
        self._kinds[Status(outcome.status)] += 1
        if len(self._first) == _NUM_TOLD and number > self._first[-1][0]:
            return
        told = f"it {outcome.reason}; the parameters were {describe(parameters or {})}"
        self._first = sorted([*self._first, (number, told)])[:_NUM_TOLD]

    def check(self) -> None:
        """Raise `LikelihoodError` where too large a share of the calls failed."""
        if self.num_calls < _LEAST_CALLS or self.num_failed <= self._max_failures * self.num_calls:
            return
        told = " | ".join(text for _, text in self._first)
        raise LikelihoodError(
            f"log_likelihood of {self._name!r} failed at {self.num_failed:,} of {self.num_calls:,} calls, "
            f"more than max_failures = {self._max_failures:.0%}. The first: {told}. Mend the likelihood, "
            "have it return -inf where parameters are impossible, or allow more: "
            "executor=qbs.Calls(max_failures=...)"
        )

    @property
    def problems(self) -> list[str]:
        """What a reader of the result must know."""
        if not self.num_failed:
            return []
        kinds = ", ".join(f"{count:,} {kind.words}" for kind, count in sorted(self._kinds.items()))
        return [
            f"{self.num_failed:,} of {self.num_calls:,} likelihood calls failed "
            f"({self.num_failed / self.num_calls:.1%}: {kinds}). Each counts as impossible, -inf, in the "
            f"posterior and in the evidence. The first: {self._first[0][1]}."
        ]
