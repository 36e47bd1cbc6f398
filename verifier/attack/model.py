"""The victim: anything that classifies, asked in the user's units and left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from verifier.errors import DeviceError, NetworkError, ShapeError, SpecError

if TYPE_CHECKING:
    from verifier.attack.compiled_victim import CompiledForward
    from verifier.attack.onnx_victim import GraphModule

OUTPUTS = ("logits", "probabilities", "labels")


class Access(IntEnum):
    """What an attacker can ask of a victim; each level includes those below it."""

    LABELS = 0
    SCORES = 1
    GRADIENT = 2


class Preprocessing:
    """(x - mean) / std along `axis` of a batch, so that budgets stay in the user's units.

    Args:
        mean, std: scalars or one value per channel; std > 0.
        axis: the channel axis of a batch [R, ...].
    Raises:
        SpecError: a std that is not positive.
    """

    def __init__(self, mean: Any = 0.0, std: Any = 1.0, *, axis: int = 1):
        self.mean = torch.as_tensor(mean, dtype=torch.float64).detach().clone()
        self.std = torch.as_tensor(std, dtype=torch.float64).detach().clone()
        self.axis = axis
        if not bool((self.std > 0).all()):
            raise SpecError(f"preprocessing: std must be positive everywhere, got {self.std.tolist()}")

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self._aligned(self.mean, x)) / self._aligned(self.std, x)

    def _aligned(self, value: Tensor, x: Tensor) -> Tensor:
        value = value.to(x)
        if value.ndim != 1:
            return value
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return value.reshape(shape)


class Model:
    """A victim behind one interface: rows of inputs in, scores or labels out.

    Build one with `from_torch`, `from_onnx`, `from_graph`, `from_session` or `from_callable` (or let `wrap`
    choose). Inputs are batches [R, *S] in the user's units; `preprocess` runs inside. A model
    with a single output column z is read as two classes with scores (0, z), or (1 - z, z) for
    probabilities.

    Attributes:
        access: what the victim offers; an attack that needs more is refused.
        dtype, device: what inputs are converted to.
        rows_at_once: rows per evaluation; halved when memory runs out.
        evaluations_per_row: how many times the victim runs for one row (above 1 for an
            expectation over transformations); queries are counted in these.
        compiled: compiled code for the victim's answers and a shorter way to their derivatives than autograd.
        vectorised: autograd can take derivatives of several scores in one pass.
        judge: the victim itself where `forward` is a faster stand-in that rounds otherwise; None where it is not.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        *,
        output: str = "logits",
        access: Access = Access.GRADIENT,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        module: torch.nn.Module | None = None,
    ):
        if output not in OUTPUTS:
            raise SpecError(f"model output: expected one of {', '.join(OUTPUTS)}, got {output!r}")
        self.forward, self.preprocess, self.module = forward, preprocess, module
        self.output = output
        self.access = Access.LABELS if output == "labels" else access
        self.dtype, self.device = _home(module)
        self.rows_at_once = 4096
        self.evaluations_per_row = 1
        self.source = "model"
        self.compiled: CompiledForward | None = None
        self.vectorised = True
        self.judge: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def from_torch(
        cls,
        module: torch.nn.Module,
        *,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        output: str = "logits",
    ) -> Model:
        """A torch module returning [R, K] (or [R], [R, 1] for two classes), attacked in eval mode."""
        return cls(module, output=output, preprocess=preprocess, module=module)

    @classmethod
    def from_onnx(cls, path: str | Path, *, preprocess: Callable[[Tensor], Tensor] | None = None) -> Model:
        """An ONNX file, differentiated through the project's own graph.

        Raises:
            NetworkError, UnsupportedOperator: the file cannot be read.
        """
        from verifier.attack.onnx_victim import graph_module

        model = cls.from_graph(graph_module(path), preprocess=preprocess)
        model.source = str(path)
        return model

    @classmethod
    def from_graph(cls, module: GraphModule, *, preprocess: Callable[[Tensor], Tensor] | None = None) -> Model:
        """A network file that was read already, evaluated by compiled code where that is the faster."""
        from verifier.attack.compiled_victim import compiled

        forward = compiled(module.network.source)
        model = cls(forward or module, preprocess=preprocess, module=module)
        if forward is not None:
            model.compiled, model.vectorised, model.judge = forward, False, module
        return model

    @classmethod
    def from_session(
        cls,
        session: Any,
        *,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        output: str = "logits",
    ) -> Model:
        """An ONNX Runtime session: a black box answering with scores (or labels)."""
        from verifier.attack.onnx_victim import SessionForward

        forward = SessionForward(session)
        model = cls(forward, output=output, access=Access.SCORES, preprocess=preprocess)
        model.dtype = forward.dtype
        model.source = "ONNX Runtime session"
        return model

    @classmethod
    def from_callable(
        cls,
        function: Callable[[np.ndarray], Any],
        *,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        output: str = "logits",
        dtype: torch.dtype = torch.float32,
    ) -> Model:
        """A plain Python callable on numpy batches [R, *S]: a black box.

        Args:
            output: "logits" or "probabilities" [R, K], or "labels" [R].
        """

        def forward(x: Tensor) -> Tensor:
            answer = function(x.detach().cpu().numpy())
            return answer.detach() if isinstance(answer, Tensor) else torch.as_tensor(np.array(answer))

        model = cls(forward, output=output, access=Access.SCORES, preprocess=preprocess)
        model.dtype = dtype
        model.source = getattr(function, "__name__", "callable")
        return model

    def scores(self, x: Tensor) -> Tensor:
        """Scores [R, K] whose argmax is the prediction; probabilities come back as their logarithm.

        Differentiable in x where `access` is GRADIENT. Raises ShapeError for outputs that are
        not one row per input, SpecError for a victim that answers with labels only.
        """
        if self.access < Access.SCORES:
            raise SpecError("this victim answers with labels only; use a hard-label attack")
        return self.as_scores(self._answer(self.forward, x), len(x))

    def judged(self, x: Tensor) -> Tensor:
        """`scores` of the victim itself, for what must not hang on the order of a sum: verdicts."""
        return self.scores(x) if self.judge is None else self.as_scores(self._answer(self.judge, x), len(x))

    def as_scores(self, out: Tensor, rows: int) -> Tensor:
        """`scores` from what the victim answered for `rows` inputs."""
        if out.ndim == 1:
            out = out[:, None]
        if out.ndim != 2 or out.shape[0] != rows:
            raise ShapeError(f"model output: expected [{rows}, K] (R, K), got {list(out.shape)}, from {self.source}")
        if not out.is_floating_point():
            out = out.to(self.dtype)
        if out.shape[1] == 1:
            first = 1 - out if self.output == "probabilities" else torch.zeros_like(out)
            out = torch.cat([first, out], dim=1)
        if self.output == "probabilities":
            out = out.clamp_min(torch.finfo(out.dtype).tiny).log()
        return out

    def labels(self, x: Tensor) -> Tensor:
        """Predicted classes int64 [R]; -1 where the scores hold NaN, which is nobody's class."""
        if self.access >= Access.SCORES:
            return predicted(self.scores(x))
        out = self._answer(self.forward, x).reshape(x.shape[0], -1)
        if out.shape[1] != 1:
            raise ShapeError(f"model labels: expected [{x.shape[0]}] (R), got {list(out.shape)}, from {self.source}")
        return out[:, 0].to(torch.int64)

    def prepared(self, x: Tensor) -> Tensor:
        """What the victim itself is given for inputs x [R, *S]."""
        x = x.to(device=self.device, dtype=self.dtype)
        return self.preprocess(x) if self.preprocess else x

    def _answer(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        out = forward(self.prepared(x))
        if isinstance(out, (tuple, list)):
            out = out[0]
        return out.to(self.device)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Inside, the victim is in eval mode with frozen parameters; afterwards it is as before.

        Training modes, `requires_grad` flags and buffers (values and identity) are restored,
        also after an exception.
        """
        if self.module is None:
            yield
            return
        with _frozen(self.module):
            yield


def predicted(scores: Tensor) -> Tensor:
    """Argmax of scores [R, K] as int64 [R], -1 where a row holds NaN."""
    highest, label = scores.max(dim=1)  # NaN where there is one
    return label.masked_fill_(highest.isnan(), -1)


def wrap(victim: Any, *, preprocess: Callable[[Tensor], Tensor] | None = None, output: str = "logits") -> Model:
    """A Model around a torch module, an ONNX path, an ONNX Runtime session or a callable.

    Raises:
        NetworkError: none of these.
    """
    if isinstance(victim, Model):
        return victim
    if isinstance(victim, torch.nn.Module):
        return Model.from_torch(victim, preprocess=preprocess, output=output)
    if isinstance(victim, (str, Path)):
        return Model.from_onnx(victim, preprocess=preprocess)
    if hasattr(victim, "get_inputs") and hasattr(victim, "run"):
        return Model.from_session(victim, preprocess=preprocess, output=output)
    if callable(victim):
        return Model.from_callable(victim, preprocess=preprocess, output=output)
    raise NetworkError(
        "victim: expected a torch module, an ONNX file, an ONNX Runtime session or a callable, "
        f"got {type(victim).__name__}"
    )


def _home(module: torch.nn.Module | None) -> tuple[torch.dtype, torch.device]:
    tensors = [] if module is None else [*module.parameters(), *module.buffers()]
    floats = [t for t in tensors if t.is_floating_point()]
    if not floats:
        return torch.float32, torch.device("cpu")
    devices = {t.device for t in floats}
    if len(devices) > 1:
        raise DeviceError(f"victim: its tensors lie on {sorted(map(str, devices))}; move it to one device")
    return floats[0].dtype, floats[0].device


@contextmanager
def _frozen(module: torch.nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    flags = [(p, p.requires_grad) for p in module.parameters()]
    buffers = [
        (m, name, b, b.detach().clone()) for m in module.modules() for name, b in m._buffers.items() if b is not None
    ]
    try:
        module.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in buffers:
                if not torch.equal(buffer, value):  # a copy counts as a change, whatever it writes
                    buffer.copy_(value)
                owner._buffers[name] = buffer
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for m, mode in modes:
            m.training = mode
