"""The methods that a run file can name."""

from qbs.inference.mcmc import NUTS
from qbs.inference.method import Method
from qbs.inference.nested import Corrected, Dynesty, Importance, InLoop, Slice, Verified

METHODS: dict[str, type[Method]] = {
    "dynesty": Dynesty,
    "slice": Slice,
    "corrected": Corrected,
    "verified": Verified,
    "importance": Importance,
    "in-loop": InLoop,
    "nuts": NUTS,
}
"""What `method: {name: ...}` accepts; the other keys are the settings of the class."""
