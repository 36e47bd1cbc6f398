"""What a sweep does with every sample; plain values that travel to other processes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from verifier.certify.placing import Placing
from verifier.certify.radius import RadiusSettings
from verifier.certify.threat import Nearness


@dataclass(frozen=True)
class Smoothing:
    """How the classifier is smoothed, see verifier.certify.smoothing.

    Attributes:
        noise: "gaussian", "laplace", "uniform" or "ablation"; sigma: its scale (features kept for ablation).
        samples, select, alpha: estimation and selection samples, and the probability of a wrong certificate.
        order: 0 for the vote alone, 1 to use its gradient as well (Gaussian only).
    """

    noise: str = "gaussian"
    sigma: float = 0.25
    samples: int = 10_000
    select: int = 100
    alpha: float = 0.001
    order: int = 0


@dataclass(frozen=True)
class ImageTransforms:
    """Transformations in front of the network, see verifier.certify.semantic.

    Attributes:
        steps: as `semantic.box.parse_threat` reads them, in order.
        placing: how the images lie in the network's input.
        valid: range that pixels are clipped to after each.
        any_order: certify every order, not the given one alone.
    """

    steps: tuple[str, ...]
    placing: Placing
    valid: tuple[float, float]
    any_order: bool = False


@dataclass(frozen=True)
class MovingWeights:
    """The network's weights move instead of its inputs, see verifier.certify.weights.WeightBall.

    Attributes:
        only: layers and tensors; empty for all. relative: radii count in each tensor's own norm.
    """

    only: tuple[str, ...] = ()
    relative: bool = True


@dataclass(frozen=True)
class Plan:
    """What to do with every sample.

    Attributes:
        network: a model file.
        nearness: norm, valid range, mask and scales, arrays of the network's size.
        settings: of every sample, the seed moved on by its row; without radii each is narrowed down.
        soundness: "float32" or "real". device, threads: of each process.
        smoothing: settings for smoothed certificates instead of proofs, or None.
        target: the only class that counts as a mistake, or None.
        transforms: transformations instead of a norm, the radii then being shares of their box, or None.
        weights: which weights move instead of the inputs, within radii in the norm of `nearness`, or None.
    """

    network: str
    nearness: Nearness
    settings: RadiusSettings
    soundness: str = "float32"
    device: str = "cpu"
    threads: int = 1
    smoothing: Smoothing | None = None
    target: int | None = None
    transforms: ImageTransforms | None = None
    weights: MovingWeights | None = None

    def settings_of(self, index: int) -> RadiusSettings:
        """The settings of one sample: its row decides its seed, so that rows do not depend on their order."""
        return replace(self.settings, seed=self.settings.seed + index)
