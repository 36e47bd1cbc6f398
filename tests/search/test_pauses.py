"""Pauses to refine neurons: they start short and grow, and end where they no longer pay."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest

from verifier.run import Run
from verifier.search import activation_split
from verifier.search.activation_split import split_activations
from verifier.search.input_split import SplitResult

ENGINE = SimpleNamespace(name="native")


class _Domains:
    """Counts pauses; every one of them gains."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def refine(self, seconds: float, _stopped: object) -> bool:
        self.asked.append(seconds)
        return True


class _Run:
    """A run whose time does not pass."""

    def __init__(self, left: float, patience: float):
        self.left, self.patience, self.said = left, patience, list[str]()

    def remaining(self) -> float:
        return self.left

    def horizon(self) -> float:
        return min(self.left, self.patience)

    def stopped(self) -> bool:
        return False

    def stage(self, _name: str) -> _Run:
        return self

    def say(self, _stage: str, text: str) -> None:
        self.said.append(text)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("left", "move", "patience"),
    [
        (1000.0, 0.0, np.inf),
        (1000.0, 0.1, np.inf),
        (1000.0, 0.5, np.inf),
        (1000.0, 0.6, np.inf),
        (5.0, 0.1, np.inf),
        (1000.0, 0.1, 1.0),
    ],
)
def test_pauses_grow_and_end(monkeypatch: pytest.MonkeyPatch, left: float, move: float, patience: float) -> None:
    domains, run, searched = _Domains(), _Run(left, patience), list[float]()

    class Tree:
        """A tree whose worst margin moves by a share with each pause; nothing is ever decided before the end."""

        clauses, threads, looks, closed_by_looks, can_look = np.arange(1), 1, 0, 0, True

        def __init__(self, *_: object, **__: object) -> None:
            self.worst = -100.0 * (1 - move) ** len(domains.asked)

        def open(self, _clauses: np.ndarray) -> None: ...

        def search(self, until: float = np.inf) -> SplitResult | None:
            searched.append(until - time.monotonic())
            if len(domains.asked) > 20:
                return SplitResult(None, 0)
            return None if until < np.inf else SplitResult(None, 1)

        def __len__(self) -> int:
            return 1

    monkeypatch.setattr(activation_split, "decide_by_programs", lambda *_: (None, np.arange(1)))
    monkeypatch.setattr(activation_split, "Tree", Tree)
    monkeypatch.setattr(activation_split, "root_domains", lambda *_: (domains, np.arange(1)))
    split_activations(ENGINE, None, 0, None, run)  # type: ignore[arg-type]
    asked = domains.asked
    assert asked[0] == min(2.0, 0.3 * left, 0.3 * patience) and all(b >= a for a, b in itertools.pairwise(asked))
    assert max(asked) <= 0.3 * left
    if move == 0.0:  # the first pause long enough to tell
        assert asked[-1] >= activation_split.TELLING_S and all(a < activation_split.TELLING_S for a in asked[:-1])
    elif patience < left:  # pauses cut short out of impatience do not count
        assert len(asked) > 20
    elif left < 10 or move == 0.1:
        assert len(asked) == activation_split.REFINEMENTS
    else:
        assert len(asked) > 20
    first = min(len(asked), activation_split.REFINEMENTS)
    for k, share in enumerate(searched[1 : first + 1]):  # what comes before them splits plainly
        racing = move == 0.6 and 0 < k < activation_split.REFINEMENTS
        expected = activation_split.RACING_SHARE if racing else activation_split.TRIAL_SHARE
        assert share == pytest.approx(expected * asked[k], rel=0.05), k


@pytest.mark.parametrize("exhausted", [1, 2, 3])
def test_what_an_exhausted_tree_has_let_go_of_is_asked_again(monkeypatch: pytest.MonkeyPatch, exhausted: int) -> None:
    opened = list[np.ndarray]()

    class Tree:
        """The first ones are exhausted, with nothing left in them; the next is searched to its end."""

        threads, looks, closed_by_looks, can_look, worst, clauses = 1, 0, 0, True, -1.0, np.arange(0)

        def __init__(self, *_: object, **__: object) -> None: ...

        def __len__(self) -> int:
            return 1

        def open(self, clauses: np.ndarray) -> None:
            opened.append(clauses)

        def search(self, _until: float = np.inf) -> SplitResult:
            return SplitResult(None, 1, exhausted=True) if len(opened) <= exhausted else SplitResult(None, 0)

    monkeypatch.setattr(activation_split, "decide_by_programs", lambda *args: (None, args[-2]))
    monkeypatch.setattr(activation_split, "Tree", Tree)
    monkeypatch.setattr(activation_split, "root_domains", lambda *_: (_Domains(), np.arange(3)))
    result = split_activations(ENGINE, None, 0, None, _Run(1000.0, np.inf))  # type: ignore[arg-type]
    assert result.open_count == 0 and not result.exhausted
    assert len(opened) == exhausted + 1 and all(len(clauses) == 3 for clauses in opened)


def test_a_run_plans_for_its_patience_and_then_for_what_it_took() -> None:
    run = Run(deadline=time.monotonic() + 100).limited(np.inf, patience_s=2.0)
    assert run.horizon() == 2.0
    run.began -= 10
    assert run.horizon() == pytest.approx(10, abs=1)
    run.began -= 200
    assert run.horizon() == pytest.approx(100, abs=1)
