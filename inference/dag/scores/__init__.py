"""Scores of graphs: each a sum over nodes, given who may be their parents."""
