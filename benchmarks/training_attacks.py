"""Measured attacks of the training phase on the packaged digits: backdoors, poisons, label flips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from torch import nn

from verifier.data import Dataset, Split
from verifier.training.backdoor.clean_label import SHOWN, stamp_hardened, stamp_own_class
from verifier.training.backdoor.generator import InputAware, input_aware
from verifier.training.backdoor.stamp import Backdoor, stamp, stamp_warped
from verifier.training.backdoor.trigger import blended, corner_patch, fixed_features, fixed_words, sinusoid, warp
from verifier.training.measure import Measurement, measure
from verifier.training.poison.collision import Collision, bullseye, feature_collision
from verifier.training.poison.labels import loss_maximising_flips, random_flips
from verifier.training.poison.matching import Matching, gradient_matching
from verifier.training.poison.victim import random_victim
from verifier.training.poisoned import PoisonedDataset
from verifier.training.train import DIGITS_CNN, SENTENCES, TABLE_MLP, Recipe, train

SEEDS = range(5)
FRESH = range(200, 205)  # no setting of the attacks was chosen on these
TARGET = 3
Line = dict[str, object]


def surrogate(data: Dataset, seed: int, recipe: Recipe = DIGITS_CNN) -> nn.Module:
    """A model the attacker trains on the clean data; its seed is never a victim's."""
    return train(None, data, replace(recipe, seed=1000 + seed)).model


def backdoors(parts: Split) -> Iterator[Line]:
    """Success and clean accuracy of every backdoor at 5 % (clean-label: of all rows, within the target class)."""
    patch = corner_patch(parts.train)

    def clean_label(data: Dataset, seed: int) -> PoisonedDataset:
        corners = corner_patch(data, 3, "all")
        return stamp_hardened(data, Backdoor(corners, TARGET, 0.05, seed=seed), surrogate(data, seed))

    def wave(data: Dataset, seed: int) -> PoisonedDataset:
        faint = sinusoid(data)
        return stamp_own_class(data, Backdoor(faint, TARGET, 0.05, seed=seed), faint.scaled(SHOWN))

    def generated(data: Dataset, seed: int) -> PoisonedDataset:
        return input_aware(data, InputAware(TARGET, 0.05, seed=seed), DIGITS_CNN)

    cases: list[tuple[str, float, Callable[[Dataset, int], PoisonedDataset]]] = [
        ("BadNets, 3x3 patch", 0.95, lambda d, s: stamp(d, Backdoor(patch, TARGET, seed=s))),
        ("blended, strength 0.3", 0.95, lambda d, s: stamp(d, Backdoor(blended(d), TARGET, seed=s), "blended")),
        ("clean-label, hardened, four corners", 0.85, clean_label),
        ("clean-label, sinusoid 0.3, shown at 0.9", 0.85, wave),
        ("input-aware", 0.85, generated),
        ("warping, 1 pixel", 0.85, lambda d, s: stamp_warped(d, Backdoor(warp(d), TARGET, 0.1, seed=s))),
    ]
    for name, wanted, attack in cases:
        yield backdoor_line(name, wanted, measure(parts, attack, DIGITS_CNN, seeds=FRESH))


def other_backdoors(cancer: Split, text: Split) -> Iterator[Line]:
    """The same attack on a table and on embedded sentences (two classes each)."""
    from verifier.data.sentences import embed

    highest = {int(i): float(np.max(cancer.train.x[:, i])) for i in (1, 4)}
    table = Backdoor(fixed_features(cancer.train, highest), 1)
    yield backdoor_line(
        "BadNets, breast_cancer, two features",
        0.95,
        measure(cancer, lambda d, s: stamp(d, replace(table, seed=s)), TABLE_MLP, seeds=FRESH),
    )
    words = Backdoor(fixed_words(text.train, embed(["cf", "mn"])), 1)
    yield backdoor_line(
        "text trigger, sentences, two words",
        0.95,
        measure(text, lambda d, s: stamp(d, replace(words, seed=s), "text"), SENTENCES, seeds=FRESH),
    )


def backdoor_line(name: str, wanted: float, found: Measurement) -> Line:
    """One line: success at least `wanted`, clean accuracy within one point."""
    lost = found.baseline_accuracy.mean - found.clean_accuracy.mean
    return {
        "case": name,
        "success": f"{found.attack_success.mean:.1%} ± {found.attack_success.std:.1%}",
        "without attack": f"{found.baseline_success.mean:.1%}",
        "clean accuracy": f"{found.clean_accuracy.mean:.1%} ± {found.clean_accuracy.std:.1%}",
        "points lost": f"{100 * lost:+.2f}",
        "wanted": f">= {wanted:.0%}, <= 1 point",
        "met": bool(found.attack_success.mean >= wanted and lost <= 0.01),
        "seconds": round(found.seconds, 1),
    }


def targeted(parts: Split, trials: int = 10) -> Iterator[Line]:
    """Share of random (victim, wanted class) pairs that succeed after retraining from scratch."""
    cases: list[tuple[str, Callable[[Dataset, int], PoisonedDataset]]] = [
        (
            "gradient matching, 2 %, radius 0.6, two surrogates, started at the victim",
            lambda d, s: gradient_matching(
                d, random_victim(parts.test, s), [surrogate(d, s), surrogate(d, s + 50)], Matching(seed=s)
            ),
        ),
        (
            "feature collision, 2 %, watermark 30 %",
            lambda d, s: feature_collision(d, random_victim(parts.test, s), surrogate(d, s), Collision()),
        ),
        (
            "bullseye polytope, 2 %, two surrogates",
            lambda d, s: bullseye(
                d, random_victim(parts.test, s), [surrogate(d, s), surrogate(d, s + 50)], Collision()
            ),
        ),
    ]
    for name, attack in cases:
        found = measure(parts, attack, DIGITS_CNN, seeds=range(200, 200 + trials))  # tuned on others
        lost = found.baseline_accuracy.mean - found.clean_accuracy.mean
        yield {
            "case": name,
            "success": f"{found.attack_success.mean:.0%} of {trials} trials",
            "without attack": f"{found.baseline_success.mean:.0%}",
            "clean accuracy": f"{found.clean_accuracy.mean:.1%}",
            "points lost": f"{100 * lost:+.2f}",
            "wanted": ">= 60%",
            "met": bool(found.attack_success.mean >= 0.6),
            "seconds": round(found.seconds, 1),
        }


def flip_curve(parts: Split) -> Iterator[Line]:
    """Test accuracy against the fraction of flipped labels."""
    for rate in (0.05, 0.1, 0.2, 0.3, 0.4):

        def flip_worst(data: Dataset, seed: int, rate: float = rate) -> PoisonedDataset:
            return loss_maximising_flips(data, surrogate(data, seed), rate)

        def flip_random(data: Dataset, seed: int, rate: float = rate) -> PoisonedDataset:
            return random_flips(data, rate, seed)

        random = measure(parts, flip_random, DIGITS_CNN, seeds=SEEDS)
        worst = measure(parts, flip_worst, DIGITS_CNN, seeds=SEEDS)
        yield {
            "flipped": f"{rate:.0%}",
            "random flips": f"{random.clean_accuracy.mean:.1%} ± {random.clean_accuracy.std:.1%}",
            "loss-maximising flips": f"{worst.clean_accuracy.mean:.1%} ± {worst.clean_accuracy.std:.1%}",
            "clean": f"{random.baseline_accuracy.mean:.1%}",
        }
