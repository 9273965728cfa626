"""What a fit returns: draws, evidence, diagnostics, and where they come from."""

from qbs.inference.results.posterior import Posterior as Posterior
from qbs.inference.results.storage import load as load
from qbs.inference.results.summary import Summary as Summary
