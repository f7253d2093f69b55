"""`Sampler.sample` and `Run`: what may not change an image, batches, editing, counts, and weights there and back."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import disa
import small
from disa.codecs import kl16 as vae
from disa.codecs.base import LatentCodec
from disa.core.problem import DenoisingProblem
from disa.draw.conditioning import Writing
from disa.draw.inputs import Inputs
from disa.draw.pictures import to_image
from disa.draw.sampler import Sampler
from disa.draw.samples import Samples
from disa.errors import DisaError
from disa.weights.autoencoders import CODEC
from disa.weights.build import build_model
from disa.weights.folders import load_folder, save_codec

LABELS, SEEDS = [3, 9, 0, 3, 7], [5, 6, 1 << 40, 8, 900]


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return small.sampler()


# -- what may not change an image ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", ["linear:5-2", "constant:3"])
def test_an_image_does_not_depend_on_the_batch_or_its_order(sampler: Sampler, steps: str) -> None:
    together = sampler.sample(LABELS, SEEDS, steps=steps, batch_size=5).latents
    assert len(set(together.flatten(1).sum(1).tolist())) == 5
    for batch_size in (1, 2, 3):
        assert torch.equal(sampler.sample(LABELS, SEEDS, steps=steps, batch_size=batch_size).latents, together)
    backwards = sampler.sample(LABELS[::-1], SEEDS[::-1], steps=steps, batch_size=2).latents
    assert torch.equal(backwards.flip(0), together)
    assert torch.equal(sampler.sample(LABELS[1], SEEDS[1], steps=steps).latents[0], together[1])


def test_an_image_depends_on_its_seed_its_label_and_the_guidance(sampler: Sampler) -> None:
    image = sampler.sample(3, 5).images
    for other in (
        sampler.sample(4, 5),
        sampler.sample(3, 6),
        sampler.sample(None, 5),
        sampler.sample(3, 5, guidance=1),
    ):
        assert not torch.equal(other.images, image)


def test_runs_may_be_interleaved_and_stopped(sampler: Sampler) -> None:
    settings = sampler.settings(steps="linear:5-2", batch_size=2)
    alone = [sampler.sample(label, SEEDS[:3], settings=settings).latents for label in (1, 2)]
    first, second, stopped = (sampler.start(Inputs.paired(SEEDS[:3], label), settings, "latent") for label in (1, 2, 3))
    next(stopped)
    # zip asks the second run for nothing after its last turn: it must be complete by then.
    turns = list(zip(first, second, strict=False))
    assert len(turns) == first.num_turns == 2 * 4
    assert alone[0].shape == (3, 1, 8, 8)
    for run, expected in zip(zip(*turns, strict=True), alone, strict=True):
        assert torch.equal(Samples.join([turn.samples for turn in run if turn.samples]).latents, expected)


def test_a_run_yields_every_turn_once(sampler: Sampler) -> None:
    run = sampler.start(Inputs.paired(SEEDS, LABELS), num_ar_steps=3, batch_size=2)
    turns = list(run)
    assert [turn.step.ar_step for turn in turns] == [0, 1, 2] * 3
    assert run.num_turns == run.turns_made == len(turns)
    assert [turn.batch for turn in turns[::3]] == [[0, 1], [2, 3], [4]]
    assert [len(turn.samples) if turn.samples else 0 for turn in turns] == [0, 0, 2, 0, 0, 2, 0, 0, 1]
    assert list(run) == []
    with pytest.raises(DisaError, match="every batch was handed out already"):
        run.result()


def test_the_result_is_what_was_not_handed_out(sampler: Sampler) -> None:
    whole = sampler.sample(LABELS, SEEDS, batch_size=2)
    run = sampler.start(Inputs.paired(SEEDS, LABELS), batch_size=2)
    next(run)
    first = next(run.batches())
    rest = run.result()
    assert (first.places, rest.places) == ([0, 1], [2, 3, 4])
    assert (rest.labels, rest.seeds) == (LABELS[2:], SEEDS[2:])
    assert torch.equal(torch.cat([first.images, rest.images]), whole.images)
    assert first.evaluations + rest.evaluations == whole.evaluations


def test_every_ar_step_of_a_batch_is_told(sampler: Sampler) -> None:
    """Before the batch is handed out, so that a bar is full when the last one is."""
    run, told = sampler.start(Inputs.paired(SEEDS, LABELS), num_ar_steps=3, batch_size=2), list[int]()
    for samples in run.batches(lambda: told.append(run.turns_made)):
        assert len(told) == 3 * (samples.places[-1] // 2 + 1)
    assert told == list(range(1, 10))


def test_of_a_batch_that_was_handed_out_nothing_is_kept(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what the model held, of which a second one may not fit into memory, nor what was drawn."""
    begin, states, drawn = sampler.model.begin, list[Any](), list[Any]()

    def living(references: list[Any]) -> int:
        gc.collect()
        return sum(reference() is not None for reference in references)

    def watched(*arguments: Any) -> Any:
        assert (living(states), living(drawn)) == (0, 0)
        state = begin(*arguments)
        states.append(weakref.ref(state))
        return state

    monkeypatch.setattr(sampler.model, "begin", watched)
    gc.freeze()  # what was there before is not searched
    try:
        for samples in sampler.start(Inputs.paired(SEEDS, LABELS), batch_size=2).batches():
            assert (living(states), living(drawn)) == (1, 0)
            drawn += [weakref.ref(samples), weakref.ref(samples.latents), weakref.ref(samples.images)]
            del samples
        assert (len(states), len(drawn)) == (3, 9)
        assert (living(states), living(drawn)) == (0, 0)
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("name", ["mar-digits", "flowar-digits", "xar-digits", "bitdance-digits", "harmon-shapes"])
def test_what_was_drawn_is_freed_without_a_search_for_circles(name: str) -> None:
    """Python searches seldom, and a few circles of large tensors fill the memory before it does."""
    model = Sampler.load(name, device="cpu")
    asked = {"prompts": "a red circle"} if model.preset.prompts else {"labels": 3}
    run = model.start(Inputs.paired([0, 1], **asked), steps="linear:3-2", guidance=1.5, batch_size=1, rewrite=False)
    gc.collect()
    gc.disable()
    try:
        for _ in run.batches():
            pass
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        circles = [found for found in gc.garbage if isinstance(found, Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert len(circles) == 0


# -- counts --------------------------------------------------------------------------------------------------------


def test_the_trace_sums_to_the_totals(sampler: Sampler) -> None:
    result = sampler.sample(LABELS, SEEDS, steps="linear:5-2", batch_size=2)
    assert [step.ar_step for step in result.trace] == [0, 1, 2, 3]
    assert [step.steps for step in result.trace] == [5, 4, 3, 2]
    assert sum(step.rows for step in result.trace) == 5 * 16
    # The uniform grid makes as many evaluations as it is asked for, guidance counts two.
    assert [step.evaluations for step in result.trace] == [2 * step.rows * step.steps for step in result.trace]
    assert result.evaluations == sum(step.evaluations for step in result.trace)
    assert result.evaluations_per_row == result.evaluations / 80
    assert result.seconds_head == sum(step.seconds_head for step in result.trace)
    assert result.seconds_backbone == sum(step.seconds_backbone for step in result.trace)
    assert result.seconds_head + result.seconds_backbone + result.seconds_decode <= result.seconds


def test_evaluations_are_those_that_are_made(sampler: Sampler) -> None:
    made = {
        (grid, guidance): sampler.sample(3, 0, steps="constant:50", grid=grid, guidance=guidance, num_ar_steps=1)
        for grid in ("clipped-950", "uniform")
        for guidance in (1.0, 2.0)
    }
    counts = {key: result.evaluations_per_row for key, result in made.items()}
    assert counts == {
        ("clipped-950", 1.0): 48, ("clipped-950", 2.0): 96, ("uniform", 1.0): 50, ("uniform", 2.0): 100,
    }  # fmt: skip


# -- policies of one's own -----------------------------------------------------------------------------------------


def test_a_policy_may_give_every_row_its_own_count(sampler: Sampler) -> None:
    def even_tokens_longer(problem: DenoisingProblem) -> Tensor:
        return torch.where(problem.position % 2 == 0, 6, 3)

    mixed = sampler.sample(LABELS, SEEDS, steps=even_tokens_longer, num_ar_steps=1, batch_size=3)
    assert mixed.trace[0].steps == pytest.approx(4.5)
    assert mixed.evaluations == 2 * 5 * (8 * 6 + 8 * 3)
    # With one AR step every token has the same condition whatever the others got.
    tokens, long, short = (
        sampler.model.patchify(latents)  # pyright: ignore
        for latents in (
            mixed.latents,
            *(sampler.sample(LABELS, SEEDS, steps=f"constant:{n}", num_ar_steps=1).latents for n in (6, 3)),
        )
    )
    assert torch.equal(tokens[:, 0::2], long[:, 0::2])
    assert torch.equal(tokens[:, 1::2], short[:, 1::2])


def test_a_policy_that_gives_the_wrong_number_of_counts_is_refused(sampler: Sampler) -> None:
    with pytest.raises(DisaError, match="gave 2 counts for"):
        sampler.sample(3, 0, steps=lambda problem: torch.tensor([1, 2]))


# -- editing -------------------------------------------------------------------------------------------------------


def some_masks() -> Tensor:
    """[3, 4, 4] with 4, 7 and 16 tokens to draw."""
    masks = torch.zeros(3, 16, dtype=torch.bool)
    masks[0, [0, 5, 6, 15]] = True
    masks[1, 3:10] = True
    masks[2] = True
    return masks.view(3, 4, 4)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_known_tokens_are_kept_exactly(dtype: str) -> None:
    sampler, masks = small.sampler(dtype), some_masks()
    pictures = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)).mul(256).floor() / 256
    known = sampler.encode(pictures)
    result = sampler.sample([1, 2, 3], [4, 5, 6], known=known, mask=masks)
    drawn = masks.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    assert torch.equal(result.latents[~drawn], known[~drawn])
    assert torch.equal(result.images[~drawn], pictures[~drawn])
    assert (result.latents[drawn] != known[drawn]).all()
    assert sum(step.rows for step in result.trace) == 4 + 7 + 16


def test_ragged_masks_give_the_images_that_each_gives_alone(sampler: Sampler) -> None:
    masks, known = some_masks(), torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    together = sampler.sample([1, 2, 3], [4, 5, 6], known=known, mask=masks).latents
    for i in range(3):
        alone = sampler.sample(i + 1, i + 4, known=known[i : i + 1], mask=masks[i : i + 1]).latents
        assert torch.equal(alone[0], together[i])
    # A mask of everything is no mask, and one picture serves all seeds.
    assert torch.equal(sampler.sample(3, 6).latents[0], together[2])
    shared = sampler.sample(1, [4, 9], known=known[:1], mask=masks[:1]).latents
    assert torch.equal(shared[0], together[0])


def test_a_part_of_what_is_edited_is_drawn_as_in_the_whole(sampler: Sampler) -> None:
    """Each image with its own picture and mask, or with the one that all share; as after an interruption."""
    known = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for some in (slice(None), slice(1)):
        inputs = Inputs([4, 5, 6], [1, 2, 3], known=known[some], mask=some_masks()[some])
        whole = sampler.sample(inputs=inputs)
        for places in ([2, 0], [1]):
            part = sampler.start(inputs.part(places)).result()
            assert part.seeds == [inputs.seeds[i] for i in places]
            assert torch.equal(part.latents, whole.latents[places])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_joined_batches_are_in_the_order_of_the_inputs(sampler: Sampler, batch_size: int) -> None:
    """Masks of 4, 7 and 16 tokens are drawn in batches of their own, not as they are asked for."""
    masks = some_masks()[[2, 0, 1, 0, 2]]
    known = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    inputs = Inputs(SEEDS, LABELS, known=known, mask=masks)
    run = sampler.start(inputs, batch_size=batch_size)
    parts = list(run.batches())
    drawn = [place for part in parts for place in part.places]
    assert drawn == [place for batch in run.batches_of for place in batch] != sorted(drawn) == list(range(5))
    joined = Samples.join(parts)
    assert (joined.places, joined.labels, joined.seeds) == (list(range(5)), LABELS, SEEDS)
    assert joined.inputs.known is not None
    assert joined.inputs.mask is not None
    assert torch.equal(joined.inputs.known, known)
    assert torch.equal(joined.inputs.mask, masks)
    for part in parts:
        assert torch.equal(joined.latents[part.places], part.latents)
        assert torch.equal(joined.images[part.places], part.images)
    kept = ~masks.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    assert torch.equal(joined.latents[kept], known[kept])
    # Two images of 16 tokens, two of 4 and one of 7.
    assert joined.rows == 2 * 16 + 2 * 4 + 7
    assert joined.evaluations == sum(part.evaluations for part in parts)


def test_every_output_type_is_joined_in_order(sampler: Sampler) -> None:
    inputs = Inputs(SEEDS, LABELS, known=KNOWN, mask=some_masks()[[2, 0, 1, 0, 2]])
    pixels = sampler.sample(inputs=inputs).images
    arrays = sampler.sample(inputs=inputs, output_type="np").images
    assert np.array_equal(arrays, pixels.permute(0, 2, 3, 1).numpy())
    pictures = sampler.sample(inputs=inputs, output_type="pil").images
    assert [picture.tobytes() for picture in pictures] == [to_image(image).tobytes() for image in pixels]


KNOWN, MASK = torch.zeros(1, 1, 8, 8), torch.ones(1, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known": KNOWN}, "give both or neither"),
        ({"mask": MASK}, "give both or neither"),
        ({"known": torch.zeros(1, 1, 4, 4), "mask": MASK}, r"known must be \(2 or 1, 1, 8, 8\), found \(1, 1, 4, 4\)"),
        ({"known": KNOWN, "mask": torch.ones(3, 4, 4)}, "expected mask for 1 image or 2, found 3"),
        ({"known": KNOWN, "mask": torch.ones(2, 4, 5)}, r"mask must be \(2 or 1, 4, 4\), found \(2, 4, 5\)"),
        ({"known": KNOWN, "mask": ~MASK}, "leaves no token to draw"),
        ({"known": KNOWN, "mask": some_masks()[:1], "num_ar_steps": 5}, r"1 to 4 \(tokens to draw\), found 5"),
    ],
)
def test_what_cannot_be_edited_is_refused(sampler: Sampler, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DisaError, match=message):
        sampler.sample(1, [0, 1], **options)


# -- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": 10}, "labels must be 0 to 9, found 10"),
        ({"labels": [3, -1]}, "labels must be 0 to 9, found -1"),
        ({"seeds": -1}, "found -1"),
        ({"seeds": 1 << 64}, "2\\*\\*64 - 1"),
        ({"steps": "quadratic:5-2"}, "unknown step policy 'quadratic:5-2': expected constant:N"),
        ({"steps": "constant:0"}, "at least 1 denoising step, found 0"),
        ({"steps": "constant:2000"}, "at most 951 denoising steps"),
        ({"steps": lambda problem: 2, "grid": "square"}, "unknown grid 'square': expected one of clipped-950"),
        ({"solver": "eulerian"}, "unknown solver 'eulerian': expected one of ddpm"),
        ({"solver": ""}, "unknown solver ''"),
        ({"grid": ""}, "unknown grid ''"),
        ({"ramp": ""}, "unknown guidance ramp ''"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"temperature": -1}, "temperature must be a number, 0 or more"),
        (
            {"solver": "ddim", "temperature": 0.9},
            "temperature scales the noise that ddpm and euler-maruyama add",
        ),
        ({"eta": 0.5}, r"eta belongs to ddim and dpm-solver\+\+-2, not to ddpm"),
        ({"solver": "ddim", "eta": -0.1}, "eta must be a number from 0 to 1, found -0.1"),
        ({"num_ar_steps": 0}, "1 to 16"),
        ({"num_ar_steps": 17}, "found 17"),
        ({"batch_size": 0}, "batch size must be 1 or more, found 0"),
        ({"output_type": "jpeg"}, "unknown output type 'jpeg': expected pt, np, pil or latent"),
    ],
)
def test_mistakes_are_found_before_any_work(
    sampler: Sampler, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler.model, "begin", None)
    with pytest.raises(DisaError, match=message):
        sampler.sample(**{"labels": [1, 2], "seeds": 0} | options)


@pytest.mark.parametrize("folder", [5, None, "", "a\0b"])
def test_a_folder_is_a_path(sampler: Sampler, folder: Any) -> None:
    with pytest.raises(DisaError, match="the folder must be a path, found"):
        sampler.sample_into(folder, Inputs.paired(0, 3))
    with pytest.raises(DisaError, match="the folder must be a path, found"):
        sampler.sample(3, 0, steps=1, num_ar_steps=1).save(folder)


@pytest.mark.parametrize(
    "options", [{"temperature": "hot"}, {"temperature": float("nan")}, {"max_tokens": 2.5}, {"repetition_penalty": []}]
)
def test_writing_takes_numbers(options: dict[str, Any]) -> None:
    with pytest.raises(DisaError, match=f"{next(iter(options))} must be a"):
        Writing(**options)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(DisaError, match=f"the device '{device}' cannot be used here"):
        Sampler.load("mar-base", checkpoint="absent.pth", device=device)


def test_an_unknown_dtype_is_refused_before_weights_are_read() -> None:
    with pytest.raises(DisaError, match="unknown dtype 'fp16': expected fp32, bf16 or tf32"):
        Sampler.load("mar-base", checkpoint="absent.pth", dtype="fp16")


# -- what comes out ------------------------------------------------------------------------------------------------


def test_inputs_say_all_that_is_drawn(sampler: Sampler) -> None:
    drawn = sampler.sample(inputs=Inputs.paired(SEEDS, LABELS))
    assert torch.equal(drawn.latents, sampler.sample(LABELS, SEEDS).latents)
    with pytest.raises(DisaError, match="inputs say all that is to be drawn: leave labels, mask, seeds out"):
        sampler.sample(3, 0, inputs=Inputs.paired(0), mask=MASK)


def test_a_repr_is_one_line(sampler: Sampler) -> None:
    assert repr(sampler) == "Sampler(small, cpu, fp32)"
    samples = sampler.sample([3, 4], 5, steps="constant:2", grid="uniform")
    pattern = r"Samples\(2 images, latents 1x8x8, 128 evaluations, 4\.0 per row, \d+\.\d\d s\)"
    assert re.fullmatch(pattern, repr(samples))
    assert re.match(r"Samples\(1 image, ", repr(sampler.sample(3, 5)))


def test_output_types(sampler: Sampler) -> None:
    drawn = {name: sampler.sample([3, 4], 5, output_type=name) for name in ("pt", "np", "pil", "latent")}
    pixels = drawn["pt"].images
    assert pixels.shape == (2, 1, 8, 8)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert isinstance(drawn["np"].images, np.ndarray)
    assert np.array_equal(drawn["np"].images, pixels.permute(0, 2, 3, 1).numpy())
    assert all(isinstance(image, Image.Image) and image.size == (8, 8) for image in drawn["pil"].images)
    assert np.array_equal(np.array(drawn["pil"].images[1]), (pixels[1, 0] * 255).round().byte().numpy())
    assert drawn["latent"].images is None
    assert torch.equal((drawn["latent"].latents / 2 + 0.5).clamp(0, 1), pixels)


def test_eta_is_the_noise_that_ddim_adds(sampler: Sampler) -> None:
    drawn = {eta: sampler.sample(3, [5, 6], solver="ddim", eta=eta) for eta in (None, 0.0, 1.0)}
    assert torch.equal(drawn[None].latents, drawn[0.0].latents)
    assert not torch.equal(drawn[0.0].latents, drawn[1.0].latents)
    assert drawn[1.0].report()["settings"]["solver"] == "ddim@ddim-980:eta=1"


def test_one_image_is_told_the_shape_of_its_mask(sampler: Sampler) -> None:
    with pytest.raises(DisaError, match=r"mask must be \(1, 4, 4\), found \(1, 1, 16\)"):
        sampler.sample(1, 0, known=KNOWN, mask=MASK.flatten(1))


def test_the_report_says_what_was_asked(sampler: Sampler) -> None:
    report = sampler.sample(3, [5, 6], steps="cosine:5-2", temperature=0.5).report()
    assert (report["labels"], report["seeds"]) == ([3, 3], [5, 6])
    settings = report["settings"]
    assert settings["steps"] == "cosine:5-2"
    assert "temperature=0.5" in settings["solver"]
    assert (settings["guidance"], settings["dtype"], settings["device"]) == (2.0, "fp32", "cpu")


def test_bf16_is_close_to_fp32(sampler: Sampler) -> None:
    exact, rough = (s.sample(LABELS, SEEDS, solver="ddim").latents for s in (sampler, small.sampler("bf16")))
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert (exact - rough).square().mean().sqrt() < 0.1 * exact.square().mean().sqrt()


def test_weights_that_give_no_numbers_are_noticed() -> None:
    state = small.weights()
    state["head.output.weight"] *= 1e38
    broken = Sampler(small.PRESET, build_model(small.PRESET, state, "large"), device="cpu")
    with pytest.raises(DisaError, match="not finite numbers"):
        broken.sample(3, 0)


# -- weights there and back ----------------------------------------------------------------------------------------


def test_a_saved_folder_draws_the_same_images(sampler: Sampler, tmp_path: Path) -> None:
    folder = sampler.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    preset, model, codec = load_folder(folder)
    assert (preset.spec, preset.defaults, codec) == (small.PRESET.spec, small.PRESET.defaults, None)
    assert all(torch.equal(value, small.weights()[name]) for name, value in model.state_dict().items())
    again = disa.Sampler.from_pretrained(folder, device="cpu")
    assert torch.equal(again.sample(LABELS, SEEDS).latents, sampler.sample(LABELS, SEEDS).latents)


def test_a_folder_brings_its_own_weights(tmp_path: Path) -> None:
    with pytest.raises(DisaError, match="is a folder with weights of its own: leave"):
        Sampler.load(small.folder(tmp_path / "model"), checkpoint=tmp_path / "other.pth")


# -- with an autoencoder -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return vae.KL16Codec(vae.build(small.CODEC))


def test_images_go_through_the_autoencoder(codec: LatentCodec, tmp_path: Path) -> None:
    preset = small.changed(small.PRESET, name="coded", codec=small.CODEC)
    model = small.model()
    sampler = Sampler(preset, model, save_codec(tmp_path / "codec", codec), device="cpu")
    assert sampler.image_shape == (3, 16, 16)
    result = sampler.sample(3, [5, 6])
    assert torch.equal(result.images, (codec.decode(result.latents) / 2 + 0.5).clamp(0, 1))
    assert sampler.encode(result.images).shape == result.latents.shape
    # The autoencoder is saved with the model, also where it was given but not used yet.
    fresh = Sampler(preset, model, tmp_path / "codec", device="cpu")
    again = Sampler.load(fresh.save_pretrained(tmp_path / "saved"), device="cpu")
    assert (tmp_path / "saved" / CODEC).is_dir()
    assert torch.equal(again.sample(3, [5, 6]).images, result.images)


def test_a_missing_autoencoder_is_found_before_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    preset = small.changed(small.PRESET, codec=small.CODEC)
    sampler = Sampler(preset, small.model(), tmp_path / "absent.ckpt", "cpu")
    assert sampler.sample(3, 0, output_type="latent").images is None
    monkeypatch.setattr(sampler.model, "begin", None)
    with pytest.raises(DisaError, match=r"no checkpoint at .*absent\.ckpt"):
        sampler.sample(3, 0)


def test_an_autoencoder_for_pixels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DisaError, match="has no autoencoder"):
        Sampler(small.PRESET, small.model(), tmp_path / "kl16.ckpt", "cpu")


def test_what_is_no_settings_no_inputs_and_no_latents_is_one_line(sampler: Sampler) -> None:
    wrong: Any
    for wrong in ("x", 1, {}, []):
        with pytest.raises(DisaError, match="settings must be Settings, found"):
            sampler.sample(3, 0, settings=wrong)
        with pytest.raises(DisaError, match="inputs must be Inputs, found"):
            sampler.sample(inputs=wrong)
        with pytest.raises(DisaError, match=r"latents (must|are)"):
            sampler.decode(wrong)
