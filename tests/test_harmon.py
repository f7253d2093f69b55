"""Harmon on tiny random weights: names, the prompt's cache, what may not change an image, texts and prompts."""

from __future__ import annotations

import builtins
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import small
from disa.core.diffusion import TrainingLoss
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.problem import ARStep
from disa.core.request import Guidance, Prompts, Request
from disa.core.solvers import make_solver
from disa.core.steps import StepPolicy, linear
from disa.core.texts import parse
from disa.draw.conditioning import penalised, sampled
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.harmon import text as texts
from disa.models.harmon.config import HarmonConfig
from disa.models.harmon.language import Prefix
from disa.models.harmon.model import IGNORED, Harmon
from disa.models.harmon.names import official_names
from disa.models.harmon.text import Text
from disa.models.language import causal
from disa.models.registry import PRESETS, find_preset
from disa.models.spec import Preset
from disa.study.calibrate import gains
from disa.weights.build import build_model
from disa.weights.convert import convert
from disa.weights.load import load_model

pytestmark = pytest.mark.usefixtures("one_thread")

pytest.importorskip("transformers")

CONFIG = HarmonConfig(
    latent_size=(4, 4), latent_channels=3, encoder_width=32, encoder_depth=1, encoder_heads=2, decoder_width=32,
    decoder_depth=2, decoder_heads=2, num_classes=2, buffer_size=3, head_width=32, head_depth=1,
    vocab_size=300, llm_width=32, llm_hidden=48, llm_depth=2, llm_heads=4, llm_kv_heads=2, max_positions=400,
)  # fmt: skip
PRESET = small.changed(
    find_preset("harmon-0.5b"), architecture=CONFIG, num_ar_steps=4, steps="linear:4-2", codec=None, size=None,
    batch_size=3,
)  # fmt: skip
PROMPTS = ([5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18, 19], [20, 21])
EMPTY = [3, 4, 5]
SEEDS = (5, 6, 1 << 40, 8)
IMAGE_TOKEN = 299
QUICK = linear(3, 2)


def random_weights(config: HarmonConfig) -> Harmon:
    model = small.randomised(Harmon(config))
    model.llm.embed_tokens.weight.mul_(5)
    return model


@pytest.fixture(scope="module")
def model() -> Harmon:
    return random_weights(CONFIG)


def request(which: Sequence[int], scale: float = 3.0, num_ar_steps: int = 4, **options: Any) -> Request:
    guidance = options.pop("guidance", Guidance(scale, "constant"))
    rows = [PROMPTS[i] for i in which] + ([EMPTY] * len(which) if guidance.active else [])
    return Request(len(which), num_ar_steps, guidance=guidance, prompts=Prompts.of(rows), **options)


def turns(
    model: Harmon, which: Sequence[int], policy: StepPolicy = QUICK, solver: str = "ddpm", **options: Any
) -> Iterator[ARStep]:
    noise = SeededNoise([SEEDS[i] for i in which])
    return generate_steps(model, request(which, **options), policy, make_solver(solver), noise)


def draw(model: Harmon, which: Sequence[int], **options: Any) -> Tensor:
    return model.finish(list(turns(model, which, **options))[-1].state)


# --- names and files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, tied=False), PRESETS["harmon-1.5b"].spec.architecture])
def test_the_names_are_those_of_the_model_and_a_bijection(config: HarmonConfig):
    with torch.device("meta"):
        ours = Harmon(config).state_dict()
    names = official_names(config)
    assert set(names.parts) == set(ours)
    official = names.to_official(ours)
    assert set(official) == names.official
    assert {"llm.model.embed_tokens.weight", "llm.lm_head.weight", "proj_in.0.weight", "mar.fake_latent"} <= set(
        official
    )
    back = names.from_official(official)
    assert {name: value.shape for name, value in back.items()} == {name: value.shape for name, value in ours.items()}


def test_names_there_and_back_are_bit_equal(model: Harmon):
    names, ours = official_names(CONFIG), model.state_dict()
    back = names.from_official(names.to_official(ours))
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)


@pytest.mark.parametrize(("preset", "millions"), [("harmon-0.5b", 494 + 208), ("harmon-1.5b", 1544 + 943)])
def test_presets_have_the_size_of_their_parts(preset: str, millions: int):
    with torch.device("meta"):
        built = find_preset(preset).build()
    count = sum(value.numel() for name, value in built.state_dict().items() if not name.startswith("proj_"))
    assert abs(count / 1e6 - millions) < 2


def test_official_names_do_not_import_transformers():
    program = """import sys, disa.models.registry as p
for preset in p.PRESETS.values(): preset.official_names()
print("transformers" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("missing", ["llm.lm_head.weight", "llm.model.embed_tokens.weight", None])
def test_a_tied_table_may_be_there_once_and_an_autoencoder_is_left_alone(
    model: Harmon, tmp_path: Path, missing: str | None
):
    state = official_names(CONFIG).to_official(model.state_dict()) | {"vae.encoder.weight": torch.zeros(2)}
    state = {name: value for name, value in state.items() if name != missing}
    torch.save(state, tmp_path / "harmon.pth")
    loaded = load_model(PRESET, tmp_path / "harmon.pth").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_tables_that_should_be_tied_and_are_not_are_refused(model: Harmon):
    state = official_names(CONFIG).to_official(model.state_dict())
    state["llm.lm_head.weight"] = state["llm.lm_head.weight"] + 1
    with pytest.raises(DisaError, match=r"llm.lm_head.weight should be equal to llm.model.embed_tokens.weight"):
        build_model(PRESET, state, "checkpoint")


def test_a_folder_of_official_parts_is_read_whole(model: Harmon, tmp_path: Path):
    from safetensors.torch import save_file

    state = official_names(CONFIG).to_official(model.state_dict())
    names = sorted(state)
    parts = names[: len(names) // 2], names[len(names) // 2 :]
    for i, part in enumerate(parts):
        save_file({name: state[name].contiguous() for name in part}, tmp_path / f"model-{i}.safetensors")
    loaded = load_model(PRESET, tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    save_file({names[-1]: state[names[-1]]}, tmp_path / "again.safetensors")
    with pytest.raises(DisaError, match="more than one checkpoint"):
        load_model(PRESET, tmp_path)


# --- the prompt's cache -----------------------------------------------------------------------------------------------


def test_prompts_are_read_once_and_the_cache_is_cropped(model: Harmon, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[int, ...]] = []
    embedded: list[int] = []
    run, embed = model.llm.forward, model.llm.embed_tokens.forward
    monkeypatch.setattr(
        model.llm, "forward", lambda **options: calls.append(options["inputs_embeds"].shape[:2]) or run(**options)
    )
    monkeypatch.setattr(model.llm.embed_tokens, "forward", lambda ids: embedded.append(ids.numel()) or embed(ids))
    which = [0, 1, 3]
    visible: list[Tensor] = []
    keys: list[Tensor] = []
    for step in turns(model, which):
        visible = step.state.visible
        prefixes = step.state.prefixes
        assert [prefix.cache.get_seq_length() for prefix in prefixes] == [prefix.width for prefix in prefixes]
        found = [layer.keys.clone() for prefix in prefixes for layer in prefix.cache.layers]
        assert all(torch.equal(*pair) for pair in zip(found, keys or found, strict=True))
        keys = found
    # Two images have prompts of 2 tokens, one of 5, and the empty prompt has 3: read together, by length.
    assert sorted(embedded) == [4, 5, 9]
    assert sorted(calls[:3]) == [(1, 5), (2, 2), (3, 3)]
    # After that only the buffer of 3 and the visible tokens pass, once for each of the 6 halves.
    assert sorted(calls[3:]) == sorted((rows, 3 + v.shape[1]) for v in visible for rows in (1, 2, 3))


def test_tables_and_masks_are_made_once(model: Harmon, monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []
    resized = model.mar._resized
    monkeypatch.setattr(model.mar, "_resized", lambda *given: made.append("table") or resized(*given))
    monkeypatch.setattr("disa.models.harmon.model.causal", lambda *given: made.append("mask") or causal(*given))
    draw(model, [0], token_grid=(4, 6), scale=1.0)
    # One mask is that of the prompt, the other that of what follows it.
    assert sorted(made) == ["mask", "mask", "table", "table", "table"]


def test_padding_changes_nothing_but_rounding(model: Harmon, monkeypatch: pytest.MonkeyPatch):
    """Away from the CPU prompts of all lengths are read in one call, and padding is masked."""
    expected = draw(model, [0, 1, 2])
    read = model._read

    def together(ids: Tensor, lengths: list[int], longest: int) -> list[Prefix]:
        return [read(ids, lengths, set(lengths), longest)]

    monkeypatch.setattr(model, "read", together)
    found = draw(model, [0, 1, 2])
    assert not torch.equal(found, draw(model, [3, 1, 2]))
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_ids_under_the_padding_do_not_matter(model: Harmon):
    rows = Prompts.of([PROMPTS[0], PROMPTS[1]])
    other = Prompts(rows.ids.clone().masked_fill(torch.arange(5) >= rows.lengths[:, None], 7), rows.lengths)
    images = [
        model.finish(list(generate_steps(
            model, Request(2, 3, prompts=prompts), QUICK, make_solver("ddpm"), SeededNoise([1, 2])
        ))[-1].state)
        for prompts in (rows, other)
    ]  # fmt: skip
    assert torch.equal(*images)


# --- what may not change an image -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_an_image_does_not_depend_on_its_batch(model: Harmon, scale: float):
    together = draw(model, [0, 1, 2, 3], scale=scale)
    assert together.isfinite().all()
    for which in ([0], [2, 1], [3, 2, 0]):
        assert torch.equal(draw(model, which, scale=scale), together[which]), which


def test_prompts_and_guidance_change_the_image(model: Harmon):
    images = [draw(model, [0], scale=scale) for scale in (1.0, 3.0)]
    assert not torch.equal(*images)
    noise, solver = SeededNoise(SEEDS[:1]), make_solver("ddpm")
    other = Request(1, 4, prompts=Prompts.of([PROMPTS[1]]))
    changed = model.finish(list(generate_steps(model, other, QUICK, solver, noise))[-1].state)
    assert not torch.equal(changed, images[0])


def test_bf16_is_close_to_fp32(model: Harmon):
    problem = next(turns(model, [0, 1], policy=linear(2, 2))).problem
    found = next(turns(deepcopy(model).bfloat16(), [0, 1], policy=linear(2, 2))).problem
    assert problem.condition is not None
    assert found.condition is not None
    assert found.condition.dtype == torch.bfloat16
    assert (found.condition - problem.condition).norm() < 0.05 * problem.condition.norm()


def test_two_generations_taken_in_turn_equal_one_after_the_other(model: Harmon):
    settings = [([0, 1], 3.0), ([2], 1.0)]
    alone = [draw(model, which, scale=scale) for which, scale in settings]
    running = [turns(model, which, scale=scale) for which, scale in settings]
    last = list(zip(*running, strict=True))[-1]
    for step, expected in zip(last, alone, strict=True):
        assert torch.equal(model.finish(step.state), expected)


def test_a_generation_leaves_the_model_as_it_was(model: Harmon):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    draw(model, [0, 1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- sizes, known tokens, policies and guidance -----------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(2, 3), (6, 4), (5, 8)])
def test_images_of_other_sizes(model: Harmon, grid: tuple[int, int]):
    latents = draw(model, [0, 1], token_grid=grid)
    assert latents.shape == (2, 3, *grid)
    assert latents.isfinite().all()
    assert torch.equal(draw(model, [1], token_grid=grid), latents[1:])


def test_the_architectures_own_size_is_the_default(model: Harmon):
    assert torch.equal(draw(model, [0], token_grid=(4, 4)), draw(model, [0]))


def test_known_tokens_are_kept_to_the_bit_and_seen(model: Harmon):
    random = torch.Generator().manual_seed(1)
    known, mask = torch.randn(2, 3, 4, 6, generator=random), torch.zeros(2, 4, 6, dtype=torch.bool)
    mask[0, :2], mask[1, :, 1:4] = True, True
    latents = draw(model, [0, 1], token_grid=(4, 6), known=known, mask=mask)
    drawn = mask[:, None].expand_as(known)
    assert torch.equal(latents[~drawn], known[~drawn])
    changed = draw(model, [0, 1], token_grid=(4, 6), known=torch.where(drawn, known, -known), mask=mask)
    assert not (changed[drawn] == latents[drawn]).all()


@pytest.mark.parametrize("policy", ["constant:3", "two-stage:4-2", "linear:4-2", "cosine:4-2"])
@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpm-solver", "dpm-solver++"])
def test_every_policy_goes_with_every_solver(model: Harmon, policy: str, solver: str):
    options: dict[str, Any] = {"policy": parse(policy), "solver": solver}
    steps, asked = list(turns(model, [0, 1], **options)), parse(policy).counts(4)
    assert [step.evaluations for step in steps] == [
        2 * step.problem.num_rows * count for step, count in zip(steps, asked, strict=True)
    ]
    assert torch.equal(draw(model, [1], **options), model.finish(steps[-1].state)[1:])


def test_only_the_counts_of_a_policy_matter(model: Harmon):
    expected = draw(model, [0], policy=parse("constant:3"))
    for policy in ("two-stage:3-3", "linear:3-3", "cosine:3-3"):
        assert torch.equal(draw(model, [0], policy=parse(policy)), expected), policy
    assert not torch.equal(draw(model, [0], policy=parse("linear:4-2")), expected)


def test_guidance_off_computes_no_unconditional_half(model: Harmon):
    steps = list(turns(model, [0, 1], scale=1.0))
    assert [len(prefix.rows) for prefix in steps[0].state.prefixes] == [1, 1]
    made = sum(step.evaluations for step in steps)
    assert made == sum(step.problem.num_rows * int(step.steps) for step in steps)
    guided = list(turns(model, [0, 1], scale=3.0))
    assert sum(step.evaluations for step in guided) == 2 * made
    # Unconditional rows that guidance has no use for are left out.
    rows = Prompts.of([PROMPTS[0], EMPTY])
    state = model.begin(Request(1, 4, prompts=rows), SeededNoise([1]))
    assert sum(len(prefix.rows) for prefix in state.prefixes) == 1


def test_guidance_ramps(model: Harmon):
    def scales(guidance: Guidance, **options: Any) -> list[float]:
        return [step.problem.guidance for step in turns(model, [0], guidance=guidance, **options)]

    assert scales(Guidance(3.0, "constant")) == [3.0] * 4
    # 24 tokens; after the AR steps 22, 16, 9 and, by the official formula, 1 of them are masked.
    expected = [1 + 2 * (24 - masked) / 24 for masked in (22, 16, 9, 1)]
    assert scales(Guidance(3.0, "linear"), token_grid=(4, 6)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Request(1, 4, torch.tensor([1])), "Harmon cannot take labels: expected prompts and token grid"),
        (lambda: Request(1, 4), "found none. Give one prompt per image"),
        (lambda: Request(1, 4, torch.tensor([1]), prompts=Prompts.of([[1]])), "labels and prompts are alternatives"),
        (lambda: Request(2, 4, prompts=Prompts.of([[1]])), "expected 2 prompts: 2 rows, found 1"),
        (lambda: Request(1, 4, guidance=Guidance(2.0), prompts=Prompts.of([[1]])), "unconditional ones after them"),
        (lambda: Request(1, 4, prompts=Prompts.of([[300]])), "token ids must be 0 to 299, found 300 to 300"),
        (lambda: Request(1, 4, prompts=Prompts.of([[1] * 390])), "at most 381 tokens here, found 390"),
        (lambda: Request(1, 17, prompts=Prompts.of([[1]])), "1 to 16"),
        (lambda: Request(1, 4, prompts=Prompts.of([[1]]), token_grid=(0, 3)), "at least one row"),
        (lambda: Prompts.of([[1], []]), "lengths of prompts must be 1 to 1"),
        (lambda: Prompts(torch.zeros(2, 3), torch.ones(3)), r"found \(2, 3\) and \(3,\)"),
    ],
)
def test_requests_that_cannot_be_met(model: Harmon, wrong: Callable[[], Request], message: str):
    with pytest.raises(DisaError, match=message):
        model.begin(wrong(), SeededNoise([1, 2]))


@pytest.mark.parametrize("name", ["mar-digits", "xar-digits", "flowar-digits"])
def test_models_that_take_labels_refuse_prompts(name: str):
    preset = find_preset(name)
    with pytest.raises(DisaError, match="cannot take prompts: expected labels"):
        preset.build().begin(Request(1, preset.defaults.num_ar_steps, prompts=Prompts.of([[1]])), SeededNoise([1]))


# --- image to text ----------------------------------------------------------------------------------------------------


def about(latents: Tensor, *words: int) -> Tensor:
    return torch.tensor([1, 2, *[IMAGE_TOKEN] * (latents[0, 0].numel() + CONFIG.buffer_size), *words])


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
@pytest.mark.parametrize("tied", [True, False])
def test_a_greedy_text_is_that_of_full_passes_without_a_cache(size: tuple[int, int], tied: bool):
    model = random_weights(replace(CONFIG, tied=tied))
    latents = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    ids = about(latents, 7, 8)
    found = torch.stack(list(model.describe(latents, ids, IMAGE_TOKEN, max_tokens=6)), dim=1)
    with torch.no_grad():
        x = model._filled(model.look(latents), ids, IMAGE_TOKEN)
        for _ in range(6):
            hidden = model.llm(inputs_embeds=x, attention_mask=causal(x.shape[1], x)).last_hidden_state
            chosen = model.logits(hidden[:, -1]).argmax(-1)
            x = torch.cat([x, model.llm.embed_tokens(chosen)[:, None]], dim=1)
            assert torch.equal(found[:, 0], chosen)
            found = found[:, 1:]
    assert found.shape == (2, 0)


def test_what_is_seen_matters_and_a_text_does_not_depend_on_its_batch(model: Harmon):
    latents = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(4))
    ids = about(latents, 9)
    logits: list[Tensor] = []

    def choose(found: Tensor) -> Tensor:
        logits.append(found)
        return found.argmax(-1)

    together = torch.stack(list(model.describe(latents, ids, IMAGE_TOKEN, choose, max_tokens=4)), dim=1)
    assert (logits[0][0] - logits[0][1]).abs().max() > 1e-3
    beside = [found[1] for found in logits]
    alone = torch.stack(list(model.describe(latents[1:2], ids, IMAGE_TOKEN, choose, max_tokens=4)), dim=1)
    assert torch.equal(alone[0], together[1])
    assert all(torch.equal(found[0], other) for found, other in zip(logits[4:], beside, strict=True))


def test_a_text_stops_and_repeats_its_last_token(model: Harmon):
    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    script = iter([[5, 6], [9, 7], [8, 9], [1, 1]])

    def choose(_: Tensor) -> Tensor:
        return torch.tensor(next(script))

    found = list(model.describe(latents, about(latents, 3), IMAGE_TOKEN, choose, stop_ids=[9], max_tokens=10))
    assert torch.stack(found, dim=1).tolist() == [[5, 9, 9], [6, 7, 9]]


def test_sampled_texts_follow_from_the_seed(model: Harmon):
    latents = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(6))

    def write(seeds: Sequence[int], rows: Sequence[int], temperature: float = 1.0) -> list[list[int]]:
        choose = sampled(seeds, temperature)
        turns = model.describe(latents[list(rows)], about(latents, 3), IMAGE_TOKEN, choose, max_tokens=8)
        return torch.stack(list(turns), dim=1).tolist()

    together = write([1, 2, 3], [0, 1, 2])
    assert write([3, 1], [2, 0]) == [together[2], together[0]]
    assert write([4], [0]) != [together[0]]
    greedy = torch.stack(list(model.describe(latents[:1], about(latents, 3), IMAGE_TOKEN, max_tokens=8)), 1).tolist()
    assert write([1], [0], temperature=1e-6) == greedy


def test_sampling_has_the_frequencies_of_the_logits():
    choose, share = sampled(range(4000)), torch.tensor([0.5, 0.3, 0.0, 0.2])
    chosen = choose(share.log().expand(4000, -1))
    assert (torch.bincount(chosen, minlength=4) / 4000 - share).abs().max() < 0.03
    with pytest.raises(DisaError, match="above 0, found 0"):
        sampled([1], 0.0)


def test_repetition_is_penalised_in_each_text():
    choose = penalised(lambda logits: logits.argmax(-1), 2.0)
    logits = torch.tensor([[3.0, 2.0, 1.0], [-1.0, -1.5, -3.0]])
    assert [choose(logits).tolist() for _ in range(4)] == [[0, 0], [1, 1], [0, 0], [0, 0]]
    assert [penalised(lambda logits: logits.argmax(-1), 1.0)(logits).tolist() for _ in range(2)] == [[0, 0]] * 2
    with pytest.raises(DisaError, match="above 0, found 0"):
        penalised(choose, 0.0)


def test_a_prompt_without_places_for_the_image_is_refused(model: Harmon):
    with pytest.raises(DisaError, match=r"holds the image token 19 times, found \[2\]"):
        next(model.describe(torch.zeros(1, 3, 4, 4), torch.tensor([1, IMAGE_TOKEN, IMAGE_TOKEN]), IMAGE_TOKEN))


def test_an_answer_to_a_text_is_that_of_full_passes_and_does_not_depend_on_its_batch(model: Harmon):
    ids = torch.tensor([[1, 2, 7, 8], [1, 2, 9, 9], [1, 2, 30, 31]])
    found = torch.stack(list(model.answer(ids, max_tokens=5)), dim=1)
    x = model.llm.embed_tokens(ids)
    for i in range(5):
        hidden = model.llm(inputs_embeds=x, attention_mask=causal(x.shape[1], x)).last_hidden_state
        assert torch.equal(found[:, i], model.logits(hidden[:, -1]).argmax(-1))
        x = torch.cat([x, model.llm.embed_tokens(found[:, i])[:, None]], dim=1)
    assert torch.equal(torch.stack(list(model.answer(ids[1:2], max_tokens=5)), dim=1), found[1:2])


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_drawing_loss_has_gradients_where_it_should():
    model = random_weights(CONFIG).requires_grad_(True).train()
    random = torch.Generator().manual_seed(7)
    latents, prompts = torch.randn(2, 3, 4, 6, generator=random), Prompts.of([PROMPTS[0], PROMPTS[1]])
    order = torch.rand(2, 24, generator=random).argsort(1)
    terms = model.loss(
        TrainingLoss(model.process), latents, prompts, order[:, :8], order[:, 8:],
        torch.randint(951, (64,), generator=random), torch.randn(64, 3, generator=random),
    )  # fmt: skip
    terms.loss.mean().backward()
    none = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert none == {"mar.class_embedding.weight"}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model.llm.embed_tokens.weight.grad[torch.tensor(PROMPTS[0])].abs().sum(1).min() > 0


def test_the_drawing_loss_sees_what_generation_sees(model: Harmon):
    """The condition vectors of a loss are those that generation poses for the same prompts and tokens."""
    latents = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(8))
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, 0] = False
    state = model.begin(request([0], scale=1.0, num_ar_steps=1, known=latents, mask=mask), SeededNoise([1]))
    posed = model.pose(state).condition
    seen: list[Tensor] = []
    head_loss = model.mar.head_loss

    def spy(objective: Any, tokens: Tensor, z: Tensor, *rest: Any) -> Any:
        seen.append(z)
        return head_loss(objective, tokens, z, *rest)

    model.mar.head_loss = spy  # type: ignore[method-assign]
    try:
        visible, wanted = torch.arange(4)[None], torch.arange(4, 16)[None]
        model.loss(TrainingLoss(model.process), latents, Prompts.of([PROMPTS[0]]), visible, wanted,
                   torch.full((12,), 400), torch.randn(12, 3))  # fmt: skip
    finally:
        del model.mar.head_loss
    torch.testing.assert_close(seen[0].flatten(0, 1), posed, rtol=0, atol=1e-5)


def test_the_describing_loss_is_the_cross_entropy_of_the_next_token():
    model = random_weights(CONFIG).requires_grad_(True).train()
    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(9))
    ids = torch.stack([torch.cat([about(latents, 7), torch.tensor(answer)]) for answer in ([40, 41, 42], [50, 51, 0])])
    targets = torch.full_like(ids, IGNORED)
    targets[0, -3:], targets[1, -3:-1] = ids[0, -3:], ids[1, -3:-1]
    loss = model.describing_loss(latents, ids, targets, IMAGE_TOKEN)
    x = model._filled(model.look(latents), ids, IMAGE_TOKEN)
    hidden = model.llm(inputs_embeds=x, attention_mask=causal(x.shape[1], x)).last_hidden_state
    scores = model.logits(hidden).log_softmax(-1)
    end = ids.shape[1]
    places = [(0, end - 3), (0, end - 2), (0, end - 1), (1, end - 3), (1, end - 2)]
    expected = -torch.stack([scores[row, place - 1, ids[row, place]] for row, place in places]).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    seen = {
        name.split(".")[1] for name, p in model.named_parameters() if name.startswith("mar.") and p.grad is not None
    }
    assert seen == {"no_class", "token_in", "token_norm", "encoder_positions", "encoder", "encoder_norm"}
    rest = {name for name, p in model.named_parameters() if p.grad is None and not name.startswith("mar.")}
    assert {name.split(".")[0] for name in rest} == {"proj_out"}
    full = model.proj_in.fc1.weight.grad
    assert full is not None
    full = full.clone()
    model.zero_grad()
    model.describing_loss(latents, ids, targets, IMAGE_TOKEN, visual_gradient=0.1).backward()
    torch.testing.assert_close(model.proj_in.fc1.weight.grad, 0.1 * full)


def test_the_answering_loss_is_the_cross_entropy_of_the_next_token():
    model = random_weights(CONFIG)
    ids = torch.tensor([[1, 2, 7, 40, 41], [1, 2, 50, 51, 0]])
    targets = torch.tensor([[IGNORED, IGNORED, IGNORED, 40, 41], [IGNORED, IGNORED, 50, 51, IGNORED]])
    x = model.llm.embed_tokens(ids)
    scores = model.logits(model.llm(inputs_embeds=x, attention_mask=causal(5, x)).last_hidden_state)
    places = [(0, 3), (0, 4), (1, 2), (1, 3)]
    expected = -torch.stack([scores.log_softmax(-1)[row, i - 1, ids[row, i]] for row, i in places]).mean()
    torch.testing.assert_close(model.answering_loss(ids, targets), expected)


# --- prompts ----------------------------------------------------------------------------------------------------------

LETTERS = [chr(code) for code in range(32, 127)]


def tokenizer(folder: Path, *special: str) -> Path:
    """One token per printable character, and special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer(
        models.WordLevel({letter: i for i, letter in enumerate(["?", *LETTERS[:31], "\n", *LETTERS[32:]])}, "?")
    )
    base.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    base.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=base)
    fast.add_special_tokens({"additional_special_tokens": list(special)})
    fast.save_pretrained(str(folder))
    return folder


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return tokenizer(tmp_path / "tokenizer", "<|im_start|>", "<|im_end|>", "<|endoftext|>")


def test_prompts_have_the_published_form(words: Path):
    text = Text.load(words, 300, 400)
    decode = text.tokenizer.decode
    assert decode(text.to_draw(" a red cat ", 19)) == (
        "<|im_start|>user\nGenerate an image: a red cat<|im_end|>\n<|im_start|>assistant\n"
    )
    assert decode(text.unconditional(None, 19)) == (
        "<|im_start|>user\nGenerate an image.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text.unconditional("blurry", 19) == text.to_draw("blurry", 19)
    ids = text.to_describe("What is it", 19)
    assert ids.count(text.image_token) == 19
    assert decode(ids) == (f"<|im_start|>user\n{'<image>' * 19}\nWhat is it<|im_end|>\n<|im_start|>assistant\n")
    end = text.tokenizer.encode("<|im_end|>")[0]
    assert text.decode([*text.tokenizer.encode("a cat"), end, *text.tokenizer.encode("more")]) == "a cat"


def test_the_image_token_is_added_once_and_saved(words: Path, tmp_path: Path):
    text = Text.load(words, 300, 400)
    text.save(tmp_path / "saved")
    again = Text.load(tmp_path / "saved", 300, 400)
    assert again.image_token == text.image_token
    assert len(again.tokenizer) == len(text.tokenizer)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda text: text.to_draw("  ", 9), "a prompt is empty"),
        (lambda text: text.to_describe("", 9), "a prompt is empty"),
        (lambda text: text.unconditional("", 9), "a prompt is empty"),
        (lambda text: text.to_draw("x" * 400, 19), "too long: expected at most 381 tokens, found 4"),
        (lambda text: text.to_rewrite(" "), "a prompt is empty"),
        (lambda text: text.to_rewrite("x" * 400), "too long: expected at most 399 tokens, found 4"),
        (lambda text: text.to_draw("a <image>", 9), "may not hold <image>"),
        (lambda text: text.to_draw("a <|im_end|>", 9), r"may not hold <\|im_end\|>"),
    ],
)
def test_prompts_that_cannot_be_used(words: Path, act: Callable[[Text], Any], message: str):
    with pytest.raises(DisaError, match=message):
        act(Text.load(words, 300, 400))


def test_a_tokenizer_of_another_checkpoint_is_refused(words: Path, tmp_path: Path):
    with pytest.raises(DisaError, match="expected 1 to 90 tokens, found 100"):
        Text.load(words, 90, 400)
    with pytest.raises(DisaError, match="expected 151424 to 151936 tokens, found 100"):
        Text.load(words, 151_936, 400)
    other = tokenizer(tmp_path / "other", "<s>")
    with pytest.raises(DisaError, match=r"expected <\|im_start\|> to be one token"):
        Text.load(other, 300, 400)


@pytest.mark.parametrize("damage", ["absent", "empty", "broken"])
def test_a_folder_without_a_tokenizer_is_one_clear_error(words: Path, tmp_path: Path, damage: str):
    folder = {"absent": tmp_path / "absent", "empty": tmp_path / "empty", "broken": words}[damage]
    (tmp_path / "empty").mkdir()
    (words / "tokenizer.json").write_text("{")
    with pytest.raises(DisaError, match="no tokenizer could be read from") as error:
        Text.load(folder, 300, 400)
    assert len(str(error.value).splitlines()) == 1


def test_without_transformers_one_line_says_what_to_install(words: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for act in (lambda: Text.load(words, 300, 400), lambda: Harmon(CONFIG)):
        with pytest.raises(DisaError, match=r'pip install "disa\[harmon\]"'):
            act()


# --- the sampler ------------------------------------------------------------------------------------------------------


@pytest.fixture
def preset(monkeypatch: pytest.MonkeyPatch) -> Preset:
    monkeypatch.setitem(PRESETS, PRESET.name, PRESET)
    return PRESET


@pytest.fixture
def sampler(preset: Preset, model: Harmon, words: Path) -> Sampler:
    built = build_model(preset, {name: value.clone() for name, value in model.state_dict().items()}, "the small model")
    return Sampler(preset, built, device="cpu", tokenizer=words)


def test_the_sampler_draws_from_prompts(sampler: Sampler):
    result = sampler.sample(prompts=["a cat", "two red dogs"], seeds=[1, 2])
    assert result.images.shape == (2, 3, 4, 4)
    assert result.report()["prompts"] == ["a cat", "two red dogs"]
    alone = sampler.sample(prompts="two red dogs", seeds=2)
    assert torch.equal(alone.latents[0], result.latents[1])
    assert not torch.equal(
        sampler.sample(prompts="two red dogs", seeds=2, negative_prompt="a cat").latents, alone.latents
    )
    wide = sampler.sample(prompts="a cat", seeds=[1, 2], height=4, width=6)
    assert wide.images.shape == (2, 3, 4, 6)
    assert wide.settings["size"] == [4, 6]


def test_a_negative_prompt_without_guidance_is_warned_of(sampler: Sampler):
    """It changes nothing there; with guidance it does, and nothing is said."""
    with pytest.warns(UserWarning, match="the negative prompt says nothing where guidance is 1") as said:
        unguided = sampler.sample(prompts="two red dogs", seeds=2, negative_prompt="a cat", guidance=1)
    assert len(said) == 1
    assert torch.equal(unguided.latents, sampler.sample(prompts="two red dogs", seeds=2, guidance=1).latents)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.start(Inputs.paired(2, prompts="two red dogs", negative_prompt="a cat"), guidance=1.5)


def test_a_folder_holds_the_tokenizer_too(sampler: Sampler, tmp_path: Path):
    first = sampler.sample(prompts="a cat")
    sampler.save_pretrained(tmp_path / "saved")
    for folder in (tmp_path / "saved", tmp_path / "converted"):
        if not folder.exists():
            files = convert(tmp_path / "saved", PRESET.name, folder)
            assert "tokenizer/tokenizer.json" in files
        assert torch.equal(Sampler.load(folder, device="cpu").sample(prompts="a cat").latents, first.latents)


def test_the_sampler_describes(sampler: Sampler):
    images = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    described = sampler.describe(images, "What is it", max_tokens=5)
    assert len(described) == 2
    steps = list(sampler.describe_steps(images, "What is it", max_tokens=5))
    assert [sampler.text.decode(ids) for ids in torch.stack(steps, 1).tolist()] == described
    drawn = sampler.describe(images, temperature=1.0, seeds=[1, 2], max_tokens=5)
    assert drawn == sampler.describe(images, temperature=1.0, seeds=[1, 2], max_tokens=5)
    assert described != sampler.describe(images, "What is it", max_tokens=5, repetition_penalty=1e3)


def test_rewritten_prompts_follow_from_prompt_and_seed(sampler: Sampler, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampler.text, "usable", lambda ids: " ".join(map(str, ids)))  # random weights say no words
    prompts, seeds = ["a cat", "two red dogs", "a cat"], [1, 2, 3]
    together = sampler.rewrite(prompts, seeds, max_tokens=8)
    assert sampler.rewrite(prompts[::-1], seeds[::-1], max_tokens=8) == together[::-1]
    assert together[0] != together[2]
    likeliest = sampler.rewrite(prompts, seeds, temperature=None, max_tokens=8)
    assert likeliest[0] == likeliest[2]


def test_what_is_drawn_is_the_rewritten_prompt(sampler: Sampler, monkeypatch: pytest.MonkeyPatch):
    said = {"a cat": "a red cat", "two red dogs": "two red dogs left of a cat"}
    monkeypatch.setattr(sampler.words, "rewrite", lambda prompts, seeds: [said[prompt] for prompt in prompts])
    result = sampler.sample(prompts=list(said), seeds=[1, 2], rewrite=True, batch_size=1)
    assert (result.prompts, result.rewritten) == (list(said), list(said.values()))
    assert result.report()["rewritten"] == list(said.values())
    assert result.settings["rewrite"] is True
    plain = sampler.sample(prompts=list(said.values()), seeds=[1, 2])
    assert torch.equal(plain.latents, result.latents)
    assert "rewritten" not in plain.report()
    known, mask = torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    kept = sampler.sample(prompts="a cat", rewrite=True, known=known, mask=mask)
    assert kept.rewritten is None


def test_gains_rewrite_a_prompt_once_and_are_those_of_what_it_becomes(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
):
    asked, said = list[str](), {"a cat": "a red cat", "two red dogs": "two red dogs left of a cat"}

    def rewrite(prompts: list[str], seeds: list[int], *_: object) -> list[str]:
        asked.extend(prompts)
        return [said[prompt] for prompt in prompts]

    monkeypatch.setattr(sampler.words, "rewrite", rewrite)
    found = [
        gains(sampler, Inputs([1, 2], prompts=prompts), sampler.settings(num_ar_steps=2, rewrite=wish), lambda: None)
        for prompts, wish in ((list(said), True), (list(said.values()), False))
    ]
    assert found[0] == found[1]
    assert asked == list(said)


def test_an_answer_that_cannot_be_a_prompt_leaves_it_as_it_is(sampler: Sampler, monkeypatch: pytest.MonkeyPatch):
    answers = iter([[sampler.text.stop_ids[0]], [sampler.text.image_token]])
    monkeypatch.setattr(sampler.model, "answer", lambda *_: iter([torch.tensor(next(answers))]))
    assert [sampler.rewrite("a cat"), sampler.rewrite("a dog")] == [["a cat"], ["a dog"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": 1}, "draws from prompts: give prompts, and no labels"),
        ({}, "draws from prompts: give prompts"),
        ({"prompts": ["a", "b"], "seeds": [1, 2, 3]}, "prompts and seeds are paired one to one"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [1]}, "each of the prompts must be a text, found 1"),
        ({"prompts": ""}, "a prompt is empty"),
        ({"prompts": "a", "height": 0}, "multiples of 1, found"),
        ({"prompts": "a", "num_ar_steps": 17}, "1 to 16"),
    ],
)
def test_mistakes_are_found_before_any_work(sampler: Sampler, options: dict[str, Any], message: str):
    if options.get("height") == 0:
        options = options | {"height": -1}
    with pytest.raises(DisaError, match=message):
        sampler.sample(**options)


def test_models_that_take_labels_have_no_tokenizer():
    mar = Sampler.load("mar-digits", device="cpu")
    with pytest.raises(DisaError, match="draws from labels: give labels, and no prompts"):
        mar.sample(prompts="a seven")
    with pytest.raises(DisaError, match="takes labels, not prompts"):
        mar.describe(torch.zeros(1, 1, 32, 32))
    with pytest.raises(DisaError, match="takes labels, not prompts"):
        mar.rewrite("a seven")
    with pytest.raises(DisaError, match="there are no prompts to rewrite"):
        mar.sample(3, rewrite=True)
    assert mar.sample(3, height=32, width=16, num_ar_steps=4, steps="constant:2").images.shape == (1, 1, 32, 16)


def test_templates_are_data():
    assert texts.DRAW.format("x") == "Generate an image: x"
    assert texts.DESCRIBE == "Describe the image in detail."
    assert texts.REWRITE.format("x") == "Describe in detail: x"
