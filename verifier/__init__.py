"""Formal verification of neural networks: bounds, search, counterexamples, certificates."""

__version__ = "0.1.0"
