"""Markov chain Monte Carlo."""

from qbs.inference.mcmc.nuts import NUTS as NUTS
