"""`--transform` of `verifier certify`: image transformations instead of a norm."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from verifier.errors import SpecError

if TYPE_CHECKING:
    from verifier.certify.plan import ImageTransforms
    from verifier.data import Dataset

#: option -> the value it must keep, and why, where transformations are given
_FIXED = {
    "norm": ("linf", "the transformations say what may change"),
    "also": ([], "the transformations say what may change"),
    "mask": (None, "the transformations say what may change"),
    "feature_scale": (None, "the transformations say what may change"),
    "method": ("proof", "transformations are certified by proof"),
    "effort": ("search", "transformations are certified by search"),
    "soundness": ("float32", "these proofs are for the deployed program, which implies real arithmetic"),
}


def add_transform_arguments(parser: argparse.ArgumentParser) -> None:
    """The repeatable option; its order is the order of application."""
    parser.add_argument(
        "--transform", action="append", default=[], metavar="NAME=LOW:HIGH[,LOW:HIGH...]",
        help="an image transformation and the ranges of its parameters (repeatable, in order): brightness, contrast, "
        "saturation, hue (radians), rotation (degrees), translation (pixels down, right), spatial (both); "
        "last, pixels=EPS for a change of every pixel. --eps is then a list of shares of the box (default: 1)",
    )  # fmt: skip
    parser.add_argument("--any-order", action="store_true", help="certify the transformations in every order")


def image_transforms(args: argparse.Namespace, steps: tuple[str, ...], data: Dataset, graph: Any) -> ImageTransforms:
    """The transformations for a plan, checked against the data, the network and the other options.

    Raises:
        SpecError: options that do not go together, data that are not images, pixels without one common range.
    """
    import numpy as np

    from verifier.certify.placing import Placing, channels_come_last
    from verifier.certify.plan import ImageTransforms

    for option, (value, why) in _FIXED.items():
        if getattr(args, option) != value:
            raise SpecError(f"--{option.replace('_', '-')}: not with --transform; {why}")
    if len(data.shape) != 3:
        raise SpecError(
            f"--transform: expected images [C, H, W] in --data, got rows of shape {list(data.shape)}; "
            "give an image data set (.npz with x [n, C, H, W], IDX, CIFAR or a folder)"
        )
    ends = args.valid.split(",") if args.valid else [np.unique(end) for end in data.valid]
    try:
        low, high = (float(np.asarray(end, dtype=np.float64).item()) for end in ends)
    except ValueError:
        low, high = 0.0, -1.0
    if not -np.inf < low <= high < np.inf:
        raise SpecError(
            "--valid: transformed pixels are clipped to one range, the same for every pixel; "
            f"give it as --valid LOW,HIGH, got '{args.valid or 'the ranges of the data'}'"
        )
    channels, height, width = data.shape
    last = channels_come_last(data.shape, [graph[name].shape for name in graph.inputs])
    return ImageTransforms(steps, Placing((channels, height, width), last), (low, high), args.any_order)


def transforms_in_words(transforms: ImageTransforms) -> str:
    """What may change, for reports; wrong transformations are found here, before any work is done."""
    from verifier.certify.semantic.box import parse_threat, words

    return words(parse_threat(transforms.steps, transforms.valid, free_order=transforms.any_order))
