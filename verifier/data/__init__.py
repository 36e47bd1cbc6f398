"""Data sets: packaged ones that need no network, and readers for common files; numpy only."""

from verifier.data.dataset import Dataset, Split
from verifier.data.open import open_dataset

__all__ = ["Dataset", "Split", "open_dataset"]
