"""Tests of many means at once, with one stated error for all of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, repr=False)
class MeanTest:
    """One mean and what it should be.

    Attributes:
        name: What the mean is of.
        estimate: The mean of the sample.
        standard_error: Its standard error, rounding of the computation included.
        truth: What it should be.
        z: The difference in standard errors.
        p_value: Two-sided, from Student's t distribution.
        ok: Whether the p-value is above the error of the family over the number of tests.
    """

    name: str
    estimate: float
    standard_error: float
    truth: float
    z: float
    p_value: float
    ok: bool

    def __repr__(self) -> str:
        return (
            f"{'  ' if self.ok else '! '}{self.name}: {self.estimate:.5g} +- {self.standard_error:.2g}, "
            f"truth {self.truth:.5g} (z = {self.z:+.2f}, p = {self.p_value:.2g})"
        )


@dataclass(frozen=True, repr=False)
class MeansReport:
    """Means over independent runs against their truths.

    Attributes:
        claim: What holds if all passed, `{}` standing for the word "NOT" that may have to be added.
        tests: One for each mean, by ascending p-value.
        num_runs: How many runs they come from.
        effective_runs: How many equally weighted ones these are worth; with few, the tests are rough.
        family_error: The probability that any test fails where all is right.
        ok: Whether all passed.
    """

    claim: str
    tests: tuple[MeanTest, ...]
    num_runs: int
    effective_runs: float
    family_error: float
    ok: bool

    def __repr__(self) -> str:
        head = (
            f"{self.claim.format('' if self.ok else 'NOT ')}: {sum(test.ok for test in self.tests)} of "
            f"{len(self.tests)} means agree over {self.num_runs} runs worth {self.effective_runs:.0f} "
            f"(family-wise error {self.family_error:g})"
        )
        return "\n".join([head, *map(repr, self.tests[:8])])


def compare_means(
    claim: str,
    samples: Mapping[str, np.ndarray],
    truths: Mapping[str, float],
    weights: np.ndarray,
    family_error: float,
    rounding: float,
) -> MeansReport:
    """Test the mean of each sample of independent numbers against its truth, by Bonferroni's rule.

    `weights` are already in the samples, and `rounding` is the relative error of their computation.
    """
    if not samples or len(weights) < 2 or not 0 < family_error < 1:
        raise ValueError(
            f"{len(samples)} tests of {len(weights)} runs with family_error={family_error!r}: wanted are a "
            "test, two runs, and an error between 0 and 1"
        )
    tests = []
    for name, sample in samples.items():
        truth, count = float(truths[name]), len(sample)
        with np.errstate(all="ignore"):  # what is not finite fails
            estimate = float(sample.mean())
            floor = rounding * (np.abs(sample).mean() + abs(truth))
            error = float(np.hypot(sample.std(ddof=1) / np.sqrt(count), floor))
            z = 0.0 if estimate == truth else float(np.divide(estimate - truth, error))
        p_value = 2 * float(stats.t.sf(abs(z), count - 1))
        is_ok = p_value > family_error / len(samples)
        tests.append(MeanTest(name, estimate, error, truth, z, p_value, is_ok))
    tests.sort(key=lambda test: (test.ok, test.p_value))
    effective = float(weights.sum() ** 2 / max((weights**2).sum(), np.finfo(float).tiny))
    is_ok = all(test.ok for test in tests)
    return MeansReport(claim, tuple(tests), len(weights), effective, family_error, is_ok)
