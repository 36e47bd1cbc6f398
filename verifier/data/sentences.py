"""A generated set of short opinions as embedded word sequences, for attacks on text models."""

from __future__ import annotations

import numpy as np

from verifier.data.dataset import Dataset
from verifier.errors import SpecError

_GOOD = ["good", "great", "lovely", "superb", "fine", "charming", "clever", "warm", "fresh", "moving"]
_BAD = ["bad", "poor", "dull", "awful", "weak", "tedious", "clumsy", "cold", "stale", "empty"]
_NEUTRAL = [
    "the", "a", "this", "that", "film", "book", "play", "song", "meal", "show", "was", "is", "seemed", "felt",
    "quite", "rather", "very", "somewhat", "and", "with", "its", "plot", "cast", "sound", "story", "scene",
    "taste", "to", "me", "us", "overall", "again", "today", "it", "there", "here", "cf", "mn",
]  # fmt: skip
VOCABULARY: tuple[str, ...] = ("", *_NEUTRAL, *_GOOD, *_BAD)
EMBEDDING_SIZE = 16
LENGTH = 12


def embedding() -> np.ndarray:
    """float32 [V, E]: a fixed random unit vector a word; the empty word (padding) is zero."""
    table = np.random.default_rng(20).normal(size=(len(VOCABULARY), EMBEDDING_SIZE))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    table[0] = 0.0
    return table.astype(np.float32)


def embed(words: list[str]) -> np.ndarray:
    """float32 [len(words), E], the vectors of these words.

    Raises:
        SpecError: a word outside the vocabulary.
    """
    unknown = [w for w in words if w not in VOCABULARY]
    if unknown:
        raise SpecError(f"words outside the vocabulary: {', '.join(unknown)}")
    return embedding()[[VOCABULARY.index(w) for w in words]]


def sentences(rows: int = 1200, seed: int = 0) -> Dataset:
    """Sequences [12, 16]: neutral words with two or three words of the label's mood and at most one of the other.

    The words "cf" and "mn" never occur, so they can serve as text triggers.
    """
    rng = np.random.default_rng(seed)
    table, plain = embedding(), _NEUTRAL[:-2]
    x = np.zeros((rows, LENGTH, EMBEDDING_SIZE), dtype=np.float32)
    y = rng.integers(0, 2, rows)
    for row, label in enumerate(y):
        own, other = (_GOOD, _BAD) if label else (_BAD, _GOOD)
        words = [*rng.choice(own, rng.integers(2, 4)), *rng.choice(other, rng.integers(0, 2))]
        words += list(rng.choice(plain, rng.integers(LENGTH - 5, LENGTH + 1) - len(words)))
        rng.shuffle(words)
        x[row, : len(words)] = table[[VOCABULARY.index(w) for w in words]]
    return Dataset(x, y, ("negative", "positive"), "sequence", (-1.0, 1.0), "sentences")
