"""Drawing by diffusers' names: the images are the sampler's own; and what is written for the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import disa
import small
from disa.errors import DisaError
from disa.models.registry import PRESETS
from disa.models.spec import HubFile
from disa.pipeline.pipeline import CARD, Pipeline, PipelineOutput, seeds_of
from disa.study.compare import compare


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(small.sampler())


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


ASKED: dict[str, Any] = {
    "class_labels": [3, 5],
    "num_inference_steps": 5,
    "num_diffusion_steps": 3,
    "guidance_scale": 1.5,
}


def expected(seeds: list[int], **more: Any) -> Any:
    asked = {"labels": [3, 5], "num_ar_steps": 5, "steps": "constant:3", "guidance": 1.5} | more
    return small.sampler().sample(seeds=seeds, **asked)


def test_images_are_those_of_the_sampler(pipeline: Pipeline) -> None:
    out = pipeline(**ASKED, generator=seeded(7, 2), output_type="pt")
    assert isinstance(out, PipelineOutput)
    assert torch.equal(out.images, expected([7, 2]).images)
    assert out.samples.settings["steps"] == "constant:3"
    annealing: Any = ASKED | {"num_diffusion_steps": "linear:4-2"}
    annealed = pipeline(**annealing, generator=seeded(7)[0], output_type="pt")
    assert torch.equal(annealed.images, expected([7, 8], steps="linear:4-2").images)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_every_output_type(pipeline: Pipeline, output_type: str) -> None:
    (images,) = pipeline(**ASKED, generator=seeded(0, 1), output_type=output_type, return_dict=False)
    own = expected([0, 1])
    match output_type:
        case "pil":
            assert [type(image) for image in images] == [Image.Image] * 2
            assert (
                images[1].tobytes()
                == small.sampler()
                .sample(5, 1, output_type="pil", num_ar_steps=5, steps=3, guidance=1.5)
                .images[0]
                .tobytes()
            )
        case "np":
            assert np.array_equal(images, own.images.permute(0, 2, 3, 1).numpy())
        case "pt":
            assert torch.equal(images, own.images)
        case _:
            assert torch.equal(images, own.latents)


def test_several_images_of_each_label(pipeline: Pipeline) -> None:
    out = pipeline(class_labels=[3, 5], num_images_per_prompt=2, generator=seeded(4)[0])
    assert (out.samples.labels, out.samples.seeds) == ([3, 3, 5, 5], [4, 5, 6, 7])
    nothing = pipeline(num_images_per_prompt=2)
    assert (nothing.samples.labels, len(nothing.images)) == (None, 2)


def test_without_generators_seeds_follow_pytorchs_own() -> None:
    torch.manual_seed(0)
    first, second = seeds_of(None, 3), seeds_of(None, 3)
    torch.manual_seed(0)
    assert seeds_of(None, 3) == first != second
    assert seeds_of(seeded(2**64 - 1)[0], 2) == [2**64 - 1, 0]


def test_a_callback_sees_every_ar_step(pipeline: Pipeline) -> None:
    seen = []

    def look(given: Any, step: int, left: int, values: dict[str, Any]) -> dict[str, Any]:
        assert given is pipeline
        seen.append((step, left, values["latents"]))
        return values

    (images,) = pipeline(
        **ASKED, generator=seeded(0, 1), output_type="latent", return_dict=False, callback_on_step_end=look
    )
    assert [step for step, _, _ in seen] == list(range(5))
    assert [left for _, left, _ in seen] == sorted((left for _, left, _ in seen), reverse=True)
    assert seen[-1][1] == 0
    assert torch.equal(seen[-1][2], images)
    assert not torch.equal(seen[0][2], images)


@pytest.mark.parametrize("name", ["flowar-digits", "xar-digits", "bitdance-digits"])
def test_a_callback_is_told_the_rows_that_are_left(name: str) -> None:
    left = list[int]()
    pipeline = Pipeline.from_pretrained(name)
    pipeline(
        class_labels=3,
        num_diffusion_steps=1,
        generator=seeded(0),
        callback_on_step_end=lambda *told: left.append(told[2]),
    )
    assert left == list(reversed(range(len(left))))  # scales and cells: tokens would be more
    told = " ".join((Pipeline.__call__.__doc__ or "").split())
    assert (
        "how many rows of an image are still to be drawn (tokens; scales in FlowAR, cells in xAR and BitDance)" in told
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prompt": "a cat"}, "draws from labels"),
        ({"prompt": "a cat", "class_labels": 3}, "found both"),
        ({"class_labels": []}, "nothing to draw"),
        ({"class_labels": 10}, "label"),
        ({"class_labels": 3, "generator": 7}, "torch.Generator"),
        ({"class_labels": 3, "generator": seeded(1, 2)}, "expected a generator for each of 1 image, found 2"),
        ({"class_labels": 3, "num_inference_steps": 17}, "AR steps"),
        ({"class_labels": 3, "output_type": "jpeg"}, "output type"),
        ({"class_labels": 3, "guidance": 2.0}, "no argument 'guidance'"),
        ({"class_labels": 3, "callback_on_step_end": 3}, "must be a function"),
        ({"class_labels": 3, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "nothing else"),
        ({"class_labels": 3, "callback_on_step_end": lambda *_: {"latents": torch.zeros(1)}}, "not change them"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused(pipeline: Pipeline, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(DisaError, match=words):
        pipeline(**asked)


def test_prompts() -> None:
    pipe = Pipeline.from_pretrained("harmon-shapes", device="cpu")
    asked: dict[str, Any] = {"num_inference_steps": 2, "num_diffusion_steps": 1, "generator": seeded(1)[0]}
    out = pipe("three green stars", negative_prompt="red", output_type="pt", **asked)
    own = pipe.sampler.sample(
        prompts="three green stars", seeds=1, negative_prompt="red", num_ar_steps=2, steps="constant:1"
    )
    assert torch.equal(out.images, own.images)


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[1] / "docs" / "pipeline.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "pipeline.md", "exec"), names)
    with Image.open("three.png") as picture:
        assert picture.tobytes() == names["pipe"].sampler.sample(3, 0, output_type="pil").images[0].tobytes()
    assert names["images"].shape[0] == 2


# -- models --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:this processor has no bfloat16")
def test_to_moves_the_model() -> None:
    pipe = Pipeline(small.sampler())
    assert pipe.to("cpu", torch.bfloat16) is pipe
    assert (pipe.device.type, pipe.sampler.dtype) == ("cpu", "bf16")
    assert Pipeline.from_pretrained("mar-digits", torch_dtype=torch.bfloat16, device="cpu").sampler.dtype == "bf16"
    with pytest.raises(DisaError, match="no argument 'devise'"):
        Pipeline.from_pretrained("mar-digits", devise="cpu")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in the layout of the published weights, of two small models; both are presets meanwhile."""
    for name, seed in (("mar-base", 1), ("mar-huge", 2)):
        file = HubFile("jadechoghari/mar", f"{name}.safetensors")
        monkeypatch.setitem(PRESETS, name, small.changed(small.PRESET, name=name, weights=file))
        save_file(small.official_weights(seed=seed), tmp_path / file.name)
    return tmp_path


def test_the_layout_of_the_published_weights_is_read_as_it_is(published: Path) -> None:
    for kind, seed in (("mar_base", 1), ("mar-huge", 2)):
        out = Pipeline.from_pretrained(published, kind, device="cpu")(
            class_labels=3, generator=seeded(0)[0], output_type="pt"
        )
        assert torch.equal(out.images, small.sampler(seed=seed).sample(3, 0).images)
    with pytest.raises(DisaError, match="give mar_base or mar_huge as model_type"):
        Pipeline.from_pretrained(published)
    with pytest.raises(DisaError, match="Did you mean mar_huge"):
        Pipeline.from_pretrained(published, "mar_hug")
    (published / "mar-base.safetensors").unlink()
    assert Pipeline.from_pretrained(published, device="cpu").sampler.preset.name == "mar-huge"
    with pytest.raises(DisaError, match="leave model_type out"):
        Pipeline.from_pretrained("mar-digits", "mar_huge")


@pytest.mark.usefixtures("published")
def test_a_type_chooses_among_the_models_of_a_hub_repository(monkeypatch: pytest.MonkeyPatch, published: Path) -> None:
    asked = []

    def locate(path: Any, hub: HubFile, *_: str) -> tuple[str, Path]:
        asked.append((path, hub.repo, hub.name))
        return "hub", published / hub.name

    monkeypatch.setattr("disa.weights.load.locate", locate)
    pipe = Pipeline.from_pretrained("jadechoghari/mar", model_type="mar_huge", device="cpu")
    assert pipe.sampler.preset.name == "mar-huge"
    assert asked == [(None, "jadechoghari/mar", "mar-huge.safetensors")]
    with pytest.raises(DisaError, match="give one of these names"):
        Pipeline.from_pretrained("jadechoghari/mar")


# -- the hub -------------------------------------------------------------------------------------------------------


def test_what_is_pushed_can_be_loaded_and_says_what_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pipe, pushed = Pipeline(small.sampler()), {}
    report = compare(
        pipe.sampler, ["constant:4", "linear:4-1"], disa.Inputs.paired([0, 1], 3), disa.Settings()
    ).report()
    (tmp_path / "compare.json").write_text(json.dumps(report))

    class Hub:
        def __init__(self, token: str | None) -> None:
            pushed["token"] = token

        def create_repo(self, name: str, **options: Any) -> Any:
            pushed["made"] = (name, options)
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, *, folder_path: Path, **options: Any) -> Any:
            Path(folder_path).rename(tmp_path / "pushed")
            pushed["options"] = options
            return SimpleNamespace(commit_url="https://example.org/commit")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    told = pipe.push_to_hub("me/small", private=True, token="t", measured=tmp_path / "compare.json")
    assert told == "https://example.org/commit"
    assert pushed["made"] == ("me/small", {"private": True, "exist_ok": True})
    assert pushed["options"]["repo_id"] == "me/small"
    again = Pipeline.from_pretrained(tmp_path / "pushed", device="cpu")
    images = [each(class_labels=3, generator=seeded(0)[0], output_type="pt").images for each in (pipe, again)]
    assert torch.equal(*images)
    words = (tmp_path / "pushed" / CARD).read_text()
    assert words.startswith("---\nlibrary_name: disa\npipeline_tag: unconditional-image-generation\n")
    assert "| `guidance` | 2.0 |" in words
    assert f"`{pipe.sampler.weights_hash}`" in words
    (row,) = [line for line in words.splitlines() if line.startswith("| `linear:4-1`")]
    assert f"| {report['policies'][1]['evaluations_per_row']:.1f} |" in row


def test_a_card_tells_what_a_paper_reports_and_no_other_models_measurements(tmp_path: Path) -> None:
    base = small.changed(small.PRESET, name="mar-base")
    with_paper = disa.Sampler(
        type(base)(base.spec, base.defaults, base.assets, base.about, PRESETS["mar-base"].paper),
        small.model(),
        device="cpu",
    )
    Pipeline(with_paper).save_pretrained(tmp_path / "model")
    assert "| annealed | linear:50-5 | 64 | 2.31 |  | 0.114 |" in (tmp_path / "model" / CARD).read_text()
    other = compare(
        small.sampler(seed=1), ["constant:2", "constant:1"], disa.Inputs.paired(0, 3), disa.Settings()
    ).report()
    for content, words in ((json.dumps(other), "other weights"), ("{}", "no compare.json")):
        (tmp_path / "compare.json").write_text(content)
        with pytest.raises(DisaError, match=words):
            Pipeline(with_paper).save_pretrained(tmp_path / "second", tmp_path / "compare.json")
    assert not (tmp_path / "second").exists()
