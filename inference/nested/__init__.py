"""Nested sampling: posterior and evidence together."""

from qbs.inference.nested.corrected import Corrected as Corrected
from qbs.inference.nested.dynesty import Dynesty as Dynesty
from qbs.inference.nested.gaussian_process import GaussianProcess as GaussianProcess
from qbs.inference.nested.genetic import Genetic as Genetic
from qbs.inference.nested.importance import Importance as Importance
from qbs.inference.nested.in_loop import InLoop as InLoop
from qbs.inference.nested.journal import CallRecords as CallRecords
from qbs.inference.nested.journal import read_calls as read_calls
from qbs.inference.nested.networks import NetworkEnsemble as NetworkEnsemble
from qbs.inference.nested.slice import Slice as Slice
from qbs.inference.nested.surrogate import Surrogate as Surrogate
from qbs.inference.nested.verified import Verified as Verified
