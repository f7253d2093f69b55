"""NextStep on tiny random weights: names, one token per AR step, what may not change an image, prompts, editing."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import small
from disa.core.flow import FlowLoss
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.problem import ARStep
from disa.core.request import Guidance, Prompts, Request
from disa.core.solvers import SOLVERS, make_solver
from disa.core.steps import StepPolicy, linear
from disa.core.texts import parse
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models import reading
from disa.models.heads import VelocityHead
from disa.models.language import causal
from disa.models.nextstep.config import NextStepConfig
from disa.models.nextstep.model import NextStep
from disa.models.nextstep.names import official_names
from disa.models.nextstep.text import AREA, BEGIN, END, PLACE, Text
from disa.models.registry import PRESETS, find_preset
from disa.models.spec import Preset
from disa.models.transformer import KVCache
from disa.runtime.packing import Linear
from disa.weights import stored
from disa.weights.convert import convert
from disa.weights.load import load_model
from golden_nextstep import config_of

pytestmark = pytest.mark.usefixtures("one_thread")

pytest.importorskip("transformers")

CONFIG = small.NEXTSTEP_CONFIG
PRESET = small.NEXTSTEP
PROMPTS = ([5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18, 19], [20, 21])
EMPTY = [3, 4]
SEEDS = (5, 6, 1 << 40, 8)
QUICK = linear(3, 2)
OFFICIAL = {
    "vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48,
    "num_attention_heads": 40, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-5, "attention_bias": True, "o_attention_bias": False, "mlp_bias": False,
    "image_placeholder_id": 151669,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> NextStep:
    return small.nextstep()


def request(which: Sequence[int], scale: float = 3.0, num_ar_steps: int = 6, **options: Any) -> Request:
    guidance = options.pop("guidance", Guidance(scale, "constant"))
    rows = [PROMPTS[i] for i in which] + ([EMPTY] * len(which) if guidance.active else [])
    return Request(len(which), num_ar_steps, guidance=guidance, prompts=Prompts.of(rows), **options)


def turns(
    model: NextStep, which: Sequence[int], policy: StepPolicy = QUICK, solver: str = "euler-maruyama-ode", **more: Any
) -> Iterator[ARStep]:
    noise = SeededNoise([SEEDS[i] for i in which])
    return generate_steps(model, request(which, **more), policy, make_solver(solver), noise)


def draw(model: NextStep, which: Sequence[int], **options: Any) -> Tensor:
    return model.finish(list(turns(model, which, **options))[-1].state)


# --- names and files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, find_preset("nextstep-1").spec.architecture])
def test_the_names_are_those_of_the_model_and_a_bijection(config: NextStepConfig) -> None:
    with torch.device("meta"):
        ours = NextStep(config).state_dict()
    names = official_names(config)
    assert set(names.parts) == set(ours)
    official = names.to_official(ours)
    assert {"embed_tokens.weight", "layers.0.self_attn.q_proj.bias", "norm.weight", "image_in_projector.weight",
            "image_head.net.time_embed.mlp.0.weight", "image_head.net.res_blocks.0.in_ln.bias",
            "image_head.net.final_layer.adaLN_modulation.1.weight"} <= set(official)  # fmt: skip
    others = {
        "lm_head.weight": torch.zeros(1),
        "gen_pos_embed": torch.zeros(1),
        "vae.decoder.conv_in.bias": torch.zeros(1),
    }
    back = names.from_official(official | others)
    assert {name: value.shape for name, value in back.items()} == {name: value.shape for name, value in ours.items()}
    for wrong in ("gen_pos_embed2", "layers.0.self_attn.o_proj.bias", "layers.0.mlp.up_proj.bias"):
        with pytest.raises(DisaError, match="1 unexpected"):
            names.from_official(official | {wrong: torch.zeros(1)})


def test_the_published_model_has_its_size() -> None:
    with torch.device("meta"):
        state = find_preset("nextstep-1").build().state_dict()
    head = sum(value.numel() for name, value in state.items() if name.startswith("head."))
    assert abs(head / 1e6 - 157) < 1
    # Qwen2.5-14B has 14.77 billion parameters, 0.78 of them in the layer that writes text.
    whole = sum(value.numel() for value in state.values()) + 152_064 * 5120
    assert abs(whole / 1e9 - 14.77 - 0.157 - 0.026) < 0.01


def test_official_configurations_of_both_versions() -> None:
    first = OFFICIAL | {"latent_size": 64, "latent_channels": 16, "latent_patch_size": 2, "fm_head_dim": 1536,
                        "fm_head_layers": 12}  # fmt: skip
    assert config_of(first) == find_preset("nextstep-1").spec.architecture
    later = OFFICIAL | {"image_size": 64, "num_channels": 16, "patch_size": 2, "genloss_width": 1536,
                        "genloss_depth": 12, "base_image_grid_size": 64}  # fmt: skip
    assert config_of(later, norm_tokens=False) == find_preset("nextstep-1.1").spec.architecture
    places = config_of(first | {"use_gen_pos_embed": True})
    assert (places.positions, places.positions_side) == ("in-order", 32)
    assert config_of(later | {"use_gen_pos_embed": True}).positions == "by-place"


def shards(model: NextStep, folder: Path, dtype: torch.dtype) -> Path:
    """Official files of two shards, with what is not ours to read beside it."""
    official = official_names(CONFIG).to_official(model.state_dict())
    official |= {"lm_head.weight": torch.zeros(300, 32), "gen_pos_embed": torch.zeros(1, 4, 32)}
    names, folder_map = sorted(official), {}
    folder.mkdir()
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({name: official[name].to(dtype).contiguous() for name in part}, folder / file)
        folder_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": folder_map}))
    return folder


def test_shards_are_rounded_as_they_are_read(model: NextStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in float32 takes no more memory than it does in bfloat16: one tensor of the file is held at a time."""
    folder, alive = shards(model, tmp_path / "official", torch.float32), list[Any]()
    read = stored._read

    def watched(*arguments: Any) -> Tensor:
        assert not any(each() is not None for each in alive)
        tensor = read(*arguments)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(stored, "_read", watched)
    found = load_model(PRESET, folder, dtype=torch.bfloat16).state_dict()
    assert len(alive) == len(official_names(CONFIG).official)
    assert all(torch.equal(value, model.state_dict()[name].to(torch.bfloat16)) for name, value in found.items())


def test_converted_weights_draw_the_same(model: NextStep, tmp_path: Path, registered: Preset, words: Path) -> None:
    folder = shards(model, tmp_path / "official", torch.float32)
    convert(folder, PRESET.name, tmp_path / "ours")
    one, two = (
        Sampler.from_pretrained(*given, device="cpu", tokenizer=words).sample(prompts="a cat").latents
        for given in ((PRESET.name, folder), (tmp_path / "ours",))
    )
    assert torch.equal(one, two)


def test_the_checkpoint_of_another_family_is_named(tmp_path: Path, registered: Preset, model: NextStep) -> None:
    with pytest.raises(DisaError, match=f"It is a checkpoint of {PRESET.name}: load it as that"):
        load_model(find_preset("mar-base"), shards(model, tmp_path / "official", torch.float32))
    torch.save(small.official_weights(), tmp_path / "mar.pth")
    with pytest.raises(DisaError, match="does not fit this model"):
        load_model(PRESET, tmp_path / "mar.pth")


# --- one token per AR step --------------------------------------------------------------------------------------------


def test_an_ar_step_draws_a_token_of_each_image(model: NextStep) -> None:
    found = list(turns(model, [0, 1]))
    assert [step.problem.num_rows for step in found] == [2] * 6
    assert [step.problem.position.tolist() for step in found] == [[k, k] for k in range(6)]
    assert [step.evaluations for step in found] == [4 * count for count in QUICK.counts(6)]
    assert [step.problem.rows_to_come for step in found] == [5, 4, 3, 2, 1, 0]


def test_what_is_read_token_by_token_is_what_one_pass_says(model: NextStep) -> None:
    """Without a cache: the prompt and every token that was drawn, in one sequence with a causal mask."""
    last = list(turns(model, [0, 2], scale=1.0))[-1]
    for image, which in enumerate((0, 2)):
        tokens = last.state.tokens[image, :-1]
        with torch.no_grad():
            words = model.llm.embed_tokens(torch.tensor(PROMPTS[which]))
            x = torch.cat([words, model.image_in(tokens)])[None]
            hidden = model.llm(inputs_embeds=x, attention_mask=causal(x.shape[1], x)).last_hidden_state[0, -1]
        assert (last.state.hidden[image] - hidden).abs().max() <= 2e-5 * hidden.abs().max()


def test_drawn_tokens_are_normed_where_the_architecture_says_so(model: NextStep) -> None:
    *_, last = turns(model, [0])
    expected = F.layer_norm(last.tokens, (CONFIG.token_channels,), eps=1e-6)
    assert torch.equal(last.state.tokens[:, -1], expected)
    plain = deepcopy(model)
    plain.config = replace(CONFIG, norm_tokens=False)
    *_, last = turns(plain, [0])
    assert torch.equal(last.state.tokens[:, -1], last.tokens)


def test_the_cache_is_allocated_once_and_fits(model: NextStep, monkeypatch: pytest.MonkeyPatch) -> None:
    made, empty = list[KVCache](), KVCache.empty

    def watched(*arguments: Any) -> KVCache:
        made.append(empty(*arguments))
        return made[-1]

    monkeypatch.setattr(KVCache, "empty", watched)
    places, step = set[tuple[int, ...]](), None
    for step in turns(model, [0, 1]):
        places.add(tuple(each.cache.keys.data_ptr() for each in step.state.readings))
    # The prompts of two images and the empty one, which is as long as one of them; the last token is not read.
    assert len(made) == 2
    assert len(places) == 1
    assert [cache.keys.shape[3] for cache in made] == [len(EMPTY) + 5, len(PROMPTS[0]) + 5]
    assert step is not None
    assert all(each.cache.length == each.cache.keys.shape[3] for each in step.state.readings)


def test_an_ar_step_makes_as_many_calls_as_the_one_before(model: NextStep) -> None:
    """Nothing but the length of what is attended to grows."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return function(*args, **(kwargs or {}))

    counts, running = list[int](), turns(model, [0, 1], policy=parse("constant:2"))
    for _ in range(6):
        with Calls() as calls:
            next(running)
        counts.append(calls.count)
    assert len(set(counts[1:-1])) == 1  # in the last one the cache is full, which saves views of it
    assert counts[-1] <= counts[1]


@pytest.mark.parametrize(("positions", "side"), [("in-order", 5), ("by-place", 3)])
def test_positions_of_both_versions(positions: str, side: int) -> None:
    """The first counts places in rows of the table, whatever the image's width; the second goes by row and column."""
    model = NextStep(replace(CONFIG, positions=positions, positions_side=side))
    table = model._positions((2, 3), torch.zeros(1))
    assert table is not None
    column, row = (4 % 5, 4 // 5) if positions == "in-order" else (4 % 3, 4 // 3)
    frequencies = [10_000 ** -(i / 8) for i in range(8)]
    parts = [f(u * w) for u in (column, row) for f in (torch.sin, torch.cos) for w in torch.tensor(frequencies)]
    torch.testing.assert_close(table[4], torch.stack(parts), rtol=0, atol=1e-6)
    with pytest.raises(DisaError, match=f"has more places than a table of {side}x{side}"):
        model.config.check_places((7, 9))


# --- what may not change an image -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_an_image_does_not_depend_on_its_batch(model: NextStep, scale: float) -> None:
    for each in (model, small.packed(model)):
        together = draw(each, [0, 1, 2, 3], scale=scale)
        assert together.isfinite().all()
        for which in ([3, 1], [2]):
            assert torch.equal(draw(each, which, scale=scale), together[which]), which


def test_padded_prompts_say_the_same_up_to_rounding(model: NextStep, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where prompts of all lengths are read together, aligned at their ends."""
    apart = draw(model, [0, 1, 2])
    monkeypatch.setattr(reading, "sums_vary", lambda device: False)
    padded = draw(model, [0, 1, 2])
    assert (padded - apart).abs().max() <= 2e-5 * apart.abs().max()


def test_a_generation_is_left_alone_by_another(model: NextStep) -> None:
    alone = [draw(model, [0, 1]), draw(model, [2], scale=1.0)]
    running = zip(turns(model, [0, 1]), turns(model, [2], scale=1.0), strict=True)
    *_, last = running
    for step, expected in zip(last, alone, strict=True):
        assert torch.equal(model.finish(step.state), expected)


def test_going_ahead_draws_what_would_be_drawn(model: NextStep) -> None:
    running = turns(model, [0, 1])
    step = [next(running) for _ in range(3)][-1]
    ahead = model.ahead(step.state, SeededNoise(SEEDS[:2]))
    preview = model.preview(ahead)
    assert preview.undrawn is not None
    assert preview.undrawn.flatten(1).tolist() == [[False] * 3 + [True] * 3] * 2
    *_, last = running
    assert torch.equal(model.preview(step.state).latents, model.finish(last.state))
    assert not torch.equal(model.finish(ahead), model.finish(last.state))


@pytest.mark.parametrize("solver", [name for name, each in SOLVERS.items() if "velocity" in each.takes])
@pytest.mark.parametrize("policy", ["constant:3", "linear:4-2", "two-stage:3-1"])
def test_every_policy_goes_with_every_solver(model: NextStep, solver: str, policy: str) -> None:
    found = list(turns(model, [0], parse(policy), solver))
    assert model.finish(found[-1].state).isfinite().all()
    assert [step.evaluations for step in found] == [2 * count for count in parse(policy).counts(6)]


# --- guidance and pictures --------------------------------------------------------------------------------------------


def test_unconditional_prompts_are_dropped_where_nothing_is_guided_any_more(model: NextStep) -> None:
    guidance = Guidance(3.0, "constant", progress=(0.0, 0.4))
    found = [(len(step.state.hidden), step.evaluations) for step in turns(model, [0, 1], guidance=guidance)]
    assert [rows for rows, _ in found] == [4, 4, 4, 2, 2, 2]
    counts = QUICK.counts(6)
    assert [made for _, made in found] == [4 * count for count in counts[:3]] + [2 * count for count in counts[3:]]


def test_the_official_ramp_falls(model: NextStep) -> None:
    scales = [step.problem.guidance for step in turns(model, [0], guidance=Guidance(4.0, "falling"))]
    assert scales == pytest.approx([1 + 3 * (6 - k) / 6 for k in range(6)])


SOURCE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(4))


def edited(guidance: Guidance, source: Tensor = SOURCE, place: int = CONFIG.placeholder_id) -> Request:
    seen = [place] * 4
    rows = [[5, *seen, 6], [5, *seen, 6, 7]]
    rows += [[5, *seen]] * 2 * guidance.active + [EMPTY] * 2 * guidance.three_way
    return Request(2, 6, guidance=guidance, prompts=Prompts.of(rows), source=source)


def edit(model: NextStep, guidance: Guidance, **more: Any) -> list[ARStep]:
    solver = make_solver("euler-maruyama-ode")
    return list(generate_steps(model, edited(guidance, **more), QUICK, solver, SeededNoise(SEEDS[:2])))


def test_three_ways_are_counted_and_mixed(model: NextStep) -> None:
    found = edit(model, Guidance(3.0, "constant", source_guidance=2.0))
    assert [step.evaluations for step in found] == [6 * count for count in QUICK.counts(6)]
    problem = found[0].problem
    field: Any = problem.field
    grid, x = problem.process.grid("uniform", 2), torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both, picture, nothing = field.network.on(grid, [3, 3])(x, 1).value
        mixed = field.on(grid)(x, 1).value
    torch.testing.assert_close(mixed, nothing + 2 * (picture - nothing) + 3 * (both - picture))


def test_a_scale_of_one_is_two_ways(model: NextStep) -> None:
    """Both prompts of an image know the picture then, and the third says nothing."""
    two, three = (edit(model, Guidance(3.0, "constant", source_guidance=own)) for own in (1.0, 1.0 + 1e-7))
    gap = (model.finish(two[-1].state) - model.finish(three[-1].state)).abs().max()
    assert gap <= 1e-4 * model.finish(two[-1].state).abs().max()
    assert two[0].evaluations * 3 == three[0].evaluations * 2


def test_the_picture_matters_and_may_differ_for_the_unconditional_prompts(model: NextStep) -> None:
    guidance = Guidance(3.0, "constant")
    one, other, same = (
        model.finish(edit(model, guidance, source=source)[-1].state)
        for source in (SOURCE, SOURCE.flip(0), torch.cat([SOURCE, SOURCE]))
    )
    assert not torch.equal(one, other)
    assert torch.equal(one, same)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: edited(Guidance(2.0), place=9), "hold the places of a picture"),
        (lambda: edited(Guidance(2.0), source=SOURCE[:1]), "expected pictures for 2 images, found 1"),
        (lambda: edited(Guidance(2.0), source=SOURCE[:, :, :3]), "sides that are multiples of 2"),
        (lambda: request([0], guidance=Guidance(2.0, source_guidance=2.0)), "needs a picture to edit: found none"),
        (lambda: request([0], num_ar_steps=5), "draws its tokens one after the other: an image of 6 has 6 AR steps"),
        (lambda: request([0], num_ar_steps=6, token_grid=(2, 2)), "an image of 4 has 4 AR steps, found 6"),
        (lambda: Request(1, 6), "found none. Give one prompt per image"),
        (lambda: Request(1, 6, prompts=Prompts.of([[300]])), "token ids must be 0 to 299, found 300"),
        (lambda: Request(1, 6, prompts=Prompts.of([[1] * 395])), "at most 394 tokens here, found 395"),
        (lambda: Request(1, 6, torch.tensor([1])), "NextStep cannot take labels"),
        (
            lambda: request([0], known=torch.zeros(1, 3, 4, 6), mask=torch.ones(1, 2, 3, dtype=torch.bool)),
            "tokens one after the other and cannot keep known tokens; use a MAR model",
        ),
    ],
)
def test_requests_that_cannot_be_met(model: NextStep, make: Callable[[], Request], message: str) -> None:
    with pytest.raises(DisaError, match=message):
        model.begin(make(), SeededNoise(SEEDS[:2]))


def test_another_family_edits_no_picture() -> None:
    sampler = small.sampler()
    with pytest.raises(DisaError, match="MAR cannot edit a picture"):
        sampler.sample([1], source=torch.zeros(1, 1, 8, 8))
    with pytest.raises(DisaError, match="source_guidance goes with a picture"):
        sampler.sample([1], source_guidance=2.0)


# --- prompts and the sampler ------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path: Path) -> Path:
    from test_harmon import tokenizer

    return tokenizer(tmp_path / "tokenizer", AREA, BEGIN, END, PLACE)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Preset:
    monkeypatch.setitem(PRESETS, PRESET.name, PRESET)
    return PRESET


def test_prompts_have_the_published_form(words: Path) -> None:
    text = Text.load(words, 300, 400).for_grid((2, 3))
    said = text.tokenizer.decode(text.to_draw("a cat", 6))
    assert said.replace(" ", "") == f"acat{AREA}2*3{BEGIN}"
    assert text.tokenizer.decode(text.unconditional(None, 6)).replace(" ", "") == f"{AREA}2*3{BEGIN}"
    edits = text.for_grid((2, 3), (1, 2))
    found = edits.tokenizer.decode(edits.to_draw("redder", 6)).replace(" ", "")
    assert found == f"{AREA}1*2{BEGIN}{PLACE}{PLACE}{END}redder{AREA}2*3{BEGIN}"
    assert text.to_draw("a cat", 6) == text.for_grid((2, 3)).to_draw("a cat", 6)
    with pytest.raises(DisaError, match="may not hold"):
        text.to_draw(f"a {BEGIN}", 6)
    with pytest.raises(DisaError, match="the prompt is too long: expected at most"):
        text.to_draw("x" * 400, 6)
    for act in (lambda: text.to_rewrite("a cat"), lambda: text.to_describe("what", 6)):
        with pytest.raises(DisaError, match="this model does not"):
            act()


@pytest.fixture
def sampler(model: NextStep, words: Path, registered: Preset) -> Sampler:
    place = Text.load(words, 300, 400)._ids(PLACE)[0]
    preset = small.changed(PRESET, architecture=replace(CONFIG, placeholder_id=place))
    own = deepcopy(model)
    own.config = preset.spec.architecture
    return Sampler(preset, own, device="cpu", tokenizer=words)


def test_the_sampler_draws_any_size_in_as_many_ar_steps_as_tokens(sampler: Sampler) -> None:
    result = sampler.sample(prompts=["a cat", "two red dogs"], seeds=[1, 2])
    assert result.images.shape == (2, 3, 4, 6)
    assert len(result.trace) == 6
    alone = sampler.sample(prompts="two red dogs", seeds=2)
    assert torch.equal(alone.latents[0], result.latents[1])
    tall = sampler.sample(prompts="a cat", seeds=1, height=8, width=4)
    assert (tall.images.shape, len(tall.trace)) == ((1, 3, 8, 4), 8)
    assert not torch.equal(
        sampler.sample(prompts="two red dogs", seeds=2, negative_prompt="a cat").latents, alone.latents
    )
    with pytest.raises(DisaError, match="an image of 6 has 6 AR steps, found 3"):
        sampler.sample(prompts="a cat", num_ar_steps=3)
    with pytest.raises(DisaError, match="writes no words: leave rewrite out"):
        sampler.sample(prompts="a cat", rewrite=True)


def test_the_sampler_edits(sampler: Sampler) -> None:
    inputs = Inputs.paired([1, 2], prompts=["redder", "make it a dog"], source=SOURCE)
    options: dict[str, Any] = {"source_guidance": 2.0, "guidance": 3.0}
    whole = sampler.sample(inputs=inputs, **options)
    alone = sampler.sample(inputs=inputs.part([1]), **options)
    assert torch.equal(whole.latents[1], alone.latents[0])
    assert [step.evaluations for step in whole.trace] == [
        3 * 2 * count for count in parse(PRESET.defaults.steps).counts(6)
    ]
    other = sampler.sample(inputs=replace(inputs, source=SOURCE.flip(0)), **options)
    assert not torch.equal(other.latents, whole.latents)
    assert whole.settings["source_guidance"] == 2.0


def test_half_precision_stays_near(model: NextStep) -> None:
    half = deepcopy(model).to(torch.bfloat16)
    exact, rounded = (next(turns(each, [0, 1])) for each in (model, half))
    assert rounded.tokens.dtype == torch.float32
    assert (rounded.tokens - exact.tokens).abs().max() <= 0.1 * exact.tokens.abs().max()


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_decreases_the_loss_of_the_head() -> None:
    random = torch.Generator().manual_seed(0)
    head = small.randomised(VelocityHead(4, 8, 16, 1)).requires_grad_(True)
    start, noise, condition = (torch.randn(32, width, generator=random) for width in (4, 4, 8))
    t, weight = torch.rand(32, generator=random), (torch.arange(32) < 20).float()
    optimizer, losses = torch.optim.Adam(head.parameters(), lr=1e-2), list[float]()
    for _ in range(6):
        loss = head.loss(FlowLoss(), start, condition, t, noise, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    noise[20:] = 100.0  # rows without a weight say nothing
    assert head.loss(FlowLoss(), start, condition, t, noise, weight).item() < losses[0]


def test_linear_layers_of_the_language_model_are_ours(model: NextStep) -> None:
    kinds = {type(each) for each in model.modules() if isinstance(each, torch.nn.Linear)}
    assert kinds == {Linear}
