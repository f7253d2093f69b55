"""UniPic on tiny random weights: its process, its files, and pictures that are edited, also from the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import small
from command import Command, complaint, files
from disa.core.diffusion import CosineDiffusion
from disa.core.generate import Drawing, generate_steps
from disa.core.noise import SeededNoise
from disa.core.problem import ARStep
from disa.core.request import Guidance, Prompts, Request
from disa.core.solvers import make_solver
from disa.core.steps import StepPolicy, linear
from disa.core.texts import parse
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.harmon.model import Harmon
from disa.models.language import causal
from disa.models.nextstep.text import AREA, BEGIN, END, PLACE
from disa.models.nextstep.text import Text as NextStepText
from disa.models.prompting import PromptText
from disa.models.registry import PRESETS, find_preset
from disa.models.spec import Preset
from disa.models.unipic.model import UniPic
from disa.models.unipic.names import official_names
from disa.models.unipic.text import Text
from disa.runtime.recorder import Recorder
from disa.runtime.surroundings import undisturbed
from disa.weights.convert import convert
from disa.weights.load import load_model
from stand_in import StandIn
from test_harmon import tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG, PRESET, PLACEHOLDER = small.UNIPIC_CONFIG, small.UNIPIC, small.UNIPIC_CONFIG.placeholder_id
GRID, SEEDS, QUICK = (3, 5), (5, 1 << 40), linear(3, 2)
NUM_SEEN = 3 * 5 + CONFIG.buffer_size
SOURCE = torch.randn(2, 3, *GRID, generator=torch.Generator().manual_seed(4))
WORDS, EMPTY = ([6, 7, 8], [9]), [10, 11]


@pytest.fixture(scope="module")
def model() -> UniPic:
    return small.unipic()


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Preset:
    monkeypatch.setitem(PRESETS, PRESET.name, PRESET)
    return PRESET


def request(which: list[int], source: Tensor | None = SOURCE, guidance: Guidance | None = None) -> Request:
    """Images of another size than the model's own, edited from `source`."""
    seen, guidance = [PLACEHOLDER] * NUM_SEEN * (source is not None), guidance or Guidance(3.0, "constant")
    rows = [[4, *seen, *WORDS[i]] for i in which] + [[4, *seen, *EMPTY]] * len(which) * guidance.active
    source = source if source is None or len(source) > 2 else source[which]
    return Request(len(which), 4, guidance=guidance, prompts=Prompts.of(rows), token_grid=GRID, source=source)


def turns(model: Harmon, asked: Request, policy: StepPolicy = QUICK, grid: str = "full") -> list[ARStep]:
    noise = SeededNoise(SEEDS[-asked.batch_size :])
    return list(generate_steps(model, asked, policy, make_solver("ddpm", grid), noise))


def edited(model: Harmon, *asked: Any, **options: Any) -> Tensor:
    return model.finish(turns(model, request(*asked, **options))[-1].state)


# --- the process and the files ----------------------------------------------------------------------------------------


def test_the_process_is_capped_and_trained_to_its_end(model: UniPic) -> None:
    """No published number but abar at 999, 2.64e-5: the product of what was there at 990 and 0.8 nine times."""
    process, usual = UniPic.process, CosineDiffusion()
    assert np.array_equal(process.betas[:991], usual.betas[:991])
    assert np.array_equal(process.betas[991:], [0.2] * 9)
    assert process.alpha_bar[-1] == pytest.approx(usual.alpha_bar[990] * 0.8**9) == pytest.approx(2.6403e-5, rel=1e-4)
    assert [process.grid(name, 50).network_times[0] for name in ("full", "uniform", "clipped-950")] == [999, 999, 950]
    problem = model.pose(model.begin(request([0, 1], None), SeededNoise(SEEDS)))
    assert (problem.process, Harmon.process) == (process, usual)


def official(model: UniPic) -> dict[str, Tensor]:
    """Official tensors, with others that lie in the same files."""
    others = "siglip2.vision_model.head.probe", "siglip2_proj.0.bias", "vae.decoder.conv_in.bias"
    return official_names(CONFIG).to_official(model.state_dict()) | {name: torch.zeros(2) for name in others}


def test_official_files_are_read_strictly_and_what_lies_beside_is_passed_over_by_name(
    model: UniPic, tmp_path: Path
) -> None:
    (tmp_path / "hub").mkdir()
    path = tmp_path / "hub" / "pytorch_model.bin"
    torch.save(official(model), path)
    loaded = load_model(PRESET, path.parent).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    with pytest.raises(DisaError, match=r"1 unexpected.*siglip3"):
        official_names(CONFIG).from_official(official(model) | {"siglip3.bias": torch.zeros(2)})
    convert(path, PRESET.name, tmp_path / "ours")
    ours = load_model(PRESET, tmp_path / "ours" / "model.safetensors").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in ours.items())


def test_checkpoints_of_it_and_of_harmon_are_told_apart(
    model: UniPic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(official(model), tmp_path / "unipic.bin")
    with pytest.raises(DisaError, match=f"It is a checkpoint of {PRESET.name}: load it as that"):
        load_model(find_preset("harmon-1.5b"), tmp_path / "unipic.bin")
    harmon = small.changed(find_preset("harmon-1.5b"), architecture=replace(CONFIG, latent_size=(2, 2)))
    monkeypatch.setitem(PRESETS, harmon.name, harmon)
    weights = small.randomised(UniPic(harmon.spec.architecture)).state_dict()
    torch.save(official_names(CONFIG).to_official(weights), tmp_path / "harmon.bin")
    with pytest.raises(DisaError, match=r"It is a checkpoint of harmon-1\.5b: load it as that"):
        load_model(PRESET, tmp_path / "harmon.bin")


def test_the_preset_is_harmons_network_made_for_larger_images() -> None:
    preset, harmon = find_preset("unipic-1"), find_preset("harmon-1.5b")
    own = vars(preset.spec.architecture)
    assert {name for name, value in vars(harmon.spec.architecture).items() if own[name] != value} == {"latent_size"}
    assert (preset.spec.architecture.grid, preset.defaults.size) == ((32, 32), (1024, 1024))


def test_without_a_picture_it_is_harmon(model: UniPic) -> None:
    """To the bit, but for what is drawn along another process: that is the same on a grid that it has in common."""
    harmon = Harmon(CONFIG)
    harmon.load_state_dict(model.state_dict())
    own, other = (turns(each, request([0, 1], None), grid="clipped-950") for each in (model, harmon.eval()))
    assert torch.equal(model.finish(own[-1].state), model.finish(other[-1].state))


# --- editing ----------------------------------------------------------------------------------------------------------


def test_what_is_edited_is_read_before_the_words_and_stands_where_nothing_is_drawn(model: UniPic) -> None:
    """Worked out without caches and one by one: prompt and image as one sequence, for both halves."""
    step = turns(model, request([0, 1]), parse("constant:2"))[2]
    state, buffer, embed = step.state, CONFIG.buffer_size, model.llm.embed_tokens
    state.ar_step = 3
    visible, wanted = state.visible[3], state.wanted
    with torch.no_grad():
        problem = model.pose(state)
        condition: Any = problem.condition
        network: Any = problem.field.network  # pyright: ignore[reportAttributeAccessIssue]
        for half, words in enumerate((*WORDS, EMPTY, EMPTY)):
            i, everything = half % 2, torch.arange(15)[None]
            none, tokens, table = model.mar.no_class, state.tokens[i : i + 1], state.positions
            seen = model.mar.encode(SOURCE[i].flatten(1).T[None], none, everything, table)
            about = model.proj_in(torch.cat([seen[:, buffer:], seen[:, :buffer]], dim=1))
            x = model.mar.encode(tokens, none, visible[i : i + 1], table)
            now = model.proj_in(torch.cat([x[:, buffer:], x[:, :buffer]], dim=1))
            sequence = torch.cat([embed(torch.tensor([[4]])), about, embed(torch.tensor([words])), now], dim=1)
            hidden = model.llm(inputs_embeds=sequence, attention_mask=causal(sequence.shape[1], sequence))
            heard = hidden.last_hidden_state[:, -now.shape[1] :]
            x = x + model.proj_out(torch.cat([heard[:, -buffer:], heard[:, :-buffer]], dim=1))
            # The decoder by hand: the picture everywhere, then the buffer and what is known.
            places = torch.cat([torch.arange(buffer), visible[i] + buffer])
            rows = model.mar.decoder_in(seen)
            rows[:, places] = model.mar.decoder_in(x)
            rows = rows + table.decoder
            for block in model.mar.decoder:
                rows = block(rows)
            z = (model.mar.decoder_norm(rows)[:, buffer:] + table.head)[0, wanted[i]]
            found = network.condition[half // 2, problem.image == i]
            expected = model.mar.head.condition(z)
            assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
            if half < 2:
                assert (condition[problem.image == i] - z).abs().max() <= 2e-5 * z.abs().max()


def test_an_edited_image_does_not_depend_on_its_batch_and_its_picture_matters(model: UniPic) -> None:
    together = edited(model, [0, 1])
    assert together.isfinite().all()
    assert torch.equal(edited(model, [1]), together[1:])
    assert torch.equal(edited(model, [0, 1], torch.cat([SOURCE, SOURCE])), together)
    for other in (SOURCE.flip(0), torch.cat([SOURCE, SOURCE.flip(0)])):  # the second: for the unconditional half alone
        assert not torch.equal(edited(model, [0, 1], other), together)
    whole, without = Guidance(3.0, "constant", progress=(0.0, 0.4)), Guidance()
    made = [[step.evaluations for step in turns(model, request([0], guidance=each))] for each in (whole, without)]
    assert [one / other for one, other in zip(*made, strict=True)] == [2, 2, 1, 1]


def test_going_ahead_still_sees_the_picture(model: UniPic) -> None:
    steps = turns(model, request([0, 1]))
    state = model.begin(request([0, 1]), SeededNoise(SEEDS))
    ahead = model.ahead(state, SeededNoise(SEEDS))
    assert (ahead.request.num_ar_steps, ahead.request.source is SOURCE) == (1, False)
    assert ahead.blank is not None
    assert torch.equal(ahead.blank, steps[0].state.blank[:2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: request([0, 1], SOURCE[:, :, :, :4]), r"expected latents of shape \(images, \(3, 3, 5\)\)"),
        (lambda: request([0, 1], SOURCE[:, :2]), r"expected latents of shape"),
        (lambda: request([0], guidance=Guidance(2.0, source_guidance=2.0)), "leave source_guidance out"),
        (lambda: replace(request([0, 1]), prompts=request([0, 1], None).prompts), "the image token 18 times, found"),
        (lambda: Request(1, 4), "UniPic draws from prompts: found none"),
    ],
)
def test_requests_that_cannot_be_met(model: UniPic, make: Callable[[], Request], message: str) -> None:
    asked = make()
    if asked.guidance.three_way:
        prompts = Prompts.of([[4]] * 3)
        asked = replace(asked, prompts=prompts)
    with pytest.raises(DisaError, match=message):
        model.begin(asked, SeededNoise(SEEDS))


# --- the sampler and the command line ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer(tmp_path_factory.mktemp("words"), "<|im_start|>", "<|im_end|>", "<|endoftext|>")


@pytest.fixture(scope="module")
def sampler(words: Path) -> Sampler:
    return with_words(PRESET, Text, words, small.unipic)


def with_words(preset: Preset, kind: type[PromptText], words: Path, build: Callable[[Any], Any]) -> Sampler:
    """A sampler of a model that knows the places of pictures by a tokenizer's token."""
    text = kind.load(words, 300, 400)
    place = text.image_token if kind is Text else text._ids(PLACE)[0]
    preset = small.changed(preset, architecture=replace(preset.spec.architecture, placeholder_id=place))
    return Sampler(preset, build(preset.spec.architecture), device="cpu", tokenizer=words)


def test_prompts_about_a_picture_have_the_published_form(words: Path) -> None:
    text = Text.load(words, 300, 400)
    plain, about = text.for_grid((1, 2)), text.for_grid((1, 2), (1, 2))
    said = [text.tokenizer.decode(ids) for ids in (
        plain.to_draw("a cat", 5), plain.unconditional(None, 5), about.to_draw("redder", 5),
        about.unconditional(None, 5), about.unconditional("a dog", 5), plain.to_describe("redder", 5),
    )]  # fmt: skip
    begin, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    seen = "<image>" * 5 + "\n"
    wanted = ("Generate an image: a cat", "Generate an image.", f"{seen}redder", f"{seen}Repeat this image.",
              f"{seen}a dog", f"{seen}redder")  # fmt: skip
    assert [each.replace(" ", "") for each in said] == [f"{begin}{each}{end}".replace(" ", "") for each in wanted]
    with pytest.raises(DisaError, match="the prompt is too long: expected at most 290 tokens"):
        about.to_draw("x" * 300, 110)
    with pytest.raises(DisaError, match="may not hold <image>"):
        about.to_draw("an <image>", 5)


def test_the_sampler_draws_edits_and_describes(sampler: Sampler) -> None:
    drawn = sampler.sample(prompts="a cat", seeds=3)
    assert drawn.images.shape == (1, 3, 4, 6)
    source = sampler.encode(torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(1)))
    both = sampler.sample(prompts=["redder", "a dog"], seeds=[3, 4], source=source)
    assert torch.equal(sampler.sample(prompts="a dog", seeds=4, source=source).latents[0], both.latents[1])
    plain = sampler.sample(prompts="redder", seeds=3)
    assert not torch.equal(plain.latents[0], both.latents[0])
    for policy in ("cosine:5-2", "two-stage:3-2"):
        found = sampler.sample(prompts="redder", seeds=3, source=source, steps=policy, reuse="residual:2")
        assert found.latents.isfinite().all()
    assert isinstance(next(iter(sampler.describe(both.images, max_tokens=2))), str)
    with pytest.raises(DisaError, match=r"source must be \(1, 3, 4, 6\), found \(1, 3, 6, 4\)"):
        sampler.sample(prompts="redder", source=source.mT)
    with pytest.raises(DisaError, match="guides by prompt and picture together: leave source_guidance out"):
        sampler.sample(prompts="redder", source=source, source_guidance=2.0)


QUICKLY = "--steps", "constant:2", "--device", "cpu"
SMALL: dict[str, tuple[Preset, type[PromptText], tuple[str, ...], Callable[[Any], Any]]] = {
    "unipic": (PRESET, Text, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), small.unipic),
    "nextstep": (small.NEXTSTEP, NextStepText, (AREA, BEGIN, END, PLACE), small.nextstep),
}


@pytest.mark.parametrize("family", SMALL)
def test_the_command_edits_a_picture(
    disa: Command, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture that `sample` of the library draws from the same file, whose middle is used."""
    preset, kind, special, build = SMALL[family]
    monkeypatch.setitem(PRESETS, preset.name, preset)
    sampler = with_words(preset, kind, tokenizer(tmp_path / "words", *special), build)
    folder = sampler.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("wide.png")
    Image.fromarray(pixels[:, 1:7]).save("middle.png")
    Path("none.png").write_text("no picture")
    asked = ("sample", "--model", folder, "--prompt", "redder", "--seeds", 3, *QUICKLY)
    report = disa(*asked, "--source", "middle.png", "--out", "edited", "--json").json()
    source = sampler.encode(Image.open("middle.png"))
    drawn = sampler.sample(prompts="redder", seeds=3, steps="constant:2", source=source, output_type="pil")
    (name,) = report["files"]
    found = np.array(Image.open(Path("edited") / name))
    assert (found == np.array(drawn.images[0])).all()
    disa(*asked, "--out", "drawn")
    assert (np.array(Image.open(Path("drawn") / name)) != found).any()
    # Another picture is another run: it may not be mixed with this one.
    assert "of another run" in complaint(disa(*asked, "--out", "edited"))
    wide = disa(*asked, "--source", "wide.png", "--out", "wide")
    assert (wide.code, "the middle 4 x 6 are used" in wide.err) == (0, True)
    assert (np.array(Image.open(Path("wide") / name)) == found).all()
    before = files(tmp_path)
    assert "none.png" in complaint(disa(*asked, "--source", "none.png", "--out", "failed"))
    assert files(tmp_path) == before


def test_models_that_edit_nothing_are_told(disa: Command, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    given = "--source", tmp_path / "picture.png", "--out", tmp_path / "out"
    said = complaint(disa("sample", "--model", "mar-digits", *given))
    assert "MAR cannot edit a picture; use a model that does, such as unipic-1" in said


@pytest.mark.filterwarnings("error")
def test_from_graphs_every_picture_is_edited_as_in_eager_mode(model: UniPic) -> None:
    recording, policy, solver = Recorder(StandIn(), 1 << 40), parse("constant:2"), make_solver("ddpm")
    for turn in range(3):
        asked, found = request([0, 1], source=SOURCE + turn), list[Tensor]()
        for begin in (Drawing, recording.begin):
            with undisturbed():
                *_, last = generate_steps(model, asked, policy, solver, SeededNoise([turn, 9]), begin=begin)
                found.append(model.finish(last.state).clone())
        assert torch.equal(*found), turn
    assert len(recording.sessions) == 1
