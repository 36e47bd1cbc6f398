"""Proofs that can be checked without trusting what found them.

`write` searches, `check` verifies. A proof is a tree of splits for every clause, with relaxation slopes and multipliers
at its leaves: all of them may be wrong without making a wrong bound, so the checker needs one backward pass a leaf and
no optimiser (METHODS section 8). Trusted are the readers of networks and specifications (`graph`, `spec`), NumPy,
SciPy's sparse products, and this room without `write`: it imports no engine, no kernels and no torch.
"""
