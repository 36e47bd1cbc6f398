"""A property bound to its networks: the graph to analyse, the problem on it, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from verifier.errors import ShapeError
from verifier.graph.ir import Graph
from verifier.spec.columns import Column
from verifier.spec.problem import Problem
from verifier.spec.representable import with_deployed_inputs


@dataclass(frozen=True)
class Variable:
    """A tensor variable of the specification, as a witness must list it.

    Attributes:
        name: as declared ("X" and "Y" in VNN-LIB 1.0).
        kind: "input", "output" or "hidden".
        network: the declared network's name.
        element_type: as declared, e.g. "float32" or "real".
        shape: as declared; () is a scalar.
        offset: first entry in the concatenated inputs (outputs) of all networks; hidden: 0.
        tensor: the model's tensor (hidden only).
    """

    name: str
    kind: str
    network: str
    element_type: str
    shape: tuple[int, ...]
    offset: int = 0
    tensor: str = ""

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Query:
    """What is to be decided, and how its answer maps back to the user's files.

    Attributes:
        graph: the network every row refers to. Its flat outputs are the networks' flat outputs,
            concatenated in declaration order, then the values of `extras`.
        problem: cases over the graph's inputs and outputs.
        version: "1.0" or "2.0", the language of the specification and of its witnesses.
        variables: the witness format: every declared variable, in declaration order.
        networks: declared name -> the network's own graph, in declaration order.
        input_map: int64, concatenated inputs of all networks = x[input_map] for the flat query
            input x; inputs that the specification equates share one entry of x.
        equal_to: declared name -> name of the earlier network whose model file it shares.
        extras: how the outputs appended to the networks' own are obtained.
    """

    graph: Graph
    problem: Problem
    version: str
    variables: tuple[Variable, ...]
    networks: Mapping[str, Graph]
    input_map: np.ndarray
    extras: tuple[Column, ...] = field(default_factory=tuple)
    equal_to: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "networks", MappingProxyType(dict(self.networks)))
        object.__setattr__(self, "equal_to", MappingProxyType(dict(self.equal_to)))

    @property
    def model_output_size(self) -> int:
        """Length of the networks' concatenated flat outputs."""
        return sum(network.output_size for network in self.networks.values())

    @property
    def input_positions(self) -> np.ndarray:
        """int64 [N_in]: for each entry of the query input, one place in the concatenated inputs."""
        positions = np.zeros(self.graph.input_size, dtype=np.int64)
        positions[self.input_map] = np.arange(self.input_map.size)
        return positions


def query_of(graph: Graph, problem: Problem) -> Query:
    """A query for a problem that came from Python rather than from a file.

    Point boxes are widened to the floats the program is given (`with_deployed_inputs`).

    Raises:
        ShapeError: the problem and the graph disagree on N_in or N_out.
    """
    if problem.output_size != graph.output_size:
        raise ShapeError(f"the problem refers to {problem.output_size} outputs, the network has {graph.output_size}")
    for case in problem.cases:
        if case.inputs.size != graph.input_size:
            raise ShapeError(f"the problem has {case.inputs.size} inputs, the network has {graph.input_size}")
    return Query(
        graph, with_deployed_inputs(problem, graph.dtype), "1.0", flat_variables(graph), {"f": graph},
        np.arange(graph.input_size),
    )  # fmt: skip


def flat_variables(graph: Graph) -> tuple[Variable, ...]:
    """The variables of VNN-LIB 1.0: X over the flat inputs, Y over the flat outputs."""
    return (
        Variable("X", "input", "f", graph.dtype, (graph.input_size,)),
        Variable("Y", "output", "f", graph.dtype, (graph.output_size,)),
    )
