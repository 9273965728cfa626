"""Sequential Monte Carlo: particle filters, and the methods that hold one inside."""

from qbs.inference.smc.particle_filter import ParticleFilter as ParticleFilter
from qbs.inference.smc.particle_gibbs import ParticleGibbs as ParticleGibbs
from qbs.inference.smc.pmmh import PMMH as PMMH
from qbs.inference.smc.smc2 import SMC2 as SMC2
from qbs.inference.smc.tempered import Tempered as Tempered
