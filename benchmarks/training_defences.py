"""Measured defences of the training phase: aggregators, row and model detectors, repair, certificates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from torch import nn
from training_attacks import FRESH, SEEDS, TARGET, Line

from verifier.data import Split
from verifier.training.backdoor.clean_label import stamp_own_class
from verifier.training.backdoor.stamp import Backdoor, stamp
from verifier.training.backdoor.trigger import Patch, blended, corner_patch, sinusoid
from verifier.training.certify.partition import certified_curve, certified_votes, deep_partition
from verifier.training.certify.smoothed import nearest_neighbour
from verifier.training.detect.clustering import activation_clustering
from verifier.training.detect.rows import recall
from verifier.training.detect.scan import scan
from verifier.training.detect.spectral import spectral_signatures
from verifier.training.detect.strip import strip
from verifier.training.federated.aggregate import AGGREGATORS
from verifier.training.federated.attack import FederatedAttack, distributed_backdoor, model_replacement
from verifier.training.federated.simulate import Federation, simulate
from verifier.training.measure import attack_success, spread
from verifier.training.poisoned import PoisonedDataset
from verifier.training.predict import accuracy
from verifier.training.repair.methods import METHODS, Job, repair
from verifier.training.train import DIGITS_CNN, DIGITS_MLP, train

FEDERATED_SEEDS = range(3)  # 120 federations of 80 rounds in all


def four_bars(parts: Split) -> Patch:
    """Four separate two-pixel bars near the corners, the trigger that a distributed attack splits."""
    mask = np.zeros((1, *parts.train.shape[1:]), dtype=np.float32)
    for row, column in ((0, 0), (0, 6), (7, 0), (7, 6)):
        mask[0, row, column : column + 2] = 1.0
    return Patch(mask, mask)


#: Rounds in which malicious clients act: the model has learnt by then, and ten rounds follow to forget in.
ATTACKED = tuple(range(60, 70))


def federated_attacks(parts: Split) -> dict[str, FederatedAttack | None]:
    """By column: none, model replacement in one round, DBA, and two centralised backdoors of DBA's pixels.

    A centralised client stamps four times the pixels of a distributed one, so either the same four
    clients stamp a quarter of the rows, or one client acts alone.
    """
    trigger, four = four_bars(parts), (0, 1, 2, 3)
    turns = tuple(r for r in ATTACKED for _ in four)
    return {
        "none": None,
        "model replacement": model_replacement(trigger, TARGET, rounds=ATTACKED[-1:], scale=10.0),
        "centralised, one client": model_replacement(trigger, TARGET, rounds=ATTACKED),
        "centralised, four clients": model_replacement(trigger, TARGET, four, rounds=ATTACKED, rows=0.125),
        "DBA": distributed_backdoor(trigger, TARGET, four, rounds=turns, rows=0.5),
    }


def federated(parts: Split) -> Iterator[Line]:
    """Every aggregator against every attack: success right after the attack and ten rounds later, accuracy."""
    for rule in AGGREGATORS:
        line: Line = {"aggregator": rule}
        for name, attack in federated_attacks(parts).items():
            runs = [
                simulate(parts.train, parts.test, Federation(aggregator=rule, seed=seed), attack).rounds
                for seed in FEDERATED_SEEDS
            ]
            right = f"{spread([run[-1]['accuracy'] for run in runs]).mean:.0%}"
            if attack is None:
                line["accuracy, no attack"] = right
            else:
                after, later = ([run[r]["success"] for run in runs] for r in (ATTACKED[-1], -1))
                line[name] = f"{spread(after).mean:.0%} ± {spread(after).std:.0%}, {spread(later).mean:.0%} ({right})"
        yield line


def row_detectors(parts: Split) -> Iterator[Line]:
    """Poisoned rows found and clean rows flagged, on three backdoored data sets at 5 %."""
    data, wave = parts.train, sinusoid(parts.train)
    attacks: dict[str, Callable[[int], PoisonedDataset]] = {
        "BadNets": lambda seed: stamp(data, Backdoor(corner_patch(data), TARGET, seed=seed)),
        "blended": lambda seed: stamp(data, Backdoor(blended(data), TARGET, seed=seed)),
        "clean-label sinusoid": lambda seed: stamp_own_class(data, Backdoor(wave, TARGET, seed=seed)),
    }
    for name, attack in attacks.items():
        found: dict[str, list] = {"spectral signatures": [], "activation clustering": [], "STRIP": []}
        for seed in FRESH:
            bad = attack(seed)
            model = train(None, bad.data, replace(DIGITS_CNN, seed=seed)).model
            answers = {
                "spectral signatures": spectral_signatures(bad.data, model),
                "activation clustering": activation_clustering(bad.data, model),
                "STRIP": strip(bad.data, model, parts.trusted),
            }
            for method, scores in answers.items():
                found[method].append(recall(scores, bad.touched, bad.data))
        for method, values in found.items():
            hits, alarms = spread([v.found for v in values]), spread([v.false_alarms for v in values])
            yield {
                "method": method,
                "attack": name,
                "poisoned rows found": f"{hits.mean:.1%} ± {hits.std:.1%}",
                "clean rows flagged": f"{alarms.mean:.1%}",
                "wanted": ">= 90%, <= 10%" if method != "STRIP" else "",
                "met": bool(hits.mean >= 0.9 and alarms.mean <= 0.1) if method != "STRIP" else "",
            }


def zoo(parts: Split, count: int = 10, first_seed: int = 300) -> list[tuple[str, bool, int | None, nn.Module]]:
    """(name, backdoored?, target, model): `count` BadNets models with targets 0..9 and as many clean ones.

    Args:
        first_seed: of the trainings; the detectors' rules were set on models of seeds below 300.
    """
    models: list[tuple[str, bool, int | None, nn.Module]] = []
    for k in range(count):
        corner = ("bottom-right", "top-left", "top-right", "bottom-left")[k % 4]
        bad = stamp(parts.train, Backdoor(corner_patch(parts.train, 3, corner), k % 10, seed=first_seed + k))
        recipe = replace(DIGITS_CNN, seed=first_seed + k)
        models.append((f"backdoored-{k}", True, k % 10, train(None, bad.data, recipe).model))
        clean = train(None, parts.train, replace(recipe, seed=first_seed + 100 + k)).model
        models.append((f"clean-{k}", False, None, clean))
    return models


def model_detectors(parts: Split) -> Iterator[Line]:
    """Neural Cleanse and DL-TND on ten backdoored and ten clean models; the mistakes by name."""
    models, all_mistakes = zoo(parts), 0
    for method in ("neural-cleanse", "dl-tnd"):
        mistakes, right_target = [], 0
        for name, is_bad, target, model in models:
            flagged = scan(model, parts.trusted, (method,)).findings[0].flagged
            if bool(flagged) != is_bad:
                mistakes.append(name)
            right_target += bool(is_bad and flagged and flagged[0] == target)
        all_mistakes += len(mistakes)
        yield {
            "method": method,
            "mistakes of 20": len(mistakes),
            "names": ", ".join(mistakes) or "none",
            "target named first": f"{right_target} of 10",
        }
    yield {"method": "both", "mistakes of 20": all_mistakes, "wanted": "<= 2 in all", "met": all_mistakes <= 2}


def repairs(parts: Split) -> Iterator[Line]:
    """Attack success and accuracy after each repair of a BadNets model, with 180 trusted rows."""
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ("none", *METHODS)}
    for seed in SEEDS:
        bad = stamp(parts.train, Backdoor(corner_patch(parts.train), TARGET, seed=seed))
        model = train(None, bad.data, replace(DIGITS_CNN, seed=seed)).model
        for name in results:
            began = time.monotonic()
            fixed = model if name == "none" else repair(name, Job(model, parts.trusted, seed))
            spent = time.monotonic() - began
            results[name].append((attack_success(fixed, bad, parts.test)[0], accuracy(fixed, parts.test), spent))
    before = spread([row[1] for row in results["none"]]).mean
    for name, rows in results.items():
        success, right = spread([row[0] for row in rows]), spread([row[1] for row in rows])
        lost = before - right.mean
        yield {
            "repair": name,
            "attack success": f"{success.mean:.1%} ± {success.std:.1%}",
            "accuracy": f"{right.mean:.1%} ± {right.std:.1%}",
            "points lost": f"{100 * lost:+.2f}",
            "seconds": f"{spread([row[2] for row in rows]).mean:.1f}",
            "wanted": "" if name == "none" else "< 10%, <= 2 points",
            "met": "" if name == "none" else bool(success.mean < 0.1 and lost <= 0.02),
        }


def certificates(parts: Split, cancer: Split) -> Iterator[Line]:
    """Certified accuracy by number of poisoned rows (DPA) and by change of the features (1-NN, exact)."""
    ensemble = deep_partition(parts.train, replace(DIGITS_MLP, epochs=20, batch_size=16), 50)
    said, radii = certified_votes(ensemble.votes(parts.test.x))
    for r, share in certified_curve(said, radii, parts.test.y)[::3]:
        yield {"certificate": "DPA, digits, 50 parts", "against": f"{r} rows", "certified accuracy": f"{share:.1%}"}
    rows = np.arange(60)
    near = nearest_neighbour(cancer_standardised(cancer).train, cancer_standardised(cancer).test.x[rows], 0.5)
    right = near.labels == cancer.test.y[rows]
    for size in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield {
            "certificate": "exact 1-NN, breast_cancer (standardised), sigma 0.5",
            "against": f"norm {size:g}",
            "certified accuracy": f"{np.mean(right & (near.radii > size)):.1%}",
        }


def cancer_standardised(parts: Split) -> Split:
    """The parts in units of the trusted rows' deviation."""
    center, scale = parts.trusted.x.mean(axis=0), parts.trusted.x.std(axis=0)
    made = [
        replace(p, x=(p.x - center) / scale, valid=(-np.inf, np.inf)) for p in (parts.train, parts.test, parts.trusted)
    ]
    return Split(made[0], made[1], made[2])
