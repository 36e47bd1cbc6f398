"""Evasion attacks with one calling convention: `attack(model, x, y, threat, targets=None, seed=0)`.

`registry.ATTACKS` is the explicit table of names; `evaluate.robust_accuracy` runs several of them
over a data set. Importing this package imports no torch: the modules below it do.
"""
