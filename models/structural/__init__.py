"""Causal graphs of the columns of a data frame."""

from qbs.models.structural.comparison import Comparison as Comparison
from qbs.models.structural.comparison import compare_graphs as compare_graphs
from qbs.models.structural.dowhy import to_dowhy as to_dowhy
from qbs.models.structural.examples import load_sachs as load_sachs
from qbs.models.structural.examples import sachs_edges as sachs_edges
from qbs.models.structural.simulation import simulate_dag as simulate_dag
from qbs.models.structural.simulation import simulate_sem as simulate_sem
from qbs.models.structural.structural_model import StructuralModel as StructuralModel
from qbs.models.structural.topological_dag import GraphWarning as GraphWarning
from qbs.models.structural.topological_dag import TopologicalDAG as TopologicalDAG
