"""Evidence by a surrogate's own integral and calls of the truth that correct it, without bias.

In a round, a surrogate s is fixed, and points are drawn from a proposal q near exp(s). Then

    Z = Z_s + E_q[(exp(l) - exp(s)) / q]

whatever the surrogate: it is a control variate of the true log likelihood l, and its own integral Z_s costs
no call. Draws weigh exp(l) / q. The weights are bounded, as q has shares of exp(s) / Z_s and of the prior.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from qbs.inference.nested.estimate import Estimate
from qbs.inference.nested.known import Evaluate, Known
from qbs.inference.nested.proposals import FreeProposal, WeightedPoints, in_cube, normalized, refined
from qbs.inference.nested.surrogate import DOUBT, FittedSurrogate
from qbs.inference.results.diagnostics import kish_ess

_SURROGATE_SHARE = 0.5
_DOUBT_SHARE = 0.3
_DRAWS, _ROUNDS = 8000, 2  # to find a free proposal
_NUM_KEPT = 4000  # free draws of a round, to judge the rounds before by
_LARGEST = 300.0  # of exponents
_LOG_DOUBT = math.log(DOUBT)


class Proposal(NamedTuple):
    """What points of a round are drawn from.

    A share follows the surrogate, one its doubt, which is how far the likelihood may be from it, and the rest
    is free of both.

    Attributes:
        surrogate: A log likelihood on the cube.
        free: Near the surrogate's posterior, with heavier tails.
        log_evidence: Of the surrogate.
        log_doubt: Log integral of the doubt.
    """

    surrogate: FittedSurrogate
    free: FreeProposal
    log_evidence: float
    log_doubt: float

    def terms(
        self, points: Float[np.ndarray, "num_points dim"]
    ) -> tuple[Float[np.ndarray, " num_points"], Float[np.ndarray, " num_points"]]:
        """Return the surrogate at points, `-inf` outside of the cube, and the log density of the proposal."""
        expected, doubts = surrogate_and_doubt(self.surrogate, points)
        return expected, self.density_of(expected, doubts, self.free.log_density(points))

    def density_of(self, expected: np.ndarray, doubts: np.ndarray, free: np.ndarray) -> np.ndarray:
        """Return the log density where the surrogate, its doubt and the free share's density are these."""
        return logsumexp(
            [
                math.log(_SURROGATE_SHARE) + expected - self.log_evidence,
                math.log(_DOUBT_SHARE) + doubts - self.log_doubt,
                math.log(1 - _SURROGATE_SHARE - _DOUBT_SHARE) + free,
            ],
            axis=0,
        )


class Belief(NamedTuple):
    """What a surrogate believes of the likelihood, at free draws.

    Attributes:
        points: The draws.
        expected: The surrogate there.
        doubts: How far above it the likelihood may be.
        free_density: Log density of the draws.
    """

    points: Float[np.ndarray, "num_points dim"]
    expected: Float[np.ndarray, " num_points"]
    doubts: Float[np.ndarray, " num_points"]
    free_density: Float[np.ndarray, " num_points"]


class Round(NamedTuple):
    """Points drawn from one proposal, and what they say of the evidence.

    Attributes:
        proposal: Of the points.
        points: Of the round; some may be outside of the cube.
        log_likelihoods: There, `-inf` outside of the cube.
        ratio: Evidence by the surrogate and its correction, for that of the surrogate.
        variance: Of the ratio, as seen in the differences of the round.
        doubt_variance: Of the ratio, as the surrogate's own doubt lets expect.
        integral_variance: Of the ratio, from the surrogate's own integral.
        belief: Of the surrogate.
    """

    proposal: Proposal
    points: Float[np.ndarray, "num_points dim"]
    log_likelihoods: Float[np.ndarray, " num_points"]
    ratio: float
    variance: float
    doubt_variance: float
    integral_variance: float
    belief: Belief

    @property
    def efficiency(self) -> float:
        """Effective draws for each that was made."""
        if not np.isfinite(self.log_likelihoods).any():
            return 0.0
        return kish_ess(self.log_likelihoods - self.proposal.terms(self.points)[1]) / len(self.points)

    def expected_variance(self, belief: Belief) -> float:
        """Return the variance of the ratio that is expected, where a later surrogate has learned more.

        That is how far the surrogates differ, and the doubt of that of them which had less.
        """
        expected, density = self.proposal.terms(belief.points)
        log_scale = self.proposal.log_evidence + 0.5 * (density + belief.free_density)
        missed = _mean_square(belief.expected - log_scale, expected - log_scale)
        doubtful = _mean_square(belief.doubts - _LOG_DOUBT - log_scale)
        return missed / len(self.points) + min(self.doubt_variance, doubtful / len(self.points))


def surrogate_and_doubt(
    surrogate: FittedSurrogate, points: Float[np.ndarray, "num_points dim"]
) -> tuple[Float[np.ndarray, " num_points"], Float[np.ndarray, " num_points"]]:
    """Return a surrogate and the log of how far above it the likelihood may be, `-inf` outside the cube."""
    expected, doubts = np.full((2, len(points)), -np.inf)
    is_inside = in_cube(points)
    if is_inside.any():
        lower, upper = surrogate.bounds(points[is_inside])
        expected[is_inside] = lower
        doubts[is_inside] = upper + np.log(-np.expm1(-np.maximum(upper - lower, 1e-12)))
    return expected, doubts


def follow(
    rng: np.random.Generator, surrogate: FittedSurrogate, free: FreeProposal
) -> tuple[FreeProposal, WeightedPoints]:
    """Return a free proposal near a surrogate, and weighted points that stand for its posterior."""
    return refined(rng, surrogate, free, _ROUNDS, _DRAWS)


def make_round(
    evaluate: Evaluate,
    rng: np.random.Generator,
    surrogate: FittedSurrogate,
    free: FreeProposal,
    num_draws: int,
    num_free: int,
) -> Round:
    """Draw points near a surrogate, and call the truth there.

    Args:
        evaluate: The log likelihood at points of the cube.
        rng: Draws them.
        surrogate: A log likelihood; fitted to none of the points that are drawn here.
        free: Near its posterior.
        num_draws: Of the round; those outside of the cube cost no call.
        num_free: Free draws, at no call, for the integral of the surrogate.
    """
    pool = free.draw(rng, num_free)
    free_density = free.log_density(pool)
    expected, doubts = surrogate_and_doubt(surrogate, pool)
    log_evidence = _log_mean(expected - free_density)
    proposal = Proposal(surrogate, free, log_evidence, _log_mean(doubts - free_density))
    density = proposal.density_of(expected, doubts, free_density)
    doubtful = _mean_square(doubts - _LOG_DOUBT - log_evidence - 0.5 * (density + free_density))
    belief = Belief(*(each[:_NUM_KEPT] for each in (pool, expected, doubts, free_density)))
    own = np.exp(expected - free_density - log_evidence)
    num_near, num_doubtful = round(_SURROGATE_SHARE * num_draws), round(_DOUBT_SHARE * num_draws)
    points = np.concatenate(
        [
            pool[rng.choice(num_free, size=num_near, p=own / own.sum())],
            pool[rng.choice(num_free, size=num_doubtful, p=normalized(doubts - free_density))],
            free.draw(rng, num_draws - num_near - num_doubtful),
        ]
    )
    log_likelihoods = np.full(num_draws, -np.inf)
    is_inside = in_cube(points)
    log_likelihoods[is_inside] = evaluate(points[is_inside])
    expected, density = proposal.terms(points)
    difference = np.exp(log_likelihoods - log_evidence - density) - np.exp(expected - log_evidence - density)
    return Round(
        proposal,
        points,
        log_likelihoods,
        1 + float(difference.mean()),
        float(difference.var(ddof=1)) / num_draws,
        doubtful / num_draws,
        float(own.var(ddof=1)) / num_free,
        belief,
    )


def combined(rounds: list[Round], counted: list[Round]) -> Estimate:
    """Return the evidence by rounds together, each as far as it is expected to be right.

    What a round may have missed is told by the last surrogate, which has learned from all rounds: that it
    does not depend on what a round happened to draw makes it fit to weigh rounds by.

    Args:
        rounds: Of which the draws are kept.
        counted: Of which the evidence is.
    """
    start = counted[0].proposal.log_evidence
    scales = np.array([math.exp(each.proposal.log_evidence - start) for each in counted])
    belief = counted[-1].belief
    expected = np.array([each.expected_variance(belief) + each.integral_variance for each in counted])
    shares = 1 / (scales**2 * expected)
    shares /= shares.sum()
    ratio = float(shares @ (scales * [each.ratio for each in counted]))
    seen = np.array([each.variance + each.integral_variance for each in counted])
    variance = max(float((shares * scales) ** 2 @ seen), float((shares * scales) ** 2 @ expected))
    points, log_likelihoods = Known(
        np.concatenate([each.points for each in rounds]),
        np.concatenate([each.log_likelihoods for each in rounds]),
    ).possible
    sizes = np.array([len(each.points) for each in rounds])
    densities = [each.proposal.terms(points)[1] for each in rounds]
    mixed = logsumexp(densities, axis=0, b=(sizes / sizes.sum())[:, None])
    log_weights = log_likelihoods - mixed
    if ratio > 0:
        log_evidence, error = start + math.log(ratio), math.sqrt(variance) / ratio
    else:  # the surrogate is far too high, and the draws are few: their weights at least are positive
        log_evidence, error = float(logsumexp(log_weights)) - math.log(sizes.sum()), math.inf
    return Estimate(log_evidence, error, points, log_likelihoods, log_weights, int(sizes.sum()))


def _mean_square(log_values: np.ndarray, log_others: np.ndarray | float = -math.inf) -> float:
    """Return the mean square of differences of values that are given by their logarithms."""
    first, second = (np.exp(np.minimum(each, _LARGEST)) for each in (log_values, log_others))
    return float(np.mean((first - second) ** 2))


def _log_mean(log_values: np.ndarray) -> float:
    return float(logsumexp(log_values)) - math.log(len(log_values))
