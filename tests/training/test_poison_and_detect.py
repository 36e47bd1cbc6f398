"""Attacks spend what they say; a patch backdoor works; the published check values hold."""

from __future__ import annotations

import numpy as np
import pytest

from verifier.data.dataset import split
from verifier.data.packaged import digits
from verifier.errors import SpecError
from verifier.training.backdoor.stamp import Backdoor, stamp
from verifier.training.backdoor.trigger import corner_patch
from verifier.training.measure import measure
from verifier.training.poison.labels import random_flips, targeted_flips
from verifier.training.train import Recipe


@pytest.fixture(scope="module")
def parts():
    return split(digits())


def test_flips_touch_exactly_the_rows_they_report(parts):
    data = parts.train
    before = data.y.copy()
    poisoned = random_flips(data, 0.1, seed=3)
    changed = np.flatnonzero(poisoned.data.y != data.y)
    assert np.array_equal(np.sort(poisoned.touched), changed)
    assert len(changed) == round(0.1 * len(data))
    assert np.array_equal(before, data.y), "the given data set was altered"
    aimed = targeted_flips(data, 3, 8, 0.01)
    moved = aimed.data.y != data.y
    assert set(data.y[moved]) == {3} and set(aimed.data.y[moved]) == {8}
    with pytest.raises(SpecError):
        random_flips(data, 1.5)


def test_a_patch_backdoor_fools_the_model_and_hides(parts):
    backdoor = Backdoor(corner_patch(parts.train), target=3, rate=0.05)
    found = measure(parts, stamp(parts.train, backdoor), Recipe(epochs=12), seeds=(0, 1))
    assert found.attack_success.mean >= 0.95
    assert found.baseline_success.mean <= 0.1
    assert found.clean_accuracy.mean >= found.baseline_accuracy.mean - 0.01
