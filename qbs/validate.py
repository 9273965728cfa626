"""Checks that prove a sampler: exact on finite programs, statistical on all others.

Each returns a report: `.ok`, the numbers behind it, and a text that says what is wrong and where.
"""

from qbs.inference.validate.exactness import ExactReport as ExactReport
from qbs.inference.validate.exactness import exact as exact
from qbs.inference.validate.geweke import joint as joint
from qbs.inference.validate.invariance import InvarianceReport as InvarianceReport
from qbs.inference.validate.invariance import invariant as invariant
from qbs.inference.validate.involutions import InvolutionReport as InvolutionReport
from qbs.inference.validate.involutions import involution as involution
from qbs.inference.validate.means import MeansReport as MeansReport
from qbs.inference.validate.means import MeanTest as MeanTest
from qbs.inference.validate.ranks import CalibrationReport as CalibrationReport
from qbs.inference.validate.ranks import calibration as calibration
from qbs.inference.validate.weighting import properly_weighted as properly_weighted
from qbs.inference.validate.zoo import zoo as zoo
