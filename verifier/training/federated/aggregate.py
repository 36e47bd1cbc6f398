"""How a server combines its clients' updates: plain averaging and the robust rules.

Every rule maps updates [K, P] (a row is a client's change of the flat weights) to one change [P].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.errors import SpecError


@dataclass(frozen=True)
class Updates:
    """What reaches the server in one round.

    Attributes:
        deltas: float32 [K, P], change of the flat weights of each client.
        sizes: [K], rows each client says it has.
        clients: [K], who they are.
        memory: float32 [clients of the federation, P], the server's own; zero at the start.
            A rule may change it in place.
        seed: for rules that add noise.
    """

    deltas: Tensor
    sizes: Tensor
    clients: tuple[int, ...]
    memory: Tensor
    seed: int = 0


Aggregator = Callable[[Updates], Tensor]


def fedavg(updates: Updates) -> Tensor:
    """Mean weighted by the number of rows. Source: McMahan et al. 2017, arXiv:1602.05629."""
    weights = updates.sizes.to(updates.deltas) / updates.sizes.sum()
    return weights @ updates.deltas


def krum_order(deltas: Tensor, byzantine: int) -> Tensor:
    """Clients by Krum score, best first: the sum of squared distances to the K - f - 2 nearest others."""
    count = len(deltas)
    nearest = count - byzantine - 2
    if nearest < 1:
        raise SpecError(f"Krum: {count} updates with {byzantine} malicious ones leave {nearest} neighbours; need one")
    distances = torch.cdist(deltas.double(), deltas.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    distances.fill_diagonal_(float("inf"))
    scores = distances.sort(dim=1).values[:, :nearest].sum(dim=1)
    return scores.argsort(stable=True)


def krum(byzantine: int = 2, keep: int = 1) -> Aggregator:
    """The update nearest to its neighbours; with keep > 1 the mean of the best ones (multi-Krum).

    Args:
        byzantine: malicious clients expected a round, f; needs K >= f + 3 updates.
    Source: Blanchard et al. 2017 (NeurIPS), arXiv:1703.02757.
    """

    def rule(updates: Updates) -> Tensor:
        return updates.deltas[krum_order(updates.deltas, byzantine)[:keep]].mean(dim=0)

    return rule


def median(updates: Updates) -> Tensor:
    """Coordinate-wise median; the mean of the middle two for an even number.

    Source: Yin et al. 2018, arXiv:1803.01498.
    """
    ordered, count = updates.deltas.sort(dim=0).values, len(updates.deltas)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def trimmed_mean(share: float = 0.2) -> Aggregator:
    """Coordinate-wise mean without the lowest and highest `share` of the values.

    Source: Yin et al. 2018, arXiv:1803.01498.
    """
    if not 0 <= share < 0.5:
        raise SpecError(f"trimmed mean: share must be in [0, 0.5), got {share}")

    def rule(updates: Updates) -> Tensor:
        cut = int(share * len(updates.deltas))
        return updates.deltas.sort(dim=0).values[cut : len(updates.deltas) - cut].mean(dim=0)

    return rule


def clipped(norm: float = 1.0, noise: float = 0.001) -> Aggregator:
    """Plain mean of updates clipped to a Euclidean norm, plus Gaussian noise of deviation `noise` a weight.

    Source: Sun et al. 2019, arXiv:1911.07963.
    """

    def rule(updates: Updates) -> Tensor:
        lengths = updates.deltas.norm(dim=1, keepdim=True)
        mean = (updates.deltas * (norm / lengths.clamp(min=norm))).mean(dim=0)
        generator = torch.Generator().manual_seed(updates.seed)
        return mean + noise * torch.randn(mean.shape, generator=generator)

    return rule


def foolsgold(updates: Updates) -> Tensor:
    """Weights down clients whose update histories resemble each other, as sybils' do.

    Source: Fung, Yoon & Beschastnikh 2020 (RAID), arXiv:1808.04866.
    """
    index = torch.tensor(updates.clients)
    updates.memory[index] += updates.deltas
    history = torch.nn.functional.normalize(updates.memory[index], dim=1)
    cosine = history @ history.T
    cosine.fill_diagonal_(-1.0)
    most = cosine.max(dim=1).values
    # Pardoning: an honest client that resembles a worse one is not punished for it.
    ratio = most[:, None] / most[None, :].clamp(min=1e-12)
    pardoned = torch.where((most[:, None] < most[None, :]) & (most[None, :] > 0), cosine * ratio, cosine)
    weights = (1 - pardoned.max(dim=1).values).clamp(0, 1)
    weights = weights / weights.max().clamp(min=1e-12)
    weights = weights.clamp(1e-6, 0.99)
    weights = (torch.log(weights / (1 - weights)) + 0.5).clamp(0, 1)
    return weights @ updates.deltas / weights.sum().clamp(min=1e-12)


def geometric_median(smoothing: float = 1e-6, iterations: int = 20) -> Aggregator:
    """Smoothed Weiszfeld iterations towards the weighted geometric median (RFA).

    Source: Pillutla, Kakade & Harchaoui 2022, arXiv:1912.13445.
    """

    def rule(updates: Updates) -> Tensor:
        weights = updates.sizes.to(updates.deltas) / updates.sizes.sum()
        center = weights @ updates.deltas
        for _ in range(iterations):
            distance = (updates.deltas - center).norm(dim=1).clamp(min=smoothing)
            pull = weights / distance
            center = pull @ updates.deltas / pull.sum()
        return center

    return rule


AGGREGATORS: dict[str, Callable[[], Aggregator]] = {
    "fedavg": lambda: fedavg,
    "krum": krum,
    "multi-krum": lambda: krum(keep=5),
    "median": lambda: median,
    "trimmed-mean": trimmed_mean,
    "clipping": clipped,
    "foolsgold": lambda: foolsgold,
    "rfa": geometric_median,
}


def aggregator(name: str) -> Aggregator:
    """One of `AGGREGATORS` with its default settings.

    Raises:
        SpecError: unknown name; lists the known ones.
    """
    if name not in AGGREGATORS:
        raise SpecError(f"no aggregator '{name}'; there are {', '.join(AGGREGATORS)}")
    return AGGREGATORS[name]()
