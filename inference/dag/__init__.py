"""Directed acyclic graphs from data, by swaps of a topological order."""
