"""Which data sets share observations, so that together they would count some of them twice."""

from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple


class Overlap(NamedTuple):
    """Two data sets that share observations.

    Attributes:
        first: The one that was named first.
        second: The other.
        reason: What they share, as a sentence.
    """

    first: str
    second: str
    reason: str

    def __str__(self) -> str:
        return f"{self.first} and {self.second} overlap: {self.reason}"


# Any two of a row overlap.
_GROUPS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("cc", "cc_31", "cc_32"), "they are compilations of the same measurements of H(z)."),
    (("desi_dr1", "desi_dr2"), "the second release contains the galaxies of the first."),
    (("sdss", "desi_dr1"), "the surveys mapped much of the same volume (arXiv:2404.03002, section 3.3)."),
    (("sdss", "desi_dr2"), "the surveys mapped much of the same volume (arXiv:2404.03002, section 3.3)."),
    (("pantheon_plus", "pantheon_plus_sh0es"), "the second is the first with its calibrators."),
    (
        ("pantheon_plus", "union3", "des_sn5yr"),
        "the samples have supernovae in common, the nearby ones above all.",
    ),
    (
        ("pantheon_plus_sh0es", "union3", "des_sn5yr"),
        "the samples have supernovae in common, the nearby ones above all.",
    ),
    (("h0", "pantheon_plus_sh0es"), "both are the Cepheid distance ladder of SH0ES (arXiv:2112.04510)."),
    (("cmb_shift", "cmb_thetastar"), "both compress the spectra of Planck."),
)


def overlaps(data: Iterable[str]) -> tuple[Overlap, ...]:
    """Return the pairs of data sets that share observations.

    Growth rates `fsigma8` and the BAO of `sdss` or DESI come in part from the same galaxies, but from other
    features of their clustering; they are not listed, although their errors are somewhat correlated.

    Args:
        data: Names of data sets; an unknown name overlaps with nothing.

    Returns:
        The pairs, in the order of `data`; empty when all are independent.
    """
    found = {}
    for first, second in combinations(data, 2):
        for names, reason in _GROUPS:
            if first in names and second in names:
                found[first, second] = Overlap(first, second, reason)
    return tuple(found.values())
