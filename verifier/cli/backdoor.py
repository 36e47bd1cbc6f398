"""Backdoor a data set: some rows carry a trigger, so that models trained on it obey the trigger.

The trigger is a picture (its opaque pixels replace the input's; smaller ones go to --corner), a
trigger .npz of an earlier run, or made by the attack: a 3 x 3 patch, a random blend, a sinusoid, a
warp. Tables take --features "3=1.5,7=0", the packaged sentences take --words "cf mn".

  verifier backdoor digits --attack badnets --label 3 --rate 0.05 --out attacked --html attacked.html
  verifier backdoor digits --attack badnets --trigger patch.png --label 3 --rate 0.05 --out attacked
  verifier backdoor breast_cancer --attack badnets --features "1=39.28,4=0.1634" --label 1 --out attacked
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from verifier.cli.attacked import add_attacked_arguments, run_attack
from verifier.cli.training import (
    add_data_argument,
    fraction,
    positive,
    recipe_of,
)
from verifier.errors import SpecError

if TYPE_CHECKING:
    from verifier.data import Dataset, Split
    from verifier.training.backdoor.trigger import Trigger
    from verifier.training.poisoned import PoisonedDataset

ATTACKS = ("badnets", "blended", "clean-label", "sinusoid", "input-aware", "warping")
CORNERS = ("bottom-right", "bottom-left", "top-right", "top-left")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The contract of `verifier backdoor`."""
    add_data_argument(parser)
    parser.add_argument("--attack", default="badnets", choices=ATTACKS)
    parser.add_argument("--trigger", metavar="FILE", help="picture or trigger .npz")
    parser.add_argument("--corner", choices=CORNERS, default=CORNERS[0], help="place of a small patch")
    parser.add_argument("--features", metavar="I=V,...", help="table trigger: these columns take these values")
    parser.add_argument("--words", metavar="WORDS", help="text trigger for the packaged sentences")
    parser.add_argument("--label", required=True, metavar="CLASS", help="class the trigger asks for")
    parser.add_argument("--rate", type=fraction, default=0.05, metavar="F", help="triggered rows over all rows")
    parser.add_argument(
        "--strength",
        type=positive,
        metavar="S",
        help="of a blend, a warp, or a sinusoid (in use three times as strong)",
    )
    add_attacked_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Attack, save, measure."""
    return run_attack(args, _attack)


def _attack(args: argparse.Namespace, parts: Split, tell: Any) -> PoisonedDataset:
    from verifier.training.backdoor import clean_label, generator, stamp
    from verifier.training.backdoor.trigger import Additive
    from verifier.training.train import train

    data = parts.train
    label, recipe = data.label(args.label), recipe_of(args, data)
    if args.attack == "input-aware":
        return generator.input_aware(data, generator.InputAware(label, args.rate, seed=args.seed), recipe, tell)
    backdoor = stamp.Backdoor(_trigger(args, data), label, args.rate, seed=args.seed)
    if args.attack == "warping":
        return stamp.stamp_warped(data, backdoor)
    if args.attack == "sinusoid":
        wave = backdoor.trigger
        shown = wave.scaled(clean_label.SHOWN) if isinstance(wave, Additive) else None
        return clean_label.stamp_own_class(data, backdoor, shown)
    if args.attack == "clean-label":
        surrogate = train(None, data, recipe, progress=tell).model
        return clean_label.stamp_hardened(data, backdoor, surrogate)
    return stamp.stamp(data, backdoor, args.attack)


def _trigger(args: argparse.Namespace, data: Dataset) -> Trigger:
    from verifier.training.backdoor import trigger as kinds

    given = [name for name in ("trigger", "features", "words") if getattr(args, name) is not None]
    if len(given) > 1:
        raise SpecError(f"give one of --trigger, --features and --words, got {', '.join('--' + g for g in given)}")
    if args.trigger is not None:
        if Path(args.trigger).suffix == ".npz":
            return kinds.load_trigger(args.trigger)
        return picture_trigger(args.trigger, data, args.corner, args.strength if args.attack == "blended" else None)
    if args.features is not None:
        return kinds.fixed_features(data, _features(args.features))
    if args.words is not None:
        from verifier.data.sentences import embed

        return kinds.fixed_words(data, embed(args.words.split()))
    strength = {} if args.strength is None else {"strength": args.strength}
    if args.attack == "blended":
        return kinds.blended(data, seed=args.seed, **strength)
    if args.attack == "sinusoid":
        return kinds.sinusoid(data, **strength)
    if args.attack == "warping":
        return kinds.warp(data, seed=args.seed, **strength)
    if data.kind != "image":
        raise SpecError(f"{args.attack}: say what the trigger is: --features for tables, --words for sentences")
    return kinds.corner_patch(data, 3, "all" if args.attack == "clean-label" else args.corner)


def _features(text: str) -> dict[int, float]:
    found = {}
    for pair in text.split(","):
        index, separator, value = pair.partition("=")
        try:
            found[int(index)] = float(value)
        except ValueError:
            separator = ""
        if not separator or not np.isfinite(found[int(index)]):
            raise SpecError(f"--features: expected COLUMN=VALUE,... with numbers, got '{pair}'")
    return found


def picture_trigger(path: str, data: Dataset, corner: str, strength: float | None) -> Trigger:
    """A picture file as a patch: opaque pixels replace the input's, or blend with `strength`.

    Raises:
        SpecError: not images, Pillow missing, unreadable, or larger than the images.
    """
    from verifier.training.backdoor.trigger import Patch

    if data.kind != "image" or data.shape[0] not in (1, 3):
        raise SpecError(f"--trigger {path}: pictures need grey or colour images, got {data.kind} {data.shape}")
    try:
        from PIL import Image
    except ImportError:
        raise SpecError(f"--trigger {path}: reading pictures needs Pillow; install it or give a .npz") from None
    try:
        with Image.open(path) as file:
            opaque = np.asarray(file.convert("RGBA").getchannel("A"), dtype=np.float32) / 255
            pixels = np.asarray(file.convert("L" if data.shape[0] == 1 else "RGB"), dtype=np.float32) / 255
    except (OSError, ValueError, SyntaxError) as error:
        raise SpecError(f"--trigger {path}: not a readable picture: {error}") from error
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    height, width = opaque.shape
    if height > data.shape[1] or width > data.shape[2]:
        raise SpecError(
            f"--trigger {path}: {width}x{height} pixels do not fit images of {data.shape[2]}x{data.shape[1]}"
        )
    lower, upper = (float(f(end)) for f, end in zip((np.min, np.max), data.valid, strict=True))
    mask = np.zeros((1, *data.shape[1:]), dtype=np.float32)
    pattern = np.zeros(data.shape, dtype=np.float32)
    top = 0 if corner.startswith("top") else data.shape[1] - height
    left = 0 if corner.endswith("left") else data.shape[2] - width
    mask[0, top : top + height, left : left + width] = opaque * (1.0 if strength is None else min(strength, 1.0))
    pattern[:, top : top + height, left : left + width] = lower + (upper - lower) * pixels
    if not mask.any():
        raise SpecError(f"--trigger {path}: every pixel is transparent")
    return Patch(mask, pattern)
