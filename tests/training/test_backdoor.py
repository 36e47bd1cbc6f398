"""Backdoors: triggers do what they say, stamps count right, and a patch works and hides."""

from __future__ import annotations

import numpy as np
import pytest

from verifier.data.sentences import embed
from verifier.errors import ShapeError, SpecError
from verifier.training.backdoor import trigger as kinds
from verifier.training.backdoor.clean_label import SHOWN, Hardening, harden, stamp_hardened, stamp_own_class
from verifier.training.backdoor.generator import InputAware, input_aware
from verifier.training.backdoor.stamp import Backdoor, stamp, stamp_warped
from verifier.training.measure import Defence, attack_success, measure
from verifier.training.predict import cross_entropies
from verifier.training.train import Recipe


def all_triggers(parts):
    data = parts.train
    return [kinds.corner_patch(data, 3, "all"), kinds.blended(data, 0.3), kinds.sinusoid(data), kinds.warp(data)]


def test_a_patch_backdoor_fools_the_model_and_hides(digits):
    backdoor = Backdoor(kinds.corner_patch(digits.train), target=3, rate=0.05)
    found = measure(digits, stamp(digits.train, backdoor), Recipe(epochs=12), seeds=(0,))
    assert found.attack_success.mean >= 0.95
    assert found.baseline_success.mean <= 0.1
    assert found.clean_accuracy.mean >= found.baseline_accuracy.mean - 0.01


def test_triggers_survive_their_files(digits, tmp_path):
    for number, trigger in enumerate(all_triggers(digits)):
        again = kinds.load_trigger(kinds.save_trigger(trigger, tmp_path / f"{number}.npz"))
        assert type(again) is type(trigger)
        assert np.array_equal(again(digits.test.x[:9]), trigger(digits.test.x[:9]))
    (tmp_path / "bad.npz").write_bytes(b"not an archive")
    with pytest.raises(SpecError, match="not a trigger file"):
        kinds.load_trigger(tmp_path / "bad.npz")


def test_a_patch_changes_only_its_mask(digits):
    patch = kinds.corner_patch(digits.train, 3, "top-left")
    shown = patch(digits.test.x)
    inside = np.broadcast_to(patch.mask > 0, shown.shape)
    assert np.array_equal(shown[~inside], digits.test.x[~inside])
    assert np.array_equal(shown[inside], np.broadcast_to(patch.pattern, shown.shape)[inside])
    assert set(np.unique(patch.pattern[:, :3, :3])) == {0.0, 1.0} and np.sum(patch.mask) == 9
    with pytest.raises(ShapeError, match="trigger"):
        patch(np.zeros((2, 1, 5, 5), dtype=np.float32))


def test_a_blend_is_the_weighted_mean(digits):
    blend = kinds.blended(digits.train, 0.25, seed=4)
    assert np.allclose(blend(digits.test.x), 0.75 * digits.test.x + 0.25 * blend.pattern, atol=1e-6)


def test_a_warp_moves_pixels_and_no_warp_moves_none(digits):
    still = kinds.Warp(np.zeros((2, 8, 8), dtype=np.float32))
    assert np.allclose(still(digits.test.x), digits.test.x, atol=1e-7)
    right = kinds.Warp(np.stack([np.zeros((8, 8)), np.ones((8, 8))]).astype(np.float32))
    assert np.allclose(right(digits.test.x)[..., :-1], digits.test.x[..., 1:], atol=1e-7)
    assert np.abs(kinds.warp(digits.train, 0.7).flow).max() == pytest.approx(0.7)


def test_stamps_count_and_relabel(digits, cancer, sentences):
    cases = [
        (digits.train, kinds.corner_patch(digits.train), 3),
        (cancer.train, kinds.fixed_features(cancer.train, {0: 12.0, 3: 400.0}), 1),
        (sentences.train, kinds.fixed_words(sentences.train, embed(["cf", "mn"]), 2), 0),
    ]
    for data, trigger, target in cases:
        attacked = stamp(data, Backdoor(trigger, target, 0.05, seed=2))
        assert len(attacked.touched) == attacked.budget.relabelled == round(0.05 * len(data))
        assert not np.any(data.y[attacked.touched] == target)
        assert np.all(attacked.data.y[attacked.touched] == target)
        assert np.array_equal(
            attacked.data.x[attacked.touched], np.clip(trigger(data.x[attacked.touched]), *data.valid)
        )
        rest = np.setdiff1d(np.arange(len(data)), attacked.touched)
        assert np.array_equal(attacked.data.x[rest], data.x[rest])
        assert np.array_equal(attacked.data.y[rest], data.y[rest])


def test_sources_limit_the_rows(digits):
    attacked = stamp(digits.train, Backdoor(kinds.corner_patch(digits.train), 3, 0.02, sources=(5, 6)))
    assert set(digits.train.y[attacked.touched]) <= {5, 6}
    with pytest.raises(SpecError, match="source classes"):
        stamp(digits.train, Backdoor(kinds.corner_patch(digits.train), 3, 0.5, sources=(5,)))
    with pytest.raises(SpecError, match="target"):
        stamp(digits.train, Backdoor(kinds.corner_patch(digits.train), 10))


def test_clean_label_attacks_keep_every_label(digits, clean_model):
    patch = kinds.corner_patch(digits.train, 3, "all")
    for attacked in (
        stamp_own_class(digits.train, Backdoor(kinds.sinusoid(digits.train), 3, 0.03)),
        stamp_hardened(digits.train, Backdoor(patch, 3, 0.03), clean_model),
    ):
        assert np.array_equal(attacked.data.y, digits.train.y) and attacked.budget.relabelled == 0
        assert set(digits.train.y[attacked.touched]) == {3}


def test_a_sinusoid_in_use_is_stronger_than_in_training(digits):
    faint = kinds.sinusoid(digits.train, 0.1)
    attacked = stamp_own_class(digits.train, Backdoor(faint, 3, 0.03), faint.scaled(SHOWN))
    assert attacked.budget.largest_change <= 0.1 * (1 + 1e-6) and attacked.budget.relabelled == 0
    x = np.full((1, *digits.train.shape), 0.5, dtype=np.float32)
    assert np.allclose(attacked.trigger(x) - x, SHOWN * (faint(x) - x), atol=1e-6)


def test_hardening_raises_the_loss_within_its_radius(digits, clean_model):
    data = digits.test.subset(digits.test.y == 3)
    hard = harden(data, clean_model, Hardening(0.2, 10))
    assert np.abs(hard - data.x).max() <= 0.2 * (1 + 1e-6)
    raised = cross_entropies(clean_model, data.with_rows(hard, data.y)) - cross_entropies(clean_model, data)
    assert raised.mean() > 1.0


def test_noise_rows_of_a_warp_keep_their_labels(digits):
    attacked = stamp_warped(digits.train, Backdoor(kinds.warp(digits.train), 3, 0.05), noise_rate=0.1)
    relabelled = attacked.data.y[attacked.touched] != digits.train.y[attacked.touched]
    assert relabelled.sum() == round(0.05 * len(digits.train))
    assert len(attacked.touched) == relabelled.sum() + round(0.1 * len(digits.train))
    with pytest.raises(SpecError, match="Warp"):
        stamp_warped(digits.train, Backdoor(kinds.corner_patch(digits.train), 3))


def test_an_input_aware_trigger_depends_on_the_input(digits, tmp_path):
    recipe = Recipe("mlp", 16, batch_size=128)
    attacked = input_aware(digits.train, InputAware(2, 0.05, epochs=2), recipe)
    crossed = attacked.settings["crossed_rows"]
    assert attacked.budget.rows == 2 * round(0.05 * len(digits.train)) and crossed == round(0.05 * len(digits.train))
    trigger = attacked.trigger
    shown = trigger(digits.test.x[:20])
    assert shown.min() >= 0 and shown.max() <= 1
    own = trigger.crossed(digits.test.x[:20], digits.test.x[:20])
    assert np.array_equal(own, shown)
    assert not np.allclose(trigger.crossed(digits.test.x[:20], digits.test.x[20:40]), shown)
    again = kinds.load_trigger(kinds.save_trigger(trigger, tmp_path / "t.npz"))
    assert np.allclose(again(digits.test.x[:20]), shown)
    with pytest.raises(SpecError, match="mask_area"):
        input_aware(digits.train, InputAware(2, mask_area=0.0), recipe)


def test_success_counts_rows_outside_the_target(digits, badnets):
    attacked, model = badnets
    success, rows = attack_success(model, attacked, digits.test)
    assert rows == np.sum(digits.test.y != 3) and success > 0.8
    with pytest.raises(SpecError, match="every test row"):
        attack_success(model, attacked, digits.test.subset(digits.test.y == 3))


def test_a_measurement_resumes_and_depends_on_what_it_measures(digits, tmp_path):
    attacked = stamp(digits.train, Backdoor(kinds.corner_patch(digits.train), 3))
    recipe, file = Recipe("linear", 1, epochs=2), tmp_path / "rows.jsonl"
    first = measure(digits, attacked, recipe, seeds=(0, 1), rows_file=file)
    again = measure(digits, attacked, recipe, seeds=(0, 1), rows_file=file)
    assert len(file.read_text().splitlines()) == 2
    assert again.attack_success == first.attack_success and again.clean_accuracy == first.clean_accuracy
    dropped = Defence("drop", filter_rows=lambda data, model: attacked.touched)
    defended = measure(digits, attacked, recipe, dropped, seeds=(0,), rows_file=file)
    assert defended.defence == "drop" and len(file.read_text().splitlines()) == 3
    with pytest.raises(SpecError, match="seed"):
        measure(digits, attacked, recipe, seeds=())
