"""Nested sampling: posterior and evidence together."""

from qbs.inference.nested.dynesty import Dynesty as Dynesty
from qbs.inference.nested.journal import CallRecords as CallRecords
from qbs.inference.nested.journal import read_calls as read_calls
from qbs.inference.nested.slice import Slice as Slice
