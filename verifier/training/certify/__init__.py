"""Guarantees of the training phase: what no attack within a budget can do."""
