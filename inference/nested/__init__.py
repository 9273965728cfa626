"""Nested sampling: posterior and evidence together."""

from qbs.inference.nested.dynesty import Dynesty as Dynesty
from qbs.inference.nested.slice import Slice as Slice
