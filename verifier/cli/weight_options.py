"""`--weights` of `verifier radius` and `verifier certify`: the network's weights move instead of its inputs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from verifier.errors import SpecError

if TYPE_CHECKING:
    from verifier.certify.plan import MovingWeights


def add_weight_arguments(parser: argparse.ArgumentParser) -> None:
    """Which weights, and in which units."""
    group = parser.add_argument_group("the network's weights move, its inputs stay")
    group.add_argument(
        "--weights", metavar="LIST",
        help="'all', or layers and tensors by name: gemm_0,conv_2.bias (a wrong name lists them); radii are then about "
        "weights, in --norm linf (l1, l2: one tensor)",
    )  # fmt: skip
    group.add_argument(
        "--weight-unit", choices=("tensor", "absolute"), default="tensor",
        help="radii count in the norm of each tensor (default; linf: its largest magnitude), or as they are",
    )  # fmt: skip


def moving_weights(args: argparse.Namespace) -> MovingWeights | None:
    """What moves, or None without --weights.

    Raises:
        SpecError: options that do not go together.
    """
    from verifier.certify.plan import MovingWeights

    if args.weights is None:
        if args.weight_unit != "tensor":
            raise SpecError("--weight-unit: only with --weights")
        return None
    for option in ("also", "mask", "feature_scale", "target"):
        if getattr(args, option) not in (None, []):
            raise SpecError(f"--{option.replace('_', '-')}: not with --weights; the inputs stay as they are")
    if args.method != "proof" or getattr(args, "transform", []):
        raise SpecError("--weights: not with --method smoothing or --transform; ask one question at a time")
    only = () if args.weights == "all" else tuple(args.weights.split(","))
    return MovingWeights(only, args.weight_unit == "tensor")


def weights_in_words(weights: MovingWeights, norm: str) -> str:
    """What may change, for reports."""
    which = ", ".join(weights.only) or "every dense and convolution layer, biases included"
    unit = f"the {norm} norm of each tensor" if weights.relative else "the weights' own units"
    return f"weights of {which}: {norm} change of each tensor, in {unit}; inputs stay as they are"
