"""What the search needs from an engine, whatever it is made of.

Two protocols, because the two kinds of splitting ask different things:

- `BoxEngine` bounds many input boxes at once (input splitting, falsification). Plain numpy in and
  out, so that small networks never pay for a framework. Implemented by `native_engine` (C++, no
  torch) and `torch_engine`.
- `DomainEngine` bounds subdomains given by splits of hidden neurons. Its `DomainBatch` is opaque
  to the search and owned by the engine, so it can live on a GPU or in C++ memory.

Shape letters: B boxes or subdomains, S specification rows, N_in flat inputs, N_out flat outputs.
In a `DomainEngine` a clause's rows are padded to S by repeating one of them.
Every lower bound holds at the engine's soundness level with the rounding terms of METHODS section 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from verifier.graph.ir import Graph
from verifier.outcome import Soundness
from verifier.spec.problem import InputSet


@dataclass(frozen=True)
class BoxBounds:
    """Lower bounds of S rows over B boxes, with the linear forms that prove them.

    On box b, for every input x of it and the outputs y computed at x:
        rows[s] @ y  >=  coeffs[b, s] @ x + offset[b, s]  >=  lower[b, s].

    Attributes:
        lower: float64 [B, S]; -inf where nothing is known, never NaN.
        coeffs: [B, S, N_in]; offset: [B, S]: rigorous forms (rounding already subtracted).
        sensitivity: [B, N_in] >= 0, summed input coefficients of the last hidden layer's forms;
            the search adds a small share of it to its split score.
        curved: the forms are tangents of curved bounds, taken where those are smallest: they are flat along
            inputs that matter, and what they lose falls with the square of a box's width.
    """

    lower: np.ndarray
    coeffs: np.ndarray
    offset: np.ndarray
    sensitivity: np.ndarray
    curved: bool = field(default=False, kw_only=True)

    @staticmethod
    def none(rows: int, inputs: int) -> BoxBounds:
        """Bounds of no boxes."""
        return BoxBounds(np.zeros((0, rows)), np.zeros((0, rows, inputs)), np.zeros((0, rows)), np.zeros((0, inputs)))

    def only(self, box: int) -> BoxBounds:
        """The bounds of one of the boxes."""
        return self.pick(slice(box, box + 1))

    def pick(self, boxes: np.ndarray | slice) -> BoxBounds:
        """The bounds of some of the boxes (integers, a mask or a slice)."""
        fields = (self.lower[boxes], self.coeffs[boxes], self.offset[boxes], self.sensitivity[boxes])
        return BoxBounds(*fields, curved=self.curved)


class BoxEngine(Protocol):
    """Bounds, values and gradients over flat inputs; all arrays float64 unless said otherwise."""

    graph: Graph
    soundness: Soundness
    name: str

    def bound_boxes(self, lower: np.ndarray, upper: np.ndarray, rows: np.ndarray, *, refine: bool = True) -> BoxBounds:
        """Bounds of rows [S, N_out] over boxes lower, upper [B, N_in].

        Args:
            refine: off skips the backward passes of intermediate neurons: faster and looser.
        """

    def splits_on(self, inputs: InputSet) -> bool:
        """Whether its DomainEngine knows this set, where it is more than a box."""

    def evaluate(self, points: np.ndarray) -> np.ndarray:
        """Outputs [B, N_out] at points [B, N_in], in the network's arithmetic up to round-off."""

    def gradient(self, points: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Gradient [B, N_in] of weights[b] @ y(x) at points[b]; weights [B, N_out]."""


class DomainBatch(Protocol):
    """B subdomains of one box, each given by splits of neurons; what else it holds is the engine's."""

    def __len__(self) -> int: ...

    @property
    def margins(self) -> np.ndarray:
        """Best rigorous margin of each subdomain so far, float64 [B] (of its clause's best row)."""

    @property
    def clauses(self) -> np.ndarray:
        """Number of the clause to refute on each subdomain, int [B]."""

    @property
    def stuck(self) -> np.ndarray:
        """bool [B]: no neuron is left whose split could help."""

    @property
    def nbytes(self) -> int:
        """Memory held."""

    def select(self, index: np.ndarray) -> Any:
        """The subdomains at `index` (integers or a mask)."""


@dataclass(frozen=True)
class DomainBounds:
    """Result of bounding a batch.

    Attributes:
        batch: the same subdomains with improved parameters and margins.
        row_margins: rigorous lower bounds minus limits, float64 [B, S]; -inf where nothing is known.
        minimiser: float64 [B, N_in], where the best row's form is smallest.
        closed: bool [B], the clause is refuted.
    """

    batch: Any
    row_margins: np.ndarray
    minimiser: np.ndarray
    closed: np.ndarray


class DomainEngine(Protocol):
    """Bounds subdomains of one box for the clauses of a property.

    Attributes:
        batch_size: subdomains that are worth bounding at once.
    """

    batch_size: int

    def initial(self, clauses: np.ndarray) -> Any:
        """One unsplit subdomain for each of the clauses [B]."""

    def bound(self, batch: Any, iterations: int, stopped: Callable[[], bool]) -> DomainBounds:
        """Optimise slopes and multipliers for at most `iterations` steps, then bound rigorously."""

    def branch(self, batch: Any) -> Any:
        """Two children of every subdomain, which together cover it; none of the batch may be stuck."""

    def refine(self, seconds: float, stopped: Callable[[], bool]) -> bool:
        """Spend about `seconds` on the bounds that all subdomains share; True where that changed much, or there was
        too little time to tell.

        Batches made before are void then.
        """

    def focus(self, spare: Any | None) -> FocusedEngine | None:
        """The same box and bounds as an engine of its own, to be tightened for one subdomain; None where it cannot be.

        Args:
            spare: an engine made by this before and no longer needed, whose memory is used again.
        """

    def join(self, parts: Sequence[Any]) -> Any:
        """Several batches as one."""

    def forget(self, batch: Any) -> Any:
        """The same subdomains in less memory: parameters that cost many bytes go back to their defaults."""


class FocusedEngine(DomainEngine, Protocol):
    """A DomainEngine whose bounds may be tightened for one subdomain alone, and that can be had more than once.

    Attributes:
        threads: that one call uses at most.
    """

    threads: int

    def alone(self, threads: int) -> FocusedEngine:
        """The same box and bounds as an engine that another thread may use, and which takes subdomains of this one."""

    def use_threads(self, threads: int) -> None:
        """Use fewer threads than it was made with."""

    def cut_off(self, batch: Any, iterations: int, stopped: Callable[[], bool]) -> DomainBounds:
        """Tighten the neurons' bounds where the clause of a batch of one can still be satisfied, then bound it.

        From then on this engine's bounds hold only for the batch and its children.
        """
