"""The graph a query is analysed on: the given networks side by side, with everything rows mention as outputs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np

from verifier.errors import SpecError
from verifier.graph.ir import Graph, GraphBuilder
from verifier.spec.columns import Column


def query_graph(
    networks: Mapping[str, Graph],
    input_map: np.ndarray,
    input_size: int,
    extras: tuple[Column, ...] = (),
) -> Graph:
    """One network as it is, or a new graph that joins several and appends extra outputs.

    The result's flat outputs are the networks' flat outputs in order, then one per extra:
    an input, a hidden entry, or a product (Mul and Pow nodes).

    Args:
        networks: declared name -> graph.
        input_map: concatenated network inputs = x[input_map]; int64.
        input_size: N_in of the query input x.
        extras: how the appended outputs are obtained.
    Raises:
        SpecError: a hidden tensor that is no node of its network's graph.
    """
    identity = input_map.size == input_size and np.array_equal(input_map, np.arange(input_size))
    first = next(iter(networks.values()))
    if len(networks) == 1 and identity and not extras:
        return first
    builder = _Joiner(networks, input_map, input_size, identity)
    outputs = [builder.flat(name) for name in builder.outputs]
    if extras:
        outputs.append(builder.extra_values(extras))
    size = sum(builder.nodes.nodes[name].shape[1] for name in outputs)
    result = builder.nodes.add("Concat", tuple(outputs), (1, size), "query", axis=1) if len(outputs) > 1 else outputs[0]
    sources = " and ".join(graph.source for graph in networks.values() if graph.source)
    return builder.nodes.finish(tuple(builder.inputs), (result,), dtype=first.dtype, source=sources)


class _Joiner:
    """Copies networks into one builder; `inputs` and `outputs` are its node names, in order."""

    def __init__(self, networks: Mapping[str, Graph], input_map: np.ndarray, input_size: int, identity: bool) -> None:
        self.nodes = GraphBuilder()
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self._networks = networks
        self._renamed: dict[tuple[str, str], str] = {}
        self._flat: dict[str, str] = {}
        self._query_input = "" if identity else self.nodes.add("Input", (), (input_size,), "x")
        if self._query_input:
            self.inputs.append(self._query_input)
        start = 0
        for name, graph in networks.items():
            prefix = f"{name}/" if len(networks) > 1 else ""
            for tensor in graph.inputs:
                node = graph[tensor]
                part = input_map[start : start + node.size].reshape(node.shape)
                self._renamed[name, tensor] = self._add_input(prefix + tensor, part)
                start += node.size
            for node in graph.nodes.values():
                if (name, node.name) not in self._renamed:
                    sources = tuple(self._renamed[name, i] for i in node.inputs)
                    added = self.nodes.add(node.op, sources, node.shape, prefix + node.name, **node.attrs)
                    self._renamed[name, node.name] = added
            self.outputs.extend(self._renamed[name, output] for output in graph.outputs)

    def _add_input(self, name: str, entries: np.ndarray) -> str:
        if self._query_input:
            return self.nodes.add("Select", (self._query_input,), entries.shape, name, indices=entries)
        added = self.nodes.add("Input", (), entries.shape, name)
        self.inputs.append(added)
        return added

    def flat(self, node: str) -> str:
        """The node reshaped to (1, size)."""
        if node not in self._flat:
            size = self.nodes.nodes[node].size
            self._flat[node] = self.nodes.add("Reshape", (node,), (1, size), f"{node}_flat")
        return self._flat[node]

    def extra_values(self, extras: tuple[Column, ...]) -> str:
        """A node (1, len(extras)) with the value of every extra column."""
        plain = dict.fromkeys(c for extra in extras for c in (extra.factors or (extra,)))
        pool, position = self._pool(list(plain))
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        powers = [Counter(extra.factors or (extra,)).most_common() for extra in extras]
        for k, factors in enumerate(powers):
            groups[tuple(count for _, count in factors)].append(k)
        parts, order = [], []
        for signature, members in groups.items():
            value = ""
            for level, exponent in enumerate(signature):
                at = np.array([[position[powers[k][level][0]] for k in members]])
                factor = self.nodes.add("Select", (pool,), at.shape, "factor", indices=at)
                if exponent > 1:
                    factor = self.nodes.add("Pow", (factor,), at.shape, "power", exponent=float(exponent))
                value = self.nodes.add("Mul", (value, factor), at.shape, "product") if value else factor
            parts.append(value)
            order.extend(members)
        if len(parts) == 1:
            return parts[0]
        joined = self.nodes.add("Concat", tuple(parts), (1, len(extras)), "extras", axis=1)
        indices = np.argsort(np.array(order))[None]
        return self.nodes.add("Select", (joined,), indices.shape, "extras_in_order", indices=indices)

    def _pool(self, plain: list[Column]) -> tuple[str, dict[Column, int]]:
        """One node with every tensor the columns come from, and where in it each column lies."""
        start: dict[str, int] = {}
        position: dict[Column, int] = {}
        size = 0
        for column in plain:
            node, index = self._locate(column)
            if node not in start:
                start[node] = size
                size += self.nodes.nodes[node].size
            position[column] = start[node] + index
        flat = tuple(self.flat(node) for node in start)
        if len(flat) == 1:
            return flat[0], position
        return self.nodes.add("Concat", flat, (1, size), "factors", axis=1), position

    def _locate(self, column: Column) -> tuple[str, int]:
        """The node that holds a plain column, and the flat index in it."""
        if column.kind == "hidden":
            graph = self._networks[column.network]
            if column.tensor not in graph.nodes:
                raise SpecError(
                    f"hidden tensor '{column.tensor}' of network '{column.network}' is not a node of its graph; "
                    "it does not exist or was fused with its neighbours"
                )
            return self._renamed[column.network, column.tensor], column.index
        index = column.index
        for node in self.inputs if column.kind == "input" else self.outputs:
            if index < self.nodes.nodes[node].size:
                return node, index
            index -= self.nodes.nodes[node].size
        raise SpecError(f"{column.kind} {column.index} is outside the query's networks")
