"""`Sampler.from_pretrained(...).sample(...)`: images from a model by name, whatever it is made of.

Shapes: N images of a call, C latent channels, H x W latents, h x w tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disa.codecs.base import LatentCodec
from disa.draw.conditioning import REWRITING, PromptConditioner, Writing
from disa.draw.inputs import Inputs
from disa.draw.loaded import Loaded, PixelCodec, check_offload, check_parts
from disa.draw.recipes import FAST, NONE, find_recipe
from disa.draw.resolve import for_model
from disa.draw.run import Run
from disa.draw.samples import Samples
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.models.harmon.text import DESCRIBE
from disa.models.layers import initialise
from disa.models.prompting import PromptText
from disa.models.registry import find_preset
from disa.models.spec import Preset
from disa.progress import progress
from disa.runtime import devices
from disa.runtime.surroundings import Turns, undisturbed
from disa.values import path, shown
from disa.weights.autoencoders import CODEC
from disa.weights.folders import codec_files, load_folder, model_files, text_files, with_codec, write_folder
from disa.weights.load import load_model
from disa.weights.named import find_model
from disa.weights.tokenizers import tokenizer_in


class Sampler(Loaded):
    """A model with its autoencoder, ready to draw."""

    @classmethod
    @undisturbed()
    def from_pretrained(
        cls,
        name: str | Path,
        checkpoint: str | Path | None = None,
        vae: str | Path | None = None,
        device: str | int | torch.device | None = None,
        dtype: str | torch.dtype = "fp32",
        tokenizer: PromptText | Path | str | None = None,
        weights_key: str | None = None,
        recipe: str | Path | None = None,
        offload: bool = False,
    ) -> Sampler:
        """Load a preset by name, a folder that disa wrote, or a hub repository in that layout: see `find_model`.

        checkpoint: a file with weights for the preset (official or ours); without one, embedded weights or the hub's.
        weights_key: which entry of that file, as "model" or "state.ema"; its moving average, if it has one, by default.
        vae: `kl16.ckpt` or its other forms; read when the first image is decoded. device: cuda, mps or cpu; the best
        there is if None or "auto". dtype: `fp32`, `bf16` or `tf32`. tokenizer: a folder or a hub id, for models that
        draw from prompts; the folder's or the preset's if None; read with the first prompt. recipe: what to draw by if
        not asked otherwise, `fast` or a file that `disa tune` wrote. offload: keep the layers of the language model in
        the CPU's memory, and fetch each when it runs, for a GPU that is too small. Raises DisaError.
        """
        # Weights can be large: what is quick to find comes first.
        devices.pick_device(device)
        devices.pick_dtype(dtype)
        given = None if vae is None else path(vae, "vae")
        other = None if checkpoint is None else path(checkpoint, "checkpoint")
        found = find_model(name, other)
        if isinstance(found, Preset):
            check_parts(found, given, tokenizer)
            if offload:
                check_offload(found, device)
            _check_there(found, given)
            beside = tokenizer_in(other) if found.prompts and other is not None and other.is_dir() else None
            model = load_model(found, other, weights_key=weights_key, dtype=devices.pick_dtype(dtype))
            return cls(found, model, given, device, dtype, tokenizer or beside, offload)._drawn_by(recipe)
        if weights_key is not None:
            raise DisaError(f"{found} is a folder of one model: leave the weights key out.")
        preset, model, codec = load_folder(found, devices.pick_dtype(dtype))
        _check_there(preset, given)
        inside = tokenizer_in(found) if preset.prompts else None
        loaded = cls(preset, model, given or codec, device, dtype, tokenizer or inside, offload)
        loaded.folder = found.absolute()
        return loaded._drawn_by(recipe)

    load = from_pretrained

    def _drawn_by(self, recipe: str | Path | None) -> Sampler:
        if recipe is not None and str(recipe) not in (FAST, NONE):
            recipe = path(recipe, "a recipe").absolute()
        self.recipe = None if recipe is None else str(recipe)
        if self.recipe not in (None, NONE):
            find_recipe(self.recipe, self)  # what is wrong with it is found now
        return self

    @classmethod
    @undisturbed()
    def untrained(
        cls, name: str, seed: int = 0, device: Any = None, dtype: Any = "fp32", tokenizer: PromptText | None = None
    ) -> Sampler:
        """The preset's architecture with random weights: for measuring speed without a checkpoint."""
        preset = find_preset(name)
        devices.pick_device(device)
        devices.pick_dtype(dtype)
        with torch.device("meta"):  # values of PyTorch's own would be drawn from the caller's random numbers
            model = preset.build()
        initialise(model.to_empty(device="cpu"), seed)
        return cls(preset, model, PixelCodec(), device, dtype, tokenizer)

    @undisturbed()
    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `config.json` and `model.safetensors`; beside them autoencoder and tokenizer if given or used, and the
        recipe that the model was loaded with, which is then the folder's `fast`."""
        codec = self.codec if isinstance(self._codec, Path) else self._codec
        preset = self.preset if not isinstance(codec, LatentCodec) else with_codec(self.preset, codec)
        place, files = path(folder, "the folder"), model_files(preset, self.model.state_dict())
        if isinstance(codec, LatentCodec):
            files |= codec_files(codec, CODEC)
        if isinstance(self.conditioner, PromptConditioner) and self.conditioner.has_tokenizer:
            files |= text_files(self.text)
        if self.recipe not in (None, NONE):
            files |= find_recipe(self.recipe, self).files()
        return write_folder(place, files)

    # -- drawing -------------------------------------------------------------------------------------------------

    @undisturbed()
    def settings(self, base: Settings | None = None, **options: Any) -> Settings:
        """The model's own settings, or `base`, with some options changed: the fields of `Settings`. Everything that
        can be wrong is found here. Raises DisaError."""
        return for_model(Settings.of(base, **options), self)

    def sample(
        self,
        labels: int | Sequence[int] | None = None,
        seeds: int | Sequence[int] | None = None,
        *,
        prompts: str | Sequence[str] | None = None,
        inputs: Inputs | None = None,
        settings: Settings | None = None,
        output_type: str = "pt",
        progress_bar: bool = False,
        **options: Any,
    ) -> Samples:
        """Draw images; labels or prompts and seeds are paired one to one, a single one is repeated.

        labels: class indices, or None for unconditional images. seeds: 0 if None. prompts: for models that draw from
        them. options: the fields of `Settings`, as steps="linear:50-5" or guidance=2.0; and those of `Inputs`:
        negative_prompt; known latents [N or 1, C, H, W] with a mask [N or 1, h, w], true where to draw, for
        inpainting; source, latents of a picture to edit (`encode` makes latents). inputs, settings: the same as
        objects. output_type: `pt`, `np`, `pil` or `latent`. progress_bar: tell on standard error how far it is; for a
        function of your own see `Run.result`.
        Raises DisaError.
        """
        asked = {name: options.pop(name) for name in ("negative_prompt", "known", "mask", "source") if name in options}
        given = {"labels": labels, "prompts": prompts} | asked
        if inputs is None:
            inputs = Inputs.paired(0 if seeds is None else seeds, **given)
        elif also := [name for name, value in (given | {"seeds": seeds}).items() if value is not None]:
            raise DisaError(f"inputs say all that is to be drawn: leave {', '.join(also)} out, or give no inputs.")
        run = self.start(inputs, settings, output_type, **options)
        if not progress_bar:
            return run.result()
        with progress("drawing", run.num_turns) as advance:
            return run.result(advance)

    def sample_into(
        self,
        folder: str | Path,
        inputs: Inputs,
        settings: Settings | None = None,
        *,
        if_used: str = "refuse",
        **options: Any,
    ) -> dict[str, Any]:
        """Draw into a folder, each image written as it is drawn; returns the trace, see `SampleFolder`.

        if_used: `refuse` a folder with images of another run, `replace` them, or `resume`: draw only what is missing.
        Raises DisaError.
        """
        from disa.draw.folder import Layout, SampleFolder  # pillow is needed only for writing

        place, whole = path(folder, "the folder"), self.start(inputs, settings, **options)
        target = SampleFolder(place, inputs, whole.about(), Layout.flat(inputs))
        missing = target.open(if_used)
        return target.fill(whole.only(missing).batches() if missing else (), missing)

    @undisturbed()
    def start(self, inputs: Inputs, settings: Settings | None = None, output_type: str = "pt", **options: Any) -> Run:
        """The same as an iterator over AR steps, and over finished batches: see `Run`."""
        if not isinstance(inputs, Inputs):
            raise DisaError(f"inputs must be Inputs, found {shown(inputs)}: they are made of seeds, labels or prompts.")
        run = Run(self, inputs, self.settings(settings, **options), output_type)
        if output_type != "latent":
            self.prepare()
        return run

    # -- words ---------------------------------------------------------------------------------------------------

    @property
    def words(self) -> PromptConditioner:
        """What turns prompts into token ids. Raises DisaError where a model takes labels."""
        if not isinstance(self.conditioner, PromptConditioner):
            raise DisaError(f"{self.preset.name} takes labels, not prompts: it has no tokenizer.")
        return self.conditioner

    @property
    def text(self) -> PromptText:
        """The tokenizer, read at first use."""
        return self.words.text

    def describe(
        self, images: Any, prompt: str = DESCRIBE, *, seeds: int | Sequence[int] = 0, **writing: Any
    ) -> list[str]:
        """A text about each image, as `encode` takes them: [N, channels, height, width] in [0, 1], uint8, pictures of
        Pillow and more; sides multiples of a token's.

        writing: the fields of `Writing`: temperature, max_tokens, repetition_penalty. Officially images are padded to
        a square with gray (127) and resized to 512x512. Raises DisaError.
        """
        turns = list(self.describe_steps(images, prompt, seeds=seeds, **writing))
        return [self.text.decode(ids) for ids in torch.stack(turns, dim=1).tolist()]

    def describe_steps(
        self, images: Any, prompt: str = DESCRIBE, *, seeds: int | Sequence[int] = 0, **writing: Any
    ) -> Iterator[Tensor]:
        """The same as an iterator: every turn is one token id per image [N]; `text.decode` makes words of them."""
        words, how = self.words, Writing(**writing)
        with undisturbed(tf32=self.tf32):
            shown = self._images(images)
            grid = self.token_grid_of((shown.shape[2], shown.shape[3]))
            many = Inputs.paired(seeds, [0] * len(shown)).seeds
            return Turns(words.describe(self._encode(shown), grid, many, prompt, how), self.tf32)

    def rewrite(self, prompts: str | Sequence[str], seeds: int | Sequence[int] = 0, **writing: Any) -> list[str]:
        """What the language model makes of prompts when it is asked to say more: prompt upsampling, as Betker et al.
        2023 have it done by another model. What a prompt leaves open is decided before the first token is drawn.

        Prompts and seeds are paired as `sample` pairs them, and a rewritten prompt follows from its own two alone.
        writing: the fields of `Writing`; tokens are drawn by their chance, 256 at most. The published weights of Harmon
        were not trained for this; harmon-shapes was. A prompt of which nothing usable is made stays as it is. Raises
        DisaError.
        """
        asked = Inputs.paired(seeds, prompts=prompts)
        how = Writing(**({"temperature": REWRITING.temperature, "max_tokens": REWRITING.max_tokens} | writing))
        with undisturbed(tf32=self.tf32):
            return self.words.rewrite(asked.prompts or [], asked.seeds, how)


def _check_there(preset: Preset, vae: Path | None) -> None:
    """An autoencoder is read when it is needed, but one that is not there is found at once."""
    if vae is not None and preset.spec.codec is not None and not vae.exists():
        raise DisaError(f"there is no autoencoder at {vae}.")
