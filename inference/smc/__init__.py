"""Sequential Monte Carlo: through temperatures, through observations, and particle filters inside others."""

from qbs.inference.smc.particle_filter import ParticleFilter as ParticleFilter
from qbs.inference.smc.particle_gibbs import ParticleGibbs as ParticleGibbs
from qbs.inference.smc.pmmh import PMMH as PMMH
from qbs.inference.smc.resample_move import ResampleMove as ResampleMove
from qbs.inference.smc.smc2 import SMC2 as SMC2
from qbs.inference.smc.tempered import Tempered as Tempered
