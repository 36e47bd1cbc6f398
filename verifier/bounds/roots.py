"""The DomainEngine that belongs to an engine."""

from __future__ import annotations

import numpy as np

from verifier.bounds.engine import BoxEngine, DomainEngine
from verifier.run import Run
from verifier.spec.groups import Group


def root_domains(engine: BoxEngine, group: Group, index: int, run: Run) -> tuple[DomainEngine, np.ndarray]:
    """The DomainEngine of this engine for one box of a group, and the clauses its bounds leave open."""
    if engine.name == "native":
        from verifier.bounds import native_domains

        return native_domains.root_domains(engine, group, index, run)  # type: ignore[arg-type]
    from verifier.bounds import torch_domains

    return torch_domains.root_domains(engine, group, index, run)  # type: ignore[arg-type]
