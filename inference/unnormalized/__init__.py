"""Models known up to their normalizing constant: their parameters, and the constant itself."""

from qbs.inference.unnormalized.compositional import Compositional as Compositional
from qbs.inference.unnormalized.compositional import ImportanceLikelihood as ImportanceLikelihood
from qbs.inference.unnormalized.contrastive import NoiseContrastive as NoiseContrastive
from qbs.inference.unnormalized.contrastive_divergence import ContrastiveDivergence as ContrastiveDivergence
from qbs.inference.unnormalized.fit_result import UnnormalizedFit as UnnormalizedFit
from qbs.inference.unnormalized.log_partition import LogPartition as LogPartition
from qbs.inference.unnormalized.log_partition import log_partition as log_partition
from qbs.inference.unnormalized.noise import GaussianNoise as GaussianNoise
from qbs.inference.unnormalized.noise import MarginalNoise as MarginalNoise
from qbs.inference.unnormalized.score_matching import ScoreMatching as ScoreMatching
