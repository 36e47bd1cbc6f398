"""Our poisons and row detectors beside ART's: same data, surrogates, budgets and iterations, one process.

    pip install adversarial-robustness-toolbox
    python benchmarks/peers/poisons.py [--trials N] [--seed N] [--out FILE]

Packaged digits. Attacks: success after retraining from scratch with our recipe. Detectors: BadNets
rows at 5 %, both told the expected share. Times are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn

from verifier.data import Dataset, Split
from verifier.data.dataset import split
from verifier.data.packaged import packaged
from verifier.training.backdoor.stamp import Backdoor, stamp
from verifier.training.backdoor.trigger import corner_patch
from verifier.training.detect.clustering import activation_clustering
from verifier.training.detect.spectral import Spectral, spectral_signatures
from verifier.training.poison.collision import Collision, bullseye
from verifier.training.poison.matching import Matching, gradient_matching
from verifier.training.poison.victim import Victim, bases_near, random_victim
from verifier.training.predict import labels
from verifier.training.train import DIGITS_CNN, train

RATE, RADIUS, STEPS = 0.02, 0.6, 100

INTRODUCTION = f"""# The training phase beside adversarial-robustness-toolbox

Packaged digits, same surrogate, victim, budget ({RATE:.0%} of the rows), radius ({RADIUS}) and {STEPS}
iterations for both tools, one surrogate, no restarts; ART's other settings are its defaults, and its schedules
are written for thousands of iterations on colour images. ART's gradient matching draws its rows from the wanted
class, ours takes the nearest to the victim. The detectors look for a BadNets patch on 5 % of the rows; ART
reads the last layer, ours the layer after the convolutions, whitened. Success: after retraining from scratch. 2
cores, AMD EPYC, one thread, shared machine. Made by `python benchmarks/peers/poisons.py --out FILE`.
""".splitlines()


@dataclass(frozen=True)
class Task:
    """What an attack is given: clean rows, one surrogate, whom to mislead."""

    data: Dataset
    surrogate: nn.Module
    victim: Victim
    seed: int


def art_classifier(model: nn.Module, data: Dataset):
    """The model in ART's wrapper."""
    from art.estimators.classification import PyTorchClassifier

    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), data.shape, len(data.classes), optimizer, clip_values=(0, 1), device_type="cpu"
    )


def art_matching(task: Task) -> Dataset:
    """ART's gradient matching; it draws the rows of the wanted class itself."""
    from art.attacks.poisoning import GradientMatchingAttack

    attack = GradientMatchingAttack(
        art_classifier(task.surrogate, task.data),
        percent_poison=RATE,
        epsilon=RADIUS,
        max_trials=1,
        max_epochs=STEPS,
        learning_rate_schedule=([1e-1, 1e-2, 1e-3, 1e-4], [STEPS // 2, STEPS * 3 // 4, STEPS * 7 // 8, STEPS]),
        verbose=0,
    )
    data, victim = task.data, task.victim
    x, _ = attack.poison(victim.x[None], np.array([victim.wanted]), data.x.copy(), data.y.copy())
    return data.with_rows(np.asarray(x, dtype=np.float32), data.y)


def art_bullseye(task: Task) -> Dataset:
    """ART's bullseye polytope on the rows that ours would poison."""
    from art.attacks.poisoning import BullseyePolytopeAttackPyTorch

    data, rows = task.data, bases_near(task.victim, task.data, RATE)
    attack = BullseyePolytopeAttackPyTorch(
        art_classifier(task.surrogate, data),
        task.victim.x[None],
        feature_layer=len(list(task.surrogate.children())) - 2,
        max_iter=STEPS,
        epsilon=RADIUS,
        verbose=False,
    )
    poisons, _ = attack.poison(data.x[rows], np.eye(len(data.classes), dtype=np.float32)[data.y[rows]])
    x = data.x.copy()
    x[rows] = poisons
    return data.with_rows(x, data.y)


def our_bullseye(task: Task) -> Dataset:
    """Ours within the same radius."""
    settings = Collision(RATE, radius=RADIUS, steps=STEPS)
    return bullseye(task.data, task.victim, [task.surrogate], settings).data


def our_matching(task: Task) -> Dataset:
    """Ours within the same radius."""
    settings = Matching(RATE, RADIUS, STEPS, seed=task.seed)
    return gradient_matching(task.data, task.victim, [task.surrogate], settings).data


ATTACKS: dict[str, tuple[Callable[[Task], Dataset], Callable[[Task], Dataset]]] = {
    "gradient matching": (our_matching, art_matching),
    "bullseye polytope": (our_bullseye, art_bullseye),
}


def attack_lines(parts: Split, seeds: range) -> list[str]:
    """One line an attack and tool."""
    lines = []
    for name, tools in ATTACKS.items():
        for tool, attack in zip(("ours", "ART"), tools, strict=True):
            hits, spent = 0, 0.0
            for seed in seeds:
                surrogate = train(None, parts.train, replace(DIGITS_CNN, seed=1000 + seed)).model
                victim = random_victim(parts.test, seed)
                began = time.process_time()
                poisoned = attack(Task(parts.train, surrogate, victim, seed))
                spent += time.process_time() - began
                fresh = train(None, poisoned, replace(DIGITS_CNN, seed=seed)).model
                hits += int(labels(fresh, victim.x[None])[0] == victim.wanted)
            lines.append(f"| {name} | {tool} | {hits} of {len(seeds)} succeed | {spent / len(seeds):.1f} |")
            print(lines[-1], flush=True)
    return lines


def art_spectral(data: Dataset, model: nn.Module) -> np.ndarray:
    """ART's spectral signatures: flagged, bool [n]."""
    from art.defences.detector.poison import SpectralSignatureDefense

    found = SpectralSignatureDefense(art_classifier(model, data), data.x, np.eye(len(data.classes))[data.y])
    found.set_params(expected_pp_poison=0.05)
    return np.asarray(found.detect_poison()[1]) == 0


def art_clustering(data: Dataset, model: nn.Module) -> np.ndarray:
    """ART's activation clustering: flagged, bool [n]."""
    from art.defences.detector.poison import ActivationDefence

    found = ActivationDefence(art_classifier(model, data), data.x, np.eye(len(data.classes))[data.y])
    return np.asarray(found.detect_poison(nb_clusters=2, nb_dims=10, reduce="PCA")[1]) == 0


Detector = Callable[[Dataset, nn.Module], np.ndarray]
DETECTORS: dict[str, tuple[Detector, Detector]] = {
    "spectral signatures": (lambda d, m: spectral_signatures(d, m, Spectral(expected=0.05)).flagged, art_spectral),
    "activation clustering": (lambda d, m: activation_clustering(d, m).flagged, art_clustering),
}


def detector_lines(parts: Split, seeds: range) -> list[str]:
    """One line a detector and tool."""
    lines = []
    for name, tools in DETECTORS.items():
        for tool, detect in zip(("ours", "ART"), tools, strict=True):
            hits, alarms, spent = [], [], 0.0
            for seed in seeds:
                bad = stamp(parts.train, Backdoor(corner_patch(parts.train), 3, seed=seed))
                model = train(None, bad.data, replace(DIGITS_CNN, seed=seed)).model
                began = time.process_time()
                flagged = detect(bad.data, model)
                spent += time.process_time() - began
                poisoned = np.isin(np.arange(len(bad.data)), bad.touched)
                hits.append(flagged[poisoned].mean())
                alarms.append(flagged[~poisoned].mean())
            said = f"{np.mean(hits):.0%} found, {np.mean(alarms):.1%} of clean rows flagged"
            lines.append(f"| {name} | {tool} | {said} | {spent / len(seeds):.1f} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--seed", type=int, default=500, help="first of the trials")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    parts, seeds = split(packaged("digits")), range(args.seed, args.seed + args.trials)
    head = ["| method | tool | outcome | CPU seconds |", "| --- | --- | --- | --- |"]
    lines = [*head, *detector_lines(parts, seeds), *attack_lines(parts, seeds)]
    if args.out is not None:
        made = f"{args.trials} trials (from seed {args.seed}), {datetime.now(UTC):%Y-%m-%d}."
        args.out.write_text("\n".join([*INTRODUCTION, "", made, "", *lines]) + "\n")


if __name__ == "__main__":
    main()
