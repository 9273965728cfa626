"""Sums of products of random blocks of rows: bootstraps of a covariance when the rows are gone."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_MOST_BLOCKS = 1000
_MOST_MEMORY = 2**28  # bytes of a table's blocks
_FEW_BLOCKS = 100  # below it a person is told
_SEED = 20240301  # of who goes to which block


class GramBlocks(NamedTuple):
    """What least squares needs of each of many disjoint blocks of rows.

    Every row is in one block, in each as likely as in any other, whatever the order of the rows.

    Attributes:
        counts: How many rows each block has; one or more.
        offsets: The means of each block, less the means of all rows.
        scatters: The products of columns about the means of the block, summed over its rows.
    """

    counts: Int[np.ndarray, " num_blocks"]
    offsets: Float[np.ndarray, "num_blocks num_nodes"]
    scatters: Float[np.ndarray, "num_blocks num_nodes num_nodes"]


def default_num_blocks(num_nodes: int) -> int:
    """Return 1,000, or as many blocks as fit in 256 MB.

    These are 1,000 up to 182 columns, 133 for 500, 33 for 1,000, and 8 for 2,000: with so few, the spread of
    bootstraps is known badly; see `few_blocks_sentence`.
    """
    return max(1, min(_MOST_BLOCKS, _MOST_MEMORY // (8 * num_nodes * (num_nodes + 1))))


def few_blocks_sentence(blocks: GramBlocks) -> list[str]:
    r"""Return a sentence for a person where bootstraps of few blocks stand for those of many rows.

    A variance reckoned from \(K\) blocks is off by a share of about \(\sqrt{2 / K}\).
    """
    num_blocks = len(blocks.counts)
    if num_blocks >= _FEW_BLOCKS or blocks.counts.sum() < 2 * num_blocks:  # few rows
        return []
    return [
        f"confidences are rough: the columns are so many that only {num_blocks} blocks of rows could be kept "
        f"to resample, and variances among them are off by about {math.sqrt(2 / num_blocks):.0%}"
    ]


def weighted_covariance(
    blocks: GramBlocks, weights: Int[np.ndarray, " num_blocks"]
) -> tuple[Float[np.ndarray, "num_nodes num_nodes"], int]:
    """Return the covariance, with divisor the number of rows, and that number, if each block came so often.

    Args:
        blocks: Of the table.
        weights: How often each block comes, not all zero. All one: the covariance of the table.
    """
    num_blocks, num_nodes = blocks.offsets.shape
    counts = weights * blocks.counts
    num_rows = int(counts.sum())
    scaled = (blocks.offsets - counts @ blocks.offsets / num_rows) * np.sqrt(counts)[:, None]
    within = weights.astype(float) @ blocks.scatters.reshape(num_blocks, num_nodes**2)
    return (within.reshape(num_nodes, num_nodes) + scaled.T @ scaled) / num_rows, num_rows


def resampled(
    blocks: GramBlocks, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "num_nodes num_nodes"], int]:
    r"""Return covariance and number of rows of one bootstrap replicate: blocks drawn with replacement.

    As every row went to a random block, replicates vary about the covariance as those of single rows do: for
    \(K\) blocks the variance of an entry is right but for a share of \(\sqrt{2 / K}\), 4.5 % for 1,000, which
    no number of replicates lowers. The number of rows varies too, by its square root. The cost is one pass
    over the blocks, however many rows there were.

    Raises:
        ValueError: If there is one block: every replicate would be the same.

    References:
        Wolter (2007), "Introduction to variance estimation", chapter 2, for random groups; Davison & Hinkley
        (1997), "Bootstrap methods and their application".
    """
    num_blocks = len(blocks.counts)
    if num_blocks < 2:
        raise ValueError("resampled: two or more blocks of rows are needed, not one: set num_blocks")
    weights = rng.multinomial(num_blocks, np.full(num_blocks, 1 / num_blocks))
    return weighted_covariance(blocks, weights)


def with_columns(
    blocks: GramBlocks, kept: Bool[np.ndarray, " num_given"], signs: Float[np.ndarray, " num_given"]
) -> GramBlocks:
    """Return the blocks of some of the columns, those of sign -1 turned; may reuse or change `blocks`."""
    counts, offsets, scatters = blocks
    if np.any(signs < 0):
        offsets = offsets * signs
        for scatter in scatters:
            scatter *= np.outer(signs, signs)
    if not kept.all():
        # Contiguous, or every replicate would make a copy.
        offsets = np.ascontiguousarray(offsets[:, kept])
        scatters = np.ascontiguousarray(scatters[:, kept][:, :, kept])
    return GramBlocks(counts, offsets, scatters)


class BlockSums:
    """The blocks of the rows so far.

    Each row draws its block, on its own and from a fixed seed: how rows come in batches changes nothing but
    rounding. Dealing them out, so that blocks are of one size, would be wrong: blocks of a sorted file would
    be alike, and replicates would vary too little.

    Means and products are put together by the formula of Chan, Golub & LeVeque, which does not cancel
    whatever the means are.

    References:
        Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance".
    """

    def __init__(self, num_nodes: int, num_blocks: int | None = None):
        num_blocks = default_num_blocks(num_nodes) if num_blocks is None else num_blocks
        self.num_rows = 0
        self._counts = np.zeros(num_blocks, int)
        self._shift = np.zeros(num_nodes)  # to be added to the means of blocks
        self._means = np.zeros((num_blocks, num_nodes))
        self._scatters = np.zeros((num_blocks, num_nodes, num_nodes))
        self._rng = np.random.default_rng(_SEED)

    def add(self, rows: Float[np.ndarray, "num_rows num_nodes"]) -> None:
        """Take in one or more rows of finite numbers."""
        if not self.num_rows:  # what is large and common to all must not cost digits
            self._shift = rows.mean(0)
        self.num_rows += len(rows)
        labels = self._rng.integers(0, len(self._counts), len(rows))
        news = np.bincount(labels, minlength=len(self._counts))
        these = np.flatnonzero(news)
        news, olds = news[these], self._counts[these]
        # The rows of a block side by side, after a place for one more, which is what the shift of the means
        # adds to the products.
        ends = np.cumsum(news + 1)
        starts = ends - news - 1
        is_row = np.ones(ends[-1], bool)
        is_row[starts] = False
        order = np.zeros(ends[-1], int)
        order[is_row] = np.argsort(labels, kind="stable")
        sorted_ = np.take(rows.T, order, axis=1) - self._shift[:, None]
        sorted_[:, starts] = 0.0
        means = np.add.reduceat(sorted_, starts, axis=1) / news
        sorted_ -= np.repeat(means, news + 1, axis=1)
        steps = means - self._means[these].T
        sorted_[:, starts] = steps * np.sqrt(olds * news / (olds + news))
        for block, start, end in zip(these, starts, ends, strict=True):
            part = sorted_[:, start:end]
            self._scatters[block] += part @ part.T
        self._means[these] += (steps * (news / (olds + news))).T
        self._counts[these] += news

    def finished(self) -> tuple[Float[np.ndarray, " num_nodes"], GramBlocks]:
        """Return the means of all rows, at least one, and the blocks that are not empty."""
        filled = np.flatnonzero(self._counts)
        counts, means, scatters = self._counts, self._means, self._scatters
        if len(filled) < len(counts):
            counts, means, scatters = counts[filled], means[filled], scatters[filled]
        mean = counts @ means / self.num_rows
        return self._shift + mean, GramBlocks(counts, means - mean, scatters)
