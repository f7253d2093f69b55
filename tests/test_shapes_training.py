"""Training on scenes: the tokenizer of their words, the batches, and a model that draws and describes."""

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from disa.codecs.small import SmallCodec, SmallVAE
from disa.core.request import Prompts
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.harmon.config import HarmonConfig
from disa.models.harmon.model import IGNORED
from disa.models.harmon.text import DESCRIBE, STOP, UNCONDITIONAL, Text
from disa.models.registry import PRESETS
from disa.tiny import shapes, tasks
from disa.tiny import train as training
from disa.tiny.captions import COLOURS, PLURALS, SHAPES, VOCABULARY, Facts, allows, describe, parse
from disa.tiny.data import Split
from disa.tiny.judge import judge, score
from disa.tiny.muon import Muon
from disa.tiny.scenes import Scene, facts, held_out_captions, scene_at
from disa.weights.folders import save_codec
from disa.weights.load import load_codec
from disa.weights.tokenizers import find_tokenizer

NAME = "harmon-shapes"
RECIPE = replace(tasks.find_recipe(NAME), iterations=3, batch_size=4, warmup=2)


@pytest.fixture(scope="module")
def text() -> Text:
    config = PRESETS[NAME].spec.architecture
    return Text(shapes.tokenizer(), config.vocab_size, config.max_positions)


@pytest.fixture
def codec_folder(tmp_path: Path) -> Path:
    """An autoencoder without training, which is enough to learn from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec = SmallCodec(SmallVAE(tasks.SHAPES_CODEC).requires_grad_(False).eval())
    return save_codec(tmp_path / "codec", codec)


# --- words ------------------------------------------------------------------------------------------------------------


def test_every_word_and_every_sign_of_the_template_is_one_token(text: Text) -> None:
    unknown = text.tokenizer.convert_tokens_to_ids(shapes.UNKNOWN)
    for word in VOCABULARY:
        assert len(text.tokenizer.encode(word, add_special_tokens=False)) == 1
        assert text.decode(text.tokenizer.encode(word, add_special_tokens=False)) == word
    asked = (text.to_draw("A red circle", 9), text.unconditional(None, 9), text.to_describe(DESCRIBE, 9))
    assert all(unknown not in ids for ids in asked)
    assert text.to_draw("A red circle", 9) == text.to_draw("a red circle", 9)
    assert text.to_describe(DESCRIBE, 9).count(text.image_token) == 9
    assert unknown in text.to_draw("a red elephant purpler", 9)
    assert text.stop_ids == [text.tokenizer.convert_tokens_to_ids(stop) for stop in STOP]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (["a red circle"], None),
        (["A Red CIRCLE.", "two stars"], None),
        (["a red circle, blue square"], "the sign ',', and"),
        (["a red circle!", "a red star?!"], "the signs '!' and '?!', and"),
        (["a café"], "the word 'café', and"),
        (["a purpler star"], "the word 'purpler' (did you mean purple?), and"),
        (["a red elephant, two elephants"], "the words 'elephant' and 'elephants' and the sign ',', and"),
        (["a cat", "a cat", "a dog"], "the words 'cat' and 'dog', and"),
        (["\u732b {} %s"], "the words '\u732b' and 's' and the signs '{}' and '%', and"),
        (["bq cq dq fq gq hq jq"], "the words 'bq', 'cq', 'dq', 'fq', 'gq' and 2 more, and"),
    ],
)  # fmt: skip
def test_what_the_model_does_not_know_is_named_once(text: Text, prompts: list[str], said: str | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        text.warn_of_unknown(prompts)
    expected = [] if said is None else [f"the model does not know {said} goes by the rest"]
    assert [str(warning.message) for warning in caught] == expected


def test_the_tokenizer_is_saved_as_the_one_that_ships(text: Text, tmp_path: Path) -> None:
    text.save(tmp_path)
    shipped = find_tokenizer(None, PRESETS[NAME])
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / file).read_bytes() == (shipped / file).read_bytes()
    caption = "a large green star left of a small cyan cross"
    assert Text.load(tmp_path, 64, 256).to_draw(caption, 44) == text.to_draw(caption, 44)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_pictures_are_those_of_the_scenes_in_the_range_of_images() -> None:
    first, again, other = (shapes.scenes(3, "train", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first == again != other
    images = shapes.pictures(first)
    assert images.shape == (3, 3, 48, 48)
    assert -1 <= images.min() < images.max() <= 1


def test_captions_are_dropped_to_the_unconditional_prompt(text: Text) -> None:
    drawn = [scene_at(index) for index in range(3)]
    prompts = shapes.prompts_to_draw(text, drawn, torch.tensor([False, True, False]), 44)
    rows = [row[:length].tolist() for row, length in zip(prompts.ids, prompts.lengths, strict=True)]
    assert rows == [text.to_draw(drawn[0][1], 44), text.unconditional(None, 44), text.to_draw(drawn[2][1], 44)]
    assert text.decode(rows[1][2:]) == UNCONDITIONAL.lower().replace(".", " .")


def test_only_the_answer_and_its_end_are_learned(text: Text) -> None:
    drawn = [scene_at(index) for index in range(8)]
    ids, targets, image_token = shapes.answers(text, drawn, 44)
    assert ids.shape == targets.shape
    assert ((ids == image_token).sum(1) == 44).all()
    asked = torch.tensor(text.to_describe(DESCRIBE, 44))
    assert (ids[:, : len(asked)] == asked).all()
    for (scene, _), row in zip(drawn, targets, strict=True):
        learned = row[row != IGNORED].tolist()
        assert text.decode(learned) == describe(facts(scene))
        assert learned[-1] == text.stop_ids[0]


def test_captions_are_asked_about_and_everything_is_the_answer(text: Text) -> None:
    drawn = [scene_at(index) for index in range(60)]
    ids, targets = shapes.rewritings(text, drawn, torch.Generator().manual_seed(0))
    assert ids.shape == targets.shape
    changed = 0
    for (scene, caption), row, wanted in zip(drawn, ids, targets, strict=True):
        plain = text.to_rewrite(caption)
        learned = wanted[wanted != IGNORED].tolist()
        assert row[len(plain) : len(plain) + len(learned)].tolist() == learned
        assert learned[-1] == text.stop_ids[0]
        asked, answer, told = caption.split(), text.decode(learned).split(), everything_about(scene, caption).split()
        said = text.decode(row[: len(plain)].tolist()[-len(asked) - 3 :]).split()
        assert [kind(word) for word in answer] == [kind(word) for word in told]
        places = dict(zip(asked, said, strict=True))
        assert len(set(places.values())) == len(places)
        assert all(kind(old) == kind(new) for old, new in places.items())
        assert all(new == places.get(old, new) for old, new in zip(told, answer, strict=True))
        changed += sum(old != new for old, new in places.items())
    assert changed > 60


def everything_about(scene: Scene, caption: str) -> str:
    """Captions that only list two objects leave open which lies left of or above the other: it is the first then."""
    known, stated = facts(scene), parse(caption)
    if stated.relation or len(known.groups) == 1:
        return describe(known)
    ways = [
        groups
        for groups in (known.groups, known.groups[::-1])
        if all(a.shape == b.shape and a.colour in (None, b.colour) for a, b in zip(stated.groups, groups, strict=True))
    ]
    assert len(ways) == 1
    return describe(Facts(ways[0], known.relation))


def kind(word: str) -> str:
    """What changes places with what; other words stay."""
    kinds = {"colour": COLOURS, "shape": SHAPES, "shapes": PLURALS.values()}
    return next((name for name, words in kinds.items() if word in words), word)


def test_a_share_of_the_captions_tells_everything() -> None:
    drawn = [scene_at(index) for index in range(60)]
    everything, some, nothing = (shapes.told(drawn, share, torch.Generator().manual_seed(0)) for share in (1, 0.5, 0))
    assert nothing == drawn
    assert all(parse(caption) == facts(scene) for scene, caption in everything)
    assert [scene for scene, _ in some] == [scene for scene, _ in drawn]
    assert 20 < sum(one == other for one, other in zip(some, drawn, strict=True)) < 50
    assert some == shapes.told(drawn, 0.5, torch.Generator().manual_seed(0))


# --- training ---------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stop(done: int, total: int, loss: float) -> None:
    if done == 2:
        raise Stopped


@dataclass
class Listener:
    """A model that notes what it is asked."""

    config: HarmonConfig
    asked: list[tuple[Prompts, torch.Tensor, torch.Tensor]]

    def describing_loss(self, *arguments: object) -> torch.Tensor:
        return torch.zeros(())

    def answering_loss(self, *arguments: object) -> torch.Tensor:
        return torch.zeros(())

    def condition(
        self, tokens: torch.Tensor, prompts: Prompts, visible: torch.Tensor, masked: torch.Tensor
    ) -> torch.Tensor:
        self.asked.append((prompts, visible, masked))
        return torch.zeros(*masked.shape, 22)

    @property
    def mar(self) -> SimpleNamespace:
        return SimpleNamespace(
            patchify=lambda latents: latents.flatten(2).mT, head_loss=lambda *_: SimpleNamespace(loss=torch.zeros(1))
        )


@pytest.mark.parametrize(("split", "told", "share"), [("train", 1.0, 1.0), ("train", 0.0, 0.8), ("test", 1.0, 0.8)])
def test_captions_tell_everything_in_training_alone(
    text: Text, codec_folder: Path, split: Split, told: float, share: float
) -> None:
    task = tasks.find_task(NAME, replace(RECIPE, batch_size=16, told=told, label_dropout=0.0), codec_folder)
    model = Listener(PRESETS[NAME].spec.architecture, [])
    for seed in range(4):
        task.loss(model, split, torch.Generator().manual_seed(seed))
    words = [text.decode(ids[:length].tolist()) for prompts, *_ in model.asked
             for ids, length in zip(prompts.ids, prompts.lengths, strict=True)]  # fmt: skip
    coloured = sum(any(colour in caption for colour in COLOURS) for caption in words) / len(words)
    assert len(words) == 64
    assert coloured == 1 if share == 1 else coloured < share
    assert all(visible.shape[1] + masked.shape[1] == 36 for _, visible, masked in model.asked)


def test_the_condition_is_asked_for_the_tokens_and_their_shapes(codec_folder: Path) -> None:
    """The condition above is zero and the denoising loss too: what is left are the squares of the tokens, and the
    cross-entropy of six equal chances."""
    losses = {}
    for weights in ((0.0, 0.0), (1.0, 0.0), (3.0, 0.0), (0.0, 2.0)):
        task = tasks.find_task(NAME, replace(RECIPE, expected=weights[0], naming=weights[1]), codec_folder)
        model = Listener(PRESETS[NAME].spec.architecture, [])
        losses[weights] = task.loss(model, "test", torch.Generator().manual_seed(0)).item()
    assert losses[0, 0] == 0
    assert losses[1, 0] == pytest.approx(losses[3, 0] / 3)
    assert losses[1, 0] > 0
    assert losses[0, 2] == pytest.approx(2 * math.log(6))


def test_tokens_that_show_an_object_are_part_of_its_shape() -> None:
    drawn = [scene_at(index) for index in range(40)]
    labels = shapes.shown(drawn, (6, 6))
    images = shapes.pictures(drawn)
    colourful = torch.nn.functional.max_pool2d(images.amax(1) - images.amin(1), 8).flatten(1) > 0.35
    assert not (colourful & (labels == 0)).any()
    assert colourful.sum() > 0.7 * (labels > 0).sum()  # the corners of a cross's cell are empty
    for (scene, _), row in zip(drawn, labels, strict=True):
        assert {SHAPES[label - 1] for label in row.tolist() if label} == {thing.shape for thing in scene.objects}


def test_the_head_alone_has_its_own_learning_rate(codec_folder: Path) -> None:
    trainer = training.Trainer(NAME, 0, replace(RECIPE, head_speed=4.0, muon_speed=0.0), codec_folder)
    trainer.step()
    (optimiser,) = trainer.optimisers
    fast = {id(p) for group in optimiser.param_groups if group["lr"] == 4 * RECIPE.learning_rate / 2
            for p in group["params"]}  # fmt: skip
    slow = {id(p) for group in optimiser.param_groups if group["lr"] == RECIPE.learning_rate / 2
            for p in group["params"]}  # fmt: skip
    head = {id(p) for p in trainer.model.mar.head.parameters()}
    assert fast == head
    assert slow == {id(p) for p in trainer.model.parameters()} - head


def test_matrices_of_blocks_and_the_head_have_their_own_learning_rates(codec_folder: Path) -> None:
    recipe = replace(RECIPE, head_speed=4.0, muon_speed=3.0)
    trainer = training.Trainer(NAME, 0, recipe, codec_folder)
    trainer.step()
    adamw, muon = trainer.optimisers
    assert isinstance(muon, Muon)
    assert muon.dtype == (torch.bfloat16 if trainer.half else torch.float32)
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    speeds = {
        names[parameter]: group["lr"] / (recipe.learning_rate / 2)
        for optimiser in (adamw, muon)
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    assert sum(len(group["params"]) for optimiser in (adamw, muon) for group in optimiser.param_groups) == len(names)
    for name in ("mar.encoder.0.mlp.fc1.weight", "mar.head.blocks.1.fc1.weight", "llm.layers.0.mlp.up_proj.weight"):
        assert speeds.pop(name) == 3
    for name in ("mar.head.output.weight", "mar.head.blocks.1.fc1.bias"):
        assert speeds.pop(name) == 4
    for name in ("mar.encoder.0.mlp.fc1.bias", "mar.token_in.weight", "llm.embed_tokens.weight", "proj_in.fc1.weight"):
        assert speeds.pop(name) == 1
    assert {group["parts"] for group in muon.param_groups if group["params"][0].shape == (384, 128)} == {1, 3}
    only_adamw = training.Trainer(NAME, 0, replace(recipe, muon_speed=0.0), codec_folder)
    assert [type(optimiser) for optimiser in only_adamw.optimisers] == [torch.optim.AdamW]


def test_a_token_is_a_function_of_its_own_pixels() -> None:
    codec = load_codec(PRESETS[NAME])
    image = shapes.pictures([scene_at(0)])
    other = image.clone()
    other[..., 8:16, 16:24] = -other[..., 8:16, 16:24]
    changed = (codec.moments(image) != codec.moments(other)).any(1)[0]
    assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_weights_which_draw_and_describe(tmp_path: Path, codec_folder: Path) -> None:
    whole = training.train(NAME, tmp_path / "whole", 3, RECIPE, save_every=1, vae=codec_folder)
    with pytest.raises(Stopped):
        training.train(NAME, tmp_path / "parts", 3, RECIPE, on_step=stop, save_every=1, vae=codec_folder)
    resumed = training.train(NAME, tmp_path / "parts", 3, RECIPE, save_every=1, vae=codec_folder)
    assert (whole["iterations_this_run"], resumed["iterations_this_run"]) == (3, 2)
    assert whole["held_out_loss"] == resumed["held_out_loss"]
    sampler, again = (Sampler.load(tmp_path / part) for part in ("whole", "parts"))
    first, second = sampler.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    drawn = sampler.sample(prompts=["a red circle"], seeds=[0], steps="constant:2", num_ar_steps=2)
    assert drawn.images is not None
    assert drawn.images.shape == (1, 3, 48, 48)
    assert drawn.rewritten is not None
    assert set(drawn.rewritten[0].split()) <= set(sampler.text.tokenizer.get_vocab())
    described = sampler.describe(torch.rand(1, 3, 48, 48), max_tokens=3)
    assert set(described[0].split()) <= set(sampler.text.tokenizer.get_vocab())


@pytest.mark.long
def test_both_losses_fall(tmp_path: Path, codec_folder: Path) -> None:
    recipe = replace(RECIPE, iterations=25, batch_size=8, warmup=5, ema=0.5)
    trainer = training.Trainer(NAME, 0, recipe, codec_folder)
    drawing, describing = parts(trainer)
    for _ in range(recipe.iterations):
        trainer.step()
    after = parts(trainer)
    assert after[0] < 0.97 * drawing
    assert after[1] < 0.8 * describing


def parts(trainer: training.Trainer) -> tuple[float, float]:
    """Held-out loss of drawing, and that of describing."""
    task = trainer.task
    together = trainer.held_out_loss(2)
    task.recipe, recipe = replace(task.recipe, writing_weight=0.0), task.recipe
    drawing = trainer.held_out_loss(2)
    task.recipe = recipe
    return drawing, (together - drawing) / recipe.writing_weight


@pytest.mark.slow
def test_the_autoencoder_learns_scenes_and_normalises_its_latents(tmp_path: Path) -> None:
    recipe = replace(tasks.find_recipe("shapes-vae"), iterations=12, batch_size=8, warmup=2, ema=0.5)
    untrained = training.Trainer("shapes-vae", 0, recipe).held_out_loss(4)
    summary = training.train("shapes-vae", tmp_path, 0, recipe)
    assert summary["held_out_loss"] < 0.8 * untrained
    codec = load_codec(PRESETS[NAME], tmp_path)
    images = shapes.pictures(shapes.scenes(100, "train", torch.Generator().manual_seed(1)))
    latents = codec.encode(images, torch.randn(100, 16, 6, 6, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(16), atol=0.2, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(16), atol=0.2, rtol=0)


@pytest.mark.slow
def test_the_embedded_autoencoder_keeps_what_a_scene_shows() -> None:
    drawn = [scene_at(index, "test") for index in range(60)]
    codec = load_codec(PRESETS[NAME])
    images = codec.decode(codec.encode(shapes.pictures(drawn))).clamp(-1, 1)
    right = [judge(image, describe(facts(scene))).correct for image, (scene, _) in zip(images, drawn, strict=True)]
    assert sum(right) >= 0.9 * len(right)


@pytest.mark.slow
def test_the_embedded_model_says_what_it_sees() -> None:
    drawn = [scene_at(index, "test") for index in range(40)]
    answers = Sampler.load(NAME).describe((shapes.pictures(drawn) + 1) / 2, max_tokens=32)
    right = [answer == describe(facts(scene)) for answer, (scene, _) in zip(answers, drawn, strict=True)]
    assert sum(right) >= 0.9 * len(right)


@pytest.mark.slow
def test_the_embedded_model_draws_what_it_is_told() -> None:
    """What it is told counts: the same pictures are read against the caption of another."""
    captions = [f"a {colour} {shape}" for colour in ("red", "green", "blue", "yellow") for shape in SHAPES]
    drawn = Sampler.load(NAME).sample(prompts=captions, seeds=list(range(len(captions))), steps="linear:25-5")
    assert drawn.images is not None
    images = drawn.images * 2 - 1
    assert score(images, captions).overall.value >= 0.85
    assert score(images, captions[1:] + captions[:1]).overall.value <= 0.1


@pytest.mark.long
def test_the_embedded_model_draws_what_no_picture_of_its_training_shows() -> None:
    captions = held_out_captions(60, seed=3)
    seeds = list(range(len(captions)))
    drawn = Sampler.load(NAME).sample(prompts=captions, seeds=seeds, steps="linear:25-5")
    assert drawn.images is not None
    assert score(drawn.images * 2 - 1, captions).overall.value >= 0.75


@pytest.mark.slow
def test_the_embedded_model_rewrites_captions_to_all_there_is_to_say() -> None:
    captions = held_out_captions(48)
    seeds = list(range(len(captions)))
    sampler = Sampler.load(NAME)
    written = [parse(words) for words in sampler.rewrite(captions, seeds)]
    assert all(group.colour and group.size for known in written for group in known.groups)
    assert all(known.relation in ("left of", "above") for known in written if len(known.groups) == 2)
    agree = [allows(parse(caption), known) for caption, known in zip(captions, written, strict=True)]
    assert sum(agree) >= 0.9 * len(captions)
    others = [parse(words) for words in sampler.rewrite(captions, [seed + 100 for seed in seeds])]
    assert sum(one != other for one, other in zip(written, others, strict=True)) > 0.5 * len(captions)


def test_weights_that_are_left_out_of_a_package_say_how_to_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("disa.weights.package.resources.files", lambda package: tmp_path)
    with pytest.raises(DisaError, match="disa train harmon-shapes --out FOLDER"):
        Sampler.load(NAME)
