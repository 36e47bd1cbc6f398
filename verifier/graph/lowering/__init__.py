"""Builds canonical nodes out of familiar operations; every importer lowers through these functions.

A value is either a constant (numpy array) or a `Ref` to a node. Each function here takes values:
constants are computed on the spot in the network's own precision, so whole constant subgraphs
vanish; a Ref appends nodes to the tracer's graph.
"""
