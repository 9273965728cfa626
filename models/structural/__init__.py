"""Causal graphs of the columns of a data frame."""

from qbs.models.structural.simulation import simulate_dag as simulate_dag
from qbs.models.structural.simulation import simulate_sem as simulate_sem
