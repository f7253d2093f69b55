"""`disa.Pipeline`: the sampler under the names and habits of diffusers' pipelines.

| diffusers | here |
|---|---|
| `prompt`, `class_labels`, `negative_prompt` | prompts or labels, whichever the model takes |
| `num_inference_steps` | AR steps; the model's own if None |
| `num_diffusion_steps` (NOVA) | denoising steps of every AR step, or a step policy such as linear:50-5 |
| `guidance_scale` | guidance; 1 is off |
| `generator`: one | its seed, counted on from image to image |
| `generator`: a list | the seed of each image |
| `generator`: None | seeds from PyTorch's own random numbers, which `torch.manual_seed` repeats |
| `num_images_per_prompt` | images of each prompt or label, one after the other |
| `callback_on_step_end` | called after every AR step of every batch, see `Pipeline.__call__` |
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

import torch
from torch import Tensor

from disa.draw.inputs import Inputs
from disa.draw.run import Run, Turn
from disa.draw.sampler import Sampler
from disa.draw.samples import Samples, check_output_type
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.files import write_text
from disa.pipeline.card import card
from disa.pipeline.finding import find_parts
from disa.runtime.surroundings import undisturbed
from disa.values import counted, did_you_mean, many, shown, text, truth, whole_number

LARGEST_SEED = 2**64
CARD = "README.md"

Callback = Callable[[Any, int, int, dict[str, Tensor]], Any]


class More(TypedDict, total=False):
    """The other arguments of a call."""

    negative_prompt: str | None
    num_images_per_prompt: int
    height: int | None
    width: int | None
    callback_on_step_end: Callback | None
    callback_on_step_end_tensor_inputs: Sequence[str]
    settings: Settings | None


@dataclass(frozen=True)
class PipelineOutput:
    """What a call returns."""

    images: Any
    """A list of pictures (`pil`), [N, height, width, channels] in [0, 1] (`np`), [N, channels, height, width] (`pt`),
    or latents [N, C, H, W] (`latent`)."""
    samples: Samples
    """The same with seeds, settings, evaluations and times."""


class Pipeline:
    """A model that draws when it is called."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self._graphs: str | None = None

    def __repr__(self) -> str:
        return f"Pipeline({self.sampler!r})"

    @classmethod
    def from_pretrained(
        cls, name: str | Path, model_type: str | None = None, torch_dtype: Any = "fp32", **parts: Any
    ) -> Pipeline:
        """What `Sampler.from_pretrained` takes, or the layout of jadechoghari/mar, whose models have a type.

        name: a preset, a folder that disa wrote, a hub repository in that layout; or jadechoghari/mar, and folders with
        its files. model_type: which of the latter, such as mar_huge. torch_dtype: torch.float32 or torch.bfloat16.
        parts: `checkpoint`, `vae`, `tokenizer`, `device`, `weights_key` and `offload` of `Sampler.from_pretrained`; the
        last one does what diffusers' `enable_sequential_cpu_offload` does, as weights are read. Raises DisaError.
        """
        known = ("checkpoint", "vae", "tokenizer", "device", "weights_key", "offload")
        for part in parts:
            if part not in known:
                raise DisaError(f"from_pretrained has no argument {part!r}.{did_you_mean(part, known)}")
        return cls(Sampler.from_pretrained(**find_parts(name, model_type, parts), dtype=torch_dtype))

    def to(self, *where: Any, **also: Any) -> Self:
        """Move to a device, to another dtype or both, in place: see `Loaded.to`."""
        self.sampler.to(*where, **also)
        return self

    @property
    def device(self) -> torch.device:
        return self.sampler.device

    def enable_graphs(self) -> None:
        """Capture CUDA graphs and replay them in later calls: the option `graphs` of drawing, where `settings` leave it
        open. It changes speed, not images. On another device a warning says that it does nothing there."""
        self.sampler.settings(graphs="on")
        self._graphs = "auto"

    # -- drawing -------------------------------------------------------------------------------------------------

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        class_labels: int | Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        num_diffusion_steps: Any = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **more: Unpack[More],
    ) -> Any:
        """Draw images: a `PipelineOutput`; the module's docstring says what the names mean.

        prompt, class_labels: neither draws images without a class. output_type: `pil`, `np`, `pt` or `latent`.
        return_dict: False for a tuple with the images alone. more: `negative_prompt`, `num_images_per_prompt`,
        `height`, `width`; settings: a `disa.Settings` with all other options of drawing.

        callback_on_step_end is given this pipeline, the AR step, how many rows of an image are still to be drawn
        (tokens; scales in FlowAR, cells in xAR and BitDance), and {"latents": what is drawn so far}. What it returns
        must be that or nothing: latents under way cannot be changed. To stop, raise an exception in it. Raises
        DisaError.
        """
        for name in more:
            if name not in More.__annotations__:
                raise DisaError(f"a pipeline has no argument {name!r}.{did_you_mean(name, More.__annotations__)}")
        check_output_type(output_type)
        as_object = truth(return_dict, "return_dict")
        callback = _callback(more)
        inputs = self._inputs(prompt, class_labels, generator, more)
        base = Settings.of(more.get("settings"))
        options = {
            "graphs": base.graphs or self._graphs,
            "num_ar_steps": num_inference_steps,
            "steps": num_diffusion_steps,
            "guidance": guidance_scale,
            "height": more.get("height"),
            "width": more.get("width"),
        }
        run = self.sampler.start(inputs, self.sampler.settings(base, **options), output_type)
        samples = self._drawn(run, callback)
        images = samples.latents if output_type == "latent" else samples.images
        return PipelineOutput(images, samples) if as_object else (images,)

    def _inputs(self, prompt: Any, class_labels: Any, generator: Any, more: More) -> Inputs:
        if prompt is not None and class_labels is not None:
            raise DisaError("a model draws from labels or from prompts: found both.")
        each = whole_number(more.get("num_images_per_prompt", 1), "num_images_per_prompt", 1)
        prompts = None if prompt is None else many(prompt, text, "prompt")
        labels = None if class_labels is None else many(class_labels, whole_number, "class_labels")
        prompts = None if prompts is None else [value for value in prompts for _ in range(each)]
        labels = None if labels is None else [value for value in labels for _ in range(each)]
        asked = prompts if labels is None else labels
        count = each if asked is None else len(asked)
        return Inputs(seeds_of(generator, count), labels, prompts, more.get("negative_prompt"))

    def _drawn(self, run: Run, callback: Callback | None) -> Samples:
        parts = list[Samples]()
        for turn in run:
            if callback is not None:
                self._call(callback, turn)
            if turn.samples is not None:
                parts.append(turn.samples)
        return Samples.join(parts)

    def _call(self, callback: Callback, turn: Turn) -> None:
        with undisturbed():
            latents = self.sampler.model.preview(turn.step.state).latents
        given = {"latents": latents.clone()}
        back = callback(self, turn.step.ar_step, turn.step.problem.rows_to_come or 0, dict(given))
        if back is None:
            return
        if not isinstance(back, dict) or any(
            back.get(name) is not value for name, value in given.items() if name in back
        ):
            raise DisaError("callback_on_step_end may look at latents, but not change them: return what it was given.")

    # -- saving --------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, measured: str | Path | None = None) -> Path:
        """Write the model as `Sampler.save_pretrained` does, and a model card.

        measured: the `compare.json` of a `disa compare` of this model, for a table of what was measured. Raises
        DisaError.
        """
        words = card(self.sampler, measured)  # first, so that nothing is written where it is refused
        place = self.sampler.save_pretrained(folder)
        write_text(place / CARD, words)
        return place

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str = "Upload a model of disa",
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        measured: str | Path | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes; returns the address of the commit. The repository is made if need be.

        token: of the hub, by default the one that `hf auth login` stored. Raises DisaError.
        """
        from huggingface_hub import HfApi

        self.sampler.prepare()  # the autoencoder goes with the model
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.save_pretrained(Path(temporary) / "model", measured)
            api = HfApi(token=token)
            made = api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=made.repo_id, folder_path=folder, commit_message=commit_message, create_pr=create_pr
            )
        return str(done.commit_url)


def seeds_of(generator: Any, count: int) -> list[int]:
    """The seeds of so many images. Raises DisaError."""
    if generator is None:
        return torch.randint(2**63 - 1, (count,)).tolist()
    if isinstance(generator, torch.Generator):
        first = generator.initial_seed()
        return [(first + i) % LARGEST_SEED for i in range(count)]
    if not isinstance(generator, list | tuple) or not all(isinstance(each, torch.Generator) for each in generator):
        told = "generator must be a torch.Generator or a list of them, found"
        raise DisaError(f"{told} {shown(generator)}: torch.Generator().manual_seed(0) makes one.")
    if len(generator) != count:
        raise DisaError(f"expected a generator for each of {counted(count, 'image')}, found {len(generator)}.")
    return [each.initial_seed() % LARGEST_SEED for each in generator]


def _callback(more: More) -> Callback | None:
    """Raises DisaError."""
    callback = more.get("callback_on_step_end")
    wanted = many(
        more.get("callback_on_step_end_tensor_inputs", ["latents"]), text, "callback_on_step_end_tensor_inputs"
    )
    if any(name != "latents" for name in wanted):
        raise DisaError(f"a callback is given latents and nothing else, found {shown(wanted)}.")
    if callback is not None and not callable(callback):
        raise DisaError(f"callback_on_step_end must be a function, found {shown(callback)}.")
    return callback
