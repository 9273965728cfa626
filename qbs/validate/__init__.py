"""Checks that prove a sampler: exact on finite programs, statistical on all others.

Each returns a report: `.ok`, the numbers behind it, and a text that says what is wrong and where.
"""

from qbs.validate.exactness import ExactReport as ExactReport
from qbs.validate.exactness import exact as exact
from qbs.validate.geweke import joint as joint
from qbs.validate.invariance import InvarianceReport as InvarianceReport
from qbs.validate.invariance import invariant as invariant
from qbs.validate.involutions import InvolutionReport as InvolutionReport
from qbs.validate.involutions import involution as involution
from qbs.validate.means import MeansReport as MeansReport
from qbs.validate.means import MeanTest as MeanTest
from qbs.validate.ranks import CalibrationReport as CalibrationReport
from qbs.validate.ranks import calibration as calibration
from qbs.validate.weighting import properly_weighted as properly_weighted
from qbs.validate.zoo import zoo as zoo
