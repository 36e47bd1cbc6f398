"""Which neurons some rows of outputs depend on at all."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.bounds.network import Network
from verifier.ops.linear import LINEAR


def cone_of(network: Network, rows: Tensor) -> dict[str, Tensor]:
    """bool [size] for every node that rows [S, N_out] reach backwards: which elements they reach.

    The transposed magnitudes of linear nodes say so; they are read off as gradients. Only ever used to
    choose what to spend time on.
    """
    used = rows.ne(0).any(0).to(network.dtype).reshape(1, 1, -1)
    weights = {name: mask[0] for name, mask in network.split_rows(used).items()}
    for node in reversed(network.order):
        reached = weights.get(node.name)
        if reached is None:
            continue
        reached = weights[node.name] = reached.ne(0).to(network.dtype)
        if node.op in LINEAR:
            inputs = [
                torch.ones(1, *network.graph[i].shape, dtype=network.dtype, device=network.device) for i in node.inputs
            ]
            with torch.enable_grad():
                inputs = [x.requires_grad_(True) for x in inputs]
                total = (LINEAR[node.op].magnitude(network.at[node.name], inputs) * reached).sum()
            parts = torch.autograd.grad(total, inputs) if inputs else ()
        else:
            parts = tuple(reached for _ in node.inputs)
        for source, part in zip(node.inputs, parts, strict=True):
            weights[source] = weights[source] + part if source in weights else part
    return {name: weight.ne(0).reshape(-1) for name, weight in weights.items()}
