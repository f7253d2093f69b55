"""The command line with prompts and pictures: a small Harmon with random weights draws, describes and is measured."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import small
from command import Command, complaint, files, only_whole
from disa.cli.drawing import _texts
from disa.draw.inputs import Inputs
from disa.draw.prompts import read_prompts, slug
from disa.draw.resizing import squared
from disa.draw.sampler import Sampler
from disa.models.harmon.names import official_names
from disa.models.harmon.text import FixedLength, Text
from disa.models.registry import PRESETS
from disa.study.bench import bench
from disa.study.compare import compare
from disa.tiny.measures import MEASURES
from disa.weights.build import build_model
from test_harmon import CONFIG, PRESET, random_weights, tokenizer

pytest.importorskip("transformers")

QUICK = ("--num-ar-steps", 2, "--steps", "constant:2", "--device", "cpu")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model's folder names the preset that it stands for."""
    monkeypatch.setitem(PRESETS, PRESET.name, PRESET)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    return tokenizer(folder, "<|im_start|>", "<|im_end|>", "<|endoftext|>")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Path:
    """A model folder of 16 tokens, its tokenizer in it."""
    state = random_weights(CONFIG).state_dict()
    built = Sampler(PRESET, build_model(PRESET, state, "the small model"), device="cpu", tokenizer=words)
    return built.save_pretrained(tmp_path_factory.mktemp("models") / "harmon")


@pytest.fixture(scope="module")
def mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.folder(tmp_path_factory.mktemp("models") / "mar")


@pytest.fixture
def sampler(model: Path) -> Sampler:
    return Sampler.load(model, device="cpu")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


# -- sample --------------------------------------------------------------------------------------------------------


def test_prompts_and_seeds_are_paired_and_name_the_files(
    disa: Command, model: Path, sampler: Sampler, tmp_path: Path
) -> None:
    arguments = ("--prompt", "a red circle", "--prompt", "A blue/../square!", "--seeds", "3,5")
    report = disa("sample", "--model", model, *arguments, *QUICK, "--out", tmp_path, "--json").json()
    assert report["prompts"] == ["a red circle", "A blue/../square!"]
    first, second = report["files"]
    assert first == "samples/seed000003_a-red-circle.png"
    assert second.startswith("samples/seed000005_a-blue-square-")
    assert only_whole(tmp_path) == sorted([first, second, "grid.png", "trace.json"])
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert report == trace | {"drawn": 2, "out": str(tmp_path)}
    drawn = sampler.sample(prompts="a red circle", seeds=3, steps="constant:2", num_ar_steps=2, output_type="pil")
    assert (pixels(tmp_path / first) == np.array(drawn.images[0])).all()


def test_a_single_prompt_is_repeated(disa: Command, model: Path, tmp_path: Path) -> None:
    arguments = ("--prompt", "a cat", "--seeds", "0-2", "--negative-prompt", "a dog", "--size", "4x6")
    done = disa("sample", "--model", model, *arguments, *QUICK, "--out", tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("3 images: ")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["files"] == [f"samples/seed00000{seed}_a-cat.png" for seed in range(3)]
    assert (trace["negative_prompt"], trace["settings"]["size"]) == ("a dog", [4, 6])
    assert pixels(tmp_path / trace["files"][0]).shape == (4, 6, 3)


def test_rewritten_prompts_are_told(disa: Command, model: Path, sampler: Sampler, tmp_path: Path) -> None:
    arguments = ("sample", "--model", model, "--prompt", "a cat", "--seeds", "3-4", *QUICK, "--out", tmp_path)
    report = disa(*arguments, "--rewrite", "--json").json()
    assert report["rewritten"] == sampler.rewrite(["a cat"] * 2, [3, 4])
    assert report["files"] == [f"samples/seed00000{seed}_a-cat.png" for seed in (3, 4)]
    assert "drew" in disa(*arguments, "--rewrite").out
    assert "rewritten" not in disa(*arguments, "--replace", "--json").json()


def test_geneval_gets_its_folders(disa: Command, model: Path, sampler: Sampler, tmp_path: Path) -> None:
    lines = [{"tag": "colors", "include": [{"count": 1}], "prompt": "a red cup"}, {"tag": "x", "prompt": "two ünits"}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("--prompts", tmp_path / "list.jsonl", "--per-prompt", 2, "--seeds", "7-8", "--geneval")
    out = tmp_path / "out"
    report = disa("sample", "--model", model, *arguments, *QUICK, "--out", out, "--json").json()
    each = ["grid.png", "metadata.jsonl", "samples/00000.png", "samples/00001.png"]
    assert files(out) == [*(f"{i}/{name}" for i in ("00000", "00001") for name in each), "trace.json"]
    assert [json.loads((out / i / "metadata.jsonl").read_text()) for i in ("00000", "00001")] == lines
    assert report["seeds"] == [7, 8, 7, 8]
    assert report["files"] == [f"0000{i}/samples/0000{j}.png" for i in range(2) for j in range(2)]
    drawn = sampler.sample(prompts="two ünits", seeds=8, steps="constant:2", num_ar_steps=2, output_type="pil")
    assert (pixels(out / "00001/samples/00001.png") == np.array(drawn.images[0])).all()


def test_a_prompt_draws_inside_the_box_only(disa: Command, model: Path, tmp_path: Path) -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    Image.fromarray(picture).save(tmp_path / "in.png")
    arguments = ("--prompt", "a cat", "--keep", tmp_path / "in.png", "--box", "1,0,3,2")
    report = disa("sample", "--model", model, *arguments, *QUICK, "--out", tmp_path / "out", "--json").json()
    same = (pixels(tmp_path / "out" / report["files"][0]) == picture).all(-1)
    assert same.sum() >= 12
    assert not same[1:3, :2].all()
    same[1:3, :2] = True
    assert same.all()


# -- prompts as users give them ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ['["a cat", "a dog"]', '[{"prompt": "a cat"}, {"prompt": "a dog"}]', '{"prompt": "a cat"}\n\n{"prompt": "a dog"}'],
)
def test_files_of_prompts(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    assert [entry["prompt"] for entry in read_prompts(tmp_path / "file")] == ["a cat", "a dog"]


def test_slugs_are_safe_short_and_tell_prompts_apart() -> None:
    prompts = [
        "a cat",
        "A cat",
        "a  cat",
        "a-cat",
        "一只猫",
        "一只狗",
        "../../etc",
        "x " * 300,
        "x " * 301,
        "\x1b[1m",
        "con",
    ]
    slugs = [slug(prompt) for prompt in prompts]
    assert slugs[0] == "a-cat"
    assert len(set(slugs)) == len(prompts)
    assert all(len(name) <= 60 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in slugs)


# -- describe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "name"), [("RGB", "a.png"), ("L", "a.jpg"), ("RGBA", "a.webp"), ("P", "a.gif")])
def test_any_picture_is_described(disa: Command, model: Path, sampler: Sampler, tmp_path: Path, mode: str, name: str):
    Image.effect_noise((9, 5), 80).convert("RGB").convert(mode).save(tmp_path / name)
    arguments = ("describe", tmp_path / name, "--model", model, "--device", "cpu", "--max-tokens", 6)
    report = disa(*arguments, "--prompt", "What is it", "--json").json()
    with Image.open(tmp_path / name) as image:
        padded = squared(image).resize((4, 4), Image.Resampling.BICUBIC)
    expected = sampler.describe(torch.from_numpy(np.array(padded) / 255).permute(2, 0, 1)[None].float(), "What is it",
                                max_tokens=6)  # fmt: skip
    assert report["descriptions"] == [{"image": str(tmp_path / name), "text": expected[0]}]
    done = disa(*arguments, "--prompt", "What is it")
    assert (done.code, done.out, done.err) == (0, expected[0] + "\n", "")


def test_pictures_are_padded_with_gray_in_the_middle() -> None:
    padded = np.array(squared(Image.new("L", (2, 5), 200)))
    assert padded.shape == (5, 5, 3)
    assert (padded[:, 1:3] == 200).all()
    assert (np.delete(padded, [1, 2], axis=1) == 127).all()


def noise(width: int, height: int, spread: float, seed: int) -> Image.Image:
    """Grey, the same each time: of some pictures a model of random weights says nothing, whatever the seed."""
    values = np.random.default_rng(seed).normal(128, spread, (height, width))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def test_descriptions_can_be_drawn_by_chance(disa: Command, model: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("a.png", "b.png")):
        noise(8, 8, 90, seed=i).save(tmp_path / name)
    pictures = (tmp_path / "a.png", tmp_path / "b.png")
    arguments = ("describe", *pictures, "--model", model, "--device", "cpu", "--max-tokens", 8, "--temperature", 2)
    first = disa(*arguments, "--seed", 1, "--json").json()
    assert disa(*arguments, "--seed", 1, "--json").json() == first
    others = [disa(*arguments, "--seed", seed, "--json").json()["descriptions"] for seed in (2, 3, 4)]
    assert any(other != first["descriptions"] for other in others)
    lines = disa(*arguments, "--seed", 1).out.splitlines()
    assert lines[0].startswith(f"{pictures[0]}: ")
    assert any(line.startswith(f"{pictures[1]}: ") for line in lines)


def test_a_text_does_not_depend_on_the_pictures_beside_it(disa: Command, model: Path, tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        noise(8, 4 + i, 60 + 20 * i, seed=i + 3).convert("RGB").save(tmp_path / f"{name}.png")
    pictures = [tmp_path / f"{name}.png" for name in "abc"]
    options = ("--model", model, "--device", "cpu", "--max-tokens", 8, "--temperature", 3, "--repetition-penalty", 1.1)
    together = disa("describe", *pictures, *options, "--json").json()
    assert together["repetition_penalty"] == 1.1
    assert len({found["text"] for found in together["descriptions"]}) == 3
    assert disa("describe", *pictures, *options, "--batch-size", 2, "--json").json() == together
    alone = disa("describe", pictures[1], *options, "--json").json()
    assert alone["descriptions"] == together["descriptions"][1:2]
    shown = disa("describe", *pictures, *options)
    assert (shown.code, shown.err) == (0, "")
    printable = "".join(f"{found['image']}: {found['text']}\n" for found in together["descriptions"])
    assert shown.out == printable


def test_the_first_text_is_shown_while_it_is_written(sampler: Sampler) -> None:
    letters, end, made = sampler.text.tokenizer.encode("abc"), sampler.text.stop_ids[0], []

    def turns() -> Iterator[Tensor]:
        for first, second in zip([letters[0], end, end, end], [*letters, end], strict=True):
            made.append(first)
            yield torch.tensor([first, second])

    first, second = _texts(sampler, turns(), 2)
    assert (next(first), len(made)) == ("a", 1)
    assert ("".join(first), len(made)) == ("", 2)
    assert ("".join(second), len(made)) == ("abc", 4)


def test_words_come_as_they_are_made(words: Path) -> None:
    text = Text.load(words, 300, 400)
    ids = [*text.tokenizer.encode("a big cat"), text.stop_ids[0], 5]
    pieces = list(text.pieces(ids))
    assert "".join(pieces) == "a big cat"
    assert [piece for piece in pieces if piece] == ["a", " b", "i", "g", " c", "a", "t"]
    assert "".join(text.pieces([])) == ""


def test_half_a_character_is_held_back() -> None:
    class Bytes(Text):
        def __init__(self) -> None:
            self.stop_ids = []

        def decode(self, ids: Any) -> str:
            return bytes(ids).decode(errors="replace").strip()

    cat = "ü猫!".encode()
    assert [piece for piece in Bytes().pieces(cat) if piece] == ["ü", "猫", "!"]
    assert "".join(Bytes().pieces(cat[:1])) == "\ufffd"


# -- compare and bench ---------------------------------------------------------------------------------------------


def test_compare_takes_prompts_in_turn(disa: Command, model: Path, tmp_path: Path) -> None:
    policies = ("--steps", "constant:3", "--steps", "linear:3-1", "--num-ar-steps", 2, "--device", "cpu")
    arguments = ("--prompt", "a cat", "--prompt", "a dog", "--seeds", "0-2", "--negative-prompt", "a cow")
    report = disa("compare", "--model", model, *arguments, *policies, "--out", tmp_path, "--json").json()
    assert report["prompts"] == ["a cat", "a dog", "a cat"]
    assert (report["negative_prompt"], report["seeds"]) == ("a cow", [0, 1, 2])
    assert report["policies"][0]["quality"] is None
    assert only_whole(tmp_path) == ["compare.json", "compare.png", "steps.png"]


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch, words: Path) -> Sampler:
    """It draws 48x48 pixels, as the judge of shapes reads them."""
    config = replace(CONFIG, latent_size=(48, 48), patch_size=12)
    preset = small.changed(PRESET, architecture=config, quality="shapes", batch_size=24)
    return Sampler(preset, random_weights(config), device="cpu", tokenizer=words)


CAPTIONS = ["a red circle", "a circle and a star"]


def test_shapes_are_judged_by_the_prompts(shapes: Sampler, disa: Command, words: Path, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setitem(PRESETS, PRESET.name, shapes.preset)
    folder = shapes.save_pretrained(tmp_path / "model")
    arguments = ("compare", "--model", folder, "--steps", "constant:2", "--steps", "constant:1", "--num-ar-steps", 2,
                 "--device", "cpu", "--seeds", "0-23", "--out", tmp_path / "out")  # fmt: skip
    prompts = [item for caption in CAPTIONS for item in ("--prompt", caption)]
    report = disa(*arguments, *prompts, "--json").json()
    quality = report["policies"][1]["quality"]
    assert set(quality) == {"overall", "categories", "num_images"}
    assert set(quality["categories"]) == {"colours", "two objects"}
    assert report["policies"][1]["difference"]["low"] <= report["policies"][1]["difference"]["high"]
    assert "the share of pictures that show their prompt" in disa(*arguments, *prompts).out
    assert "quality is not measured: " in disa(*arguments, "--prompt", "a photo of a cup").out


def test_right_pictures_score_higher_than_wrong_ones() -> None:
    from disa.tiny.scenes import draw, sample_scene

    random = np.random.default_rng(0)
    scenes = [sample_scene(random) for _ in range(40)]
    right = torch.stack([torch.from_numpy(draw(scene)).permute(2, 0, 1) for scene, _ in scenes]) / 255
    measure, wanted = MEASURES["shapes"], Inputs.paired(range(40), prompts=[caption for _, caption in scenes])
    assert measure.refusal(right, wanted) == ""
    assert measure.refusal(right[:19], wanted) == "expected 20 images or more, found 19"
    assert measure.refusal(right[..., :32], wanted) == "expected images of 48x48, found 48x32"
    measured = measure.measure([right, right.roll(1, 0)], wanted)
    good, bad = measured.qualities
    assert good.overall.value > 0.9 > 0.5 > bad.overall.value
    difference = measured.differences[1]
    assert measured.differences[0] is None
    assert difference is not None
    assert difference.value == pytest.approx(bad.overall.value - good.overall.value)
    assert difference.high < 0
    assert len(measure.cells(good, difference)) == len(measure.columns)


def test_presets_name_measures_that_there_are() -> None:
    assert {preset.defaults.quality for preset in PRESETS.values()} <= {"", *MEASURES}


def test_compare_as_a_function(sampler: Sampler) -> None:
    settings = sampler.settings(num_ar_steps=2)
    inputs = Inputs.paired([0, 1], prompts="a cat")
    result = compare(sampler, ["constant:2", "constant:1"], inputs, settings)
    assert result.inputs is inputs
    assert result.report()["prompts"] == ["a cat", "a cat"]


def test_bench_needs_neither_weights_nor_tokenizer(disa: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Text, "load", None)
    arguments = ("bench", "--model", PRESET.name, "--steps", "constant:2", "--batch-size", 2, "--repeats", 1)
    report = disa(*arguments, "--untrained", "--prompt-tokens", 9, "--num-ar-steps", 2, "--device", "cpu",
                  "--json").json()  # fmt: skip
    assert report["prompt_tokens"] == 9
    assert [(timing["steps"], timing["batch_size"]) for timing in report["timings"]] == [("constant:2", 2)]


def test_prompts_of_a_fixed_length() -> None:
    text = FixedLength(30)
    assert (len(text.to_draw("any", 16)), len(text.unconditional(None, 16))) == (30, 12)
    built = Sampler.untrained(PRESET.name, device="cpu", tokenizer=text)
    assert len(bench(built, ["constant:1"], [1], built.settings(num_ar_steps=1), repeats=1)) == 1


# -- mistakes ------------------------------------------------------------------------------------------------------

BAD_FILES = {
    "absent.json": None, "binary.json": b"\xff\xfe\x00", "empty.json": b"", "none.json": b"[]", "number.json": b"3",
    "mixed.json": b'["a cat", 3]', "blank.json": b'["a cat", " "]', "object.json": b'{"name": "a cat"}',
    "broken.jsonl": b'{"prompt": "a cat"}\n{"prompt": \n', "deep.json": b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_of_prompts(disa: Command, model: Path, tmp_path: Path, name: str) -> None:
    content = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = complaint(disa("sample", "--model", model, "--prompts", tmp_path / name, "--out", tmp_path / "out"))
    assert name in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("which", "options", "said"),
    [
        ("model", [], "harmon-0.5b draws from prompts: give --prompt or --prompts."),
        ("model", ["--labels", "3"], "harmon-0.5b draws from prompts: give --prompt or --prompts, not --labels"),
        ("mar", ["--prompt", "a cat"], "mar-digits draws from labels: give --labels, not prompts"),
        ("mar", ["--negative-prompt", "a cat"], "--negative-prompt goes with prompts"),
        ("mar", ["--per-prompt", "2"], "--per-prompt goes with prompts"),
        ("mar", ["--geneval"], "--geneval goes with prompts"),
        ("model", ["--prompt", "a cat", "--labels", "3"], "give --labels or --prompt, not both"),
        ("model", ["--prompt", ""], "a prompt is empty: expected words"),
        ("model", ["--prompt", "a", "--prompt", " "], "a prompt is empty: expected words"),
        ("model", ["--prompt", "a <|im_end|>"], "a prompt may not hold <|im_end|>"),
        ("model", ["--prompt", "x" * 400], "the prompt is too long: expected at most"),
        ("model", ["--prompt", "a", "--prompt", "b", "--seeds", "0-2"], "there are 2 and 3"),
        ("model", ["--prompt", "a", "--per-prompt", "0"], "'--per-prompt'"),
        ("model", ["--prompt", "a", "--per-prompt", "1000000000"], "at most 10000000 images at a time"),
        ("model", ["--prompt", "a", "--per-prompt", "2", "--seeds", "0"], "2 images per prompt need 2 seeds, found 1"),
        ("model", ["--prompt", "a", "--size", "4"], "size must be height and width like 512x768, found '4'"),
        ("model", ["--prompt", "a", "--size", "0x4"], "height and width must be multiples of 1, found 0x4"),
        ("model", ["--prompt", "a", "--tokenizer", "./absent"], "no tokenizer at './absent'"),
    ],
)
def test_sample_refuses(
    disa: Command, request: pytest.FixtureRequest, tmp_path: Path, which: str, options: list[str], said: str,
) -> None:  # fmt: skip
    folder = request.getfixturevalue(which)
    done = disa("sample", "--model", folder, "--num-ar-steps", 2, *options, "--out", tmp_path / "out", "--json")
    assert said in complaint(done)
    assert not (tmp_path / "out").exists()


def test_weights_are_not_read_for_a_request_that_does_not_fit(disa: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "load", None)
    assert "give --labels" in complaint(disa("sample", "--model", "mar-base", "--prompt", "a cat"))
    assert "give --prompt" in complaint(disa("compare", "--model", PRESET.name, "--labels", 3))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["describe", "absent.png"], "absent.png cannot be read as a picture"),
        (["describe", "text.png"], "text.png cannot be read as a picture"),
        (["describe", "good.png", "cut.png"], "cut.png cannot be read as a picture"),
        (["describe", "good.png", "--prompt", " "], "a prompt is empty"),
        (["describe", "good.png", "--prompt", "<image>"], "may not hold <image>"),
        (["describe", "good.png", "--temperature", "0"], "the temperature of a text must be above 0"),
        (["describe", "good.png", "--max-tokens", "0"], "'--max-tokens'"),
        (["describe", "good.png", "--prompt", "x" * 400], "the prompt is too long: expected at most 399 tokens"),
        (["describe", "good.png", "--repetition-penalty", "0"], "the penalty for repetition must be above 0"),
        (["describe", "good.png", "--seed", "-1"], "'--seed'"),
        (["describe", "good.png", "--seed", "1"], "--seed goes with --temperature"),
        (["describe", "good.png", "--model", "mar-base"], "mar-base has no words"),
        (["describe"], "missing argument"),
        (["compare", "--prompt", "a", "--prompt", "b", "--seeds", "0"], "2 prompts need as many seeds or more"),
        (["compare", "--prompt", ""], "a prompt is empty"),
        (["bench", "--model", "mar-base", "--untrained", "--prompt-tokens", "3"], "leave --prompt-tokens out"),
        (["bench", "--tokenizer", "x"], "leave --tokenizer out"),
        (["bench", "--prompt-tokens", "0"], "'--prompt-tokens'"),
    ],
)
def test_the_other_commands_refuse(
    disa: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((64, 64), 50).save("good.png")
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:900])
    given = [] if "--model" in arguments else ["--model", model]
    before = files(tmp_path)
    assert said in complaint(disa(*arguments, *given))
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("special", "said"),
    [(["<s>"], "expected <|im_start|> to be one token of it"),
     (["<|im_start|>", "<|im_end|>", *map("<{}>".format, range(250))], "expected 1 to 300 tokens, found 3")],
)  # fmt: skip
@pytest.mark.parametrize("command", [("sample", "--prompt", "a cat"), ("describe", "good.png")])
def test_a_tokenizer_of_another_checkpoint(
    disa: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...], special: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("good.png")
    other = tokenizer(tmp_path / "other", *special)
    complained = complaint(disa(*command, "--model", model, "--tokenizer", other))
    assert f"{other} does not fit this checkpoint" in complained
    assert said in complained


@pytest.mark.parametrize("command", [("sample", "--prompt", "a cat"), ("describe", "good.png")])
def test_a_checkpoint_of_another_size(
    disa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("good.png")
    wide = replace(CONFIG, encoder_width=48, decoder_width=48)
    large = replace(wide, encoder_depth=2, llm_depth=3)
    monkeypatch.setitem(PRESETS, "harmon-1.5b", small.changed(PRESETS["harmon-1.5b"], architecture=large))
    for name, config in (("large", large), ("mixed", wide)):
        torch.save(official_names(config).to_official(random_weights(config).state_dict()), f"{name}.pth")
    said = complaint(disa(*command, "--model", PRESET.name, "--checkpoint", "large.pth"))
    assert "It is a checkpoint of harmon-1.5b: load it as that." in said
    said = complaint(disa(*command, "--model", PRESET.name, "--checkpoint", "mixed.pth"))
    assert "mixed.pth does not fit this model" in said
    assert "of its tensors have another shape; mar." in said


@pytest.mark.parametrize("command", [("sample", "--prompt", "a cat"), ("describe", "good.png")])
def test_without_transformers_one_line_says_what_to_install(
    disa: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("good.png")
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert 'pip install "disa[harmon]"' in complaint(disa(*command, "--model", model))
    assert files(tmp_path) == ["good.png"]
