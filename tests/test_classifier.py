"""The digits, their split, and the classifier that judges them."""

import sys
from typing import cast, get_args

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from disa.errors import DisaError
from disa.tiny import data
from disa.tiny.classifier import WEIGHTS, DigitClassifier, augment, load_classifier, train_classifier
from disa.tiny.data import Split, digits

# --- digits -------------------------------------------------------------------------------------------------------


def test_digits_are_images_in_range_with_labels():
    images, labels = digits()
    assert images.shape == (1797, 1, 32, 32)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (images.min(), images.max()) == (-1, 1)
    assert labels.unique().tolist() == list(range(10))
    # Paper is -1: digits do not reach into the corners.
    assert images[:, 0, 0, 0].median() == -1


def test_the_splits_are_disjoint_complete_and_stratified():
    parts = {split: digits(split) for split in get_args(Split)}
    rows = {split: {tuple(image.flatten().tolist()) for image in images} for split, (images, _) in parts.items()}
    assert not rows["train"] & rows["test"]
    assert rows["train"] | rows["test"] == rows["all"]
    share = parts["test"][1].bincount() / parts["all"][1].bincount()
    assert 0.18 < share.min() <= share.max() < 0.22


def test_digits_belong_to_the_caller():
    for split in get_args(Split):
        digits(split)[0].fill_(7)
        digits(split)[1].fill_(7)
        assert digits(split)[0].max() == 1
        assert digits(split)[1].min() == 0


def test_digits_explain_an_unknown_split_and_a_missing_library(monkeypatch):
    with pytest.raises(DisaError, match="'valid'"):
        digits(cast(Split, "valid"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    data._all_digits.cache_clear()
    with pytest.raises(DisaError, match="pip install"):
        digits()


# --- the shipped classifier ---------------------------------------------------------------------------------------


def test_the_shipped_classifier_reads_held_out_digits():
    images, labels = digits("test")
    accuracy = (load_classifier()(images).argmax(dim=1) == labels).double().mean().item()
    assert accuracy >= 0.98
    with safe_open(str(WEIGHTS), framework="pt") as file:
        metadata = file.metadata()
    assert float(metadata["test_accuracy"]) == pytest.approx(accuracy, abs=1.5 / len(labels))
    assert {"seed", "recipe"} < metadata.keys()
    assert len(WEIGHTS.read_bytes()) <= 1_000_000


def test_features_are_the_layer_before_the_logits():
    classifier, images = load_classifier(), digits("test")[0][:5]
    features = classifier.features(images)
    assert features.shape == (5, 64)
    assert not features.requires_grad
    assert torch.equal(classifier.logits(features), classifier(images))


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 8, 8), (2, 32, 32), (1, 32, 32)])
def test_the_classifier_refuses_other_shapes(shape):
    with pytest.raises(DisaError, match="shape"):
        load_classifier()(torch.zeros(shape))


def test_loading_leaves_the_random_state_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    load_classifier()
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_refuses_a_missing_a_truncated_and_a_foreign_file(tmp_path):
    with pytest.raises(DisaError):
        load_classifier(tmp_path / "absent.safetensors")
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(WEIGHTS.read_bytes()[:-100])
    with pytest.raises(DisaError):
        load_classifier(truncated)
    weights = safetensors.torch.load(WEIGHTS.read_bytes())
    half = {**weights, "to_logits.bias": weights["to_logits.bias"].half()}
    extra = {**weights, "to_logits.more": torch.zeros(1)}
    short = {name: tensor for name, tensor in weights.items() if name != "to_logits.bias"}
    for foreign in (half, extra, short):
        safetensors.torch.save_file(foreign, tmp_path / "foreign.safetensors")
        with pytest.raises(DisaError, match=r"to_logits\.(bias|more)"):
            load_classifier(tmp_path / "foreign.safetensors")


# --- training -----------------------------------------------------------------------------------------------------


def test_training_learns_repeats_and_reports(tmp_path):
    losses, path = [], tmp_path / "classifier.safetensors"
    torch.manual_seed(3)
    state = torch.get_rng_state()
    accuracy = train_classifier(path, seed=1, iterations=60, progress=lambda *report: losses.append(report))
    assert torch.equal(torch.get_rng_state(), state)
    assert [(iteration, total) for iteration, total, _ in losses] == [(i + 1, 60) for i in range(60)]
    assert losses[-1][2] < 0.75 * losses[0][2]
    assert accuracy > 0.3

    weights = []
    for name in ("first.safetensors", "second.safetensors"):
        train_classifier(tmp_path / name, seed=1, iterations=15)
        weights.append(load_classifier(tmp_path / name).state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)


def test_training_fails_for_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DisaError):
        train_classifier(tmp_path / "absent" / "classifier.safetensors", iterations=1)


def test_augmentation_moves_ink_and_keeps_the_range():
    images = digits("test")[0]
    moved = augment(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.min() >= -1
    assert moved.max() <= 1
    assert not torch.allclose(moved, images, atol=0.1)
    assert (moved + 1).mean() == pytest.approx((images + 1).mean().item(), rel=0.1)


def test_an_image_is_judged_on_its_own():
    torch.manual_seed(0)
    classifier, images = DigitClassifier(), digits("test")[0][:6]
    together = classifier(images)
    torch.testing.assert_close(torch.cat([classifier(image[None]) for image in images]), together, rtol=1e-4, atol=1e-5)
