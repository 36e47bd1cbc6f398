"""Compiled code in place of a torch victim made of known layers and functions; the module itself goes on judging."""

from __future__ import annotations

from copy import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from verifier.attack.compiled_victim import CompiledForward, compiled
from verifier.attack.model import Model
from verifier.errors import VerifierError
from verifier.graph.torch.traced import load_traced, state_of
from verifier.kernels.stages import nonzeros

#: Weights, a convolution's counted at every place, up to which a module is read: that takes some 25 ns each, which
#: twenty evaluations of a small batch save again, and memory.
LARGEST = 10_000_000
#: Inputs on which both must agree, and how well, relative to the scores.
ROWS, CLOSE = 8, 1e-3

#: Module -> what its weights were when it was read, and the compiled code (None: there is none).
_READ: WeakKeyDictionary[nn.Module, tuple[Any, CompiledForward | None]] = WeakKeyDictionary()


def stand_in(model: Model, inputs: Tensor) -> Model:
    """The model, or its likeness in compiled code for attacks on inputs [B, *S].

    Only where the module is on the CPU, can be followed (`load_traced`: not in training mode, nothing hooked, nothing
    but known layers and functions), is no larger than LARGEST, and both agree on the first inputs. What is read is kept
    while weights, parts and settings stay.
    """
    module = model.module
    if type(model) is not Model or module is None or model.forward is not module or model.device.type != "cpu":
        return model
    few = model.prepared(inputs[:ROWS])
    forward = _read(module, few)
    if forward is None or not _agree(forward(few), module(few)):
        return model
    found = copy(model)
    found.forward = found.compiled = forward
    found.vectorised, found.judge = False, module
    return found


def _read(module: nn.Module, few: Tensor) -> CompiledForward | None:
    now = state_of(module)
    if now is None or few.dtype not in (torch.float32, torch.float64):
        return None
    state = (few.shape[1:], few.dtype, now)
    known = _READ.get(module)
    if known is None or known[0] != state:
        known = _READ[module] = (state, _compile(module, few))
    return known[1]


def _compile(module: nn.Module, few: Tensor) -> CompiledForward | None:
    try:
        graph = load_traced(module, (1, *few.shape[1:]), few.dtype)
    except VerifierError:
        return None
    return compiled(graph) if graph.parameter_count + nonzeros(graph) <= LARGEST else None


def _agree(mine: Tensor, theirs: Tensor) -> bool:
    return mine.shape == theirs.shape and bool(((mine - theirs).abs() <= CLOSE * (1 + theirs.abs().max())).all())
