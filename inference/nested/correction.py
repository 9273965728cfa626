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
from qbs.inference.nested.surrogate import FittedSurrogate
from qbs.inference.results.diagnostics import kish_ess

_SURROGATE_SHARE = 0.6
_DOUBT_SHARE = 0.2
_DRAWS, _ROUNDS = 8000, 2  # to find a free proposal


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


class Round(NamedTuple):
    """Points drawn from one proposal, and what they say of the evidence.

    Attributes:
        proposal: Of the points.
        points: Of the round; some may be outside of the cube.
        log_likelihoods: There, `-inf` outside of the cube.
        ratio: Evidence by the surrogate and its correction, for that of the surrogate.
        variance: Of the ratio, as seen in the differences of the round.
        expected_variance: Of the ratio, as the surrogate's doubt has it; that it was expected before the
            draws makes it fit to weigh rounds by.
        integral_variance: Of the ratio, from the surrogate's own integral.
    """

    proposal: Proposal
    points: Float[np.ndarray, "num_points dim"]
    log_likelihoods: Float[np.ndarray, " num_points"]
    ratio: float
    variance: float
    expected_variance: float
    integral_variance: float

    @property
    def efficiency(self) -> float:
        """Effective draws for each that was made."""
        if not np.isfinite(self.log_likelihoods).any():
            return 0.0
        return kish_ess(self.log_likelihoods - self.proposal.terms(self.points)[1]) / len(self.points)


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
    # Half of the doubt squared: the truth is as likely at the surrogate as that far above it.
    expected_square = np.exp(2 * (doubts - log_evidence) - math.log(2) - density - free_density)
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
        float(expected_square.mean()) / num_draws,
        float(own.var(ddof=1)) / num_free,
    )


def combined(rounds: list[Round]) -> Estimate:
    """Return the evidence by rounds together, each as far as it is expected to be right."""
    start = rounds[0].proposal.log_evidence
    scales = np.array([math.exp(each.proposal.log_evidence - start) for each in rounds])
    expected = np.array([each.expected_variance + each.integral_variance for each in rounds])
    shares = 1 / (scales**2 * expected)
    shares /= shares.sum()
    ratio = float(shares @ (scales * [each.ratio for each in rounds]))
    seen = np.array([each.variance + each.integral_variance for each in rounds])
    variance = max(float((shares * scales) ** 2 @ seen), float((shares * scales) ** 2 @ expected))
    points, log_likelihoods = Known(
        np.concatenate([each.points for each in rounds]),
        np.concatenate([each.log_likelihoods for each in rounds]),
    ).possible
    sizes = np.array([len(each.points) for each in rounds])
    densities = [each.proposal.terms(points)[1] for each in rounds]
    mixed = logsumexp(densities, axis=0, b=(sizes / sizes.sum())[:, None])
    return Estimate(
        start + math.log(ratio) if ratio > 0 else -math.inf,
        math.sqrt(variance) / ratio if ratio > 0 else math.inf,
        points,
        log_likelihoods,
        log_likelihoods - mixed,
        int(sizes.sum()),
    )


def _log_mean(log_values: np.ndarray) -> float:
    return float(logsumexp(log_values)) - math.log(len(log_values))
