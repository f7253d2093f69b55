"""Training of the embedded models: `disa train mar-digits` makes the weights that the package ships.

Every random number of an iteration follows from (seed, iteration), so a resumed run continues as if never stopped.
`state.pt` is written now and then, at Ctrl-C and after the last iteration, and then the results, all together: a run
that is killed goes on from its state. A folder holds one run; another one is refused. Shapes: B images, L tokens, C
token channels.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from disa.errors import DisaError
from disa.files import json_bytes, make_folder, only_writer, write_whole
from disa.reading import json_in
from disa.runtime.packing import has_fast_bf16
from disa.runtime.surroundings import undisturbed
from disa.stopping import stop_later
from disa.study.plots import plot_png
from disa.tiny.muon import Muon
from disa.tiny.resuming import check_same, command, stopped
from disa.tiny.tasks import RECIPES, Recipe, find_task
from disa.weights.autoencoders import CODEC_WEIGHTS
from disa.weights.folders import write_folder
from disa.weights.shards import CONFIG, WEIGHTS

STATE, CURVE, SUMMARY = "state.pt", "loss.png", "training.json"
PRODUCTS_KEPT = "16384"
"""How many prepared matrix products oneDNN keeps: every number of visible tokens has its own, and 1024 are too few."""


class Trainer:
    """Model, average and optimiser of one run."""

    def __init__(self, name: str, seed: int = 0, recipe: Recipe | None = None, vae: Path | None = None) -> None:
        self.name, self.seed, self.task = name, seed, find_task(name, recipe, vae)
        self.recipe = self.task.recipe
        self.model, self.average = self.task.build(seed), self.task.build(seed)
        self.half = self.task.half and has_fast_bf16()
        self.optimisers = _optimisers(self.model, self.recipe, torch.bfloat16 if self.half else torch.float32)
        self.iteration, self.losses = 0, list[float]()

    def step(self) -> float:
        """One iteration; returns the loss."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + self.iteration)
        learning_rate = self._learning_rate()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * group["speed"]
        # The fused attention kernel is written for long sequences: its backward pass takes a third of a step here.
        with sdpa_kernel(SDPBackend.MATH):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.half):
                loss = self.task.loss(self.model, "train", random)
            self.model.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 3.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.iteration += 1
        self._update_average()
        self.losses.append(loss.item())
        return self.losses[-1]

    @torch.no_grad()
    def held_out_loss(self, num_batches: int = 16) -> float:
        """Loss of the average on what is never trained on, over fixed random numbers."""
        losses = [
            self.task.loss(self.average, "test", torch.Generator().manual_seed(i)).item() for i in range(num_batches)
        ]
        return sum(losses) / num_batches

    def _learning_rate(self) -> float:
        recipe = self.recipe
        if self.iteration < recipe.warmup:
            return recipe.learning_rate * (self.iteration + 1) / recipe.warmup
        share = (self.iteration - recipe.warmup) / max(1, recipe.iterations - recipe.warmup)
        return recipe.learning_rate * (1 + math.cos(math.pi * min(1.0, share))) / 2

    def _update_average(self) -> None:
        # Young averages follow the model, so that its start is forgotten.
        decay = min(self.recipe.ema, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            for mean, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)

    def options(self) -> dict[str, Any]:
        """All that decides the result."""
        about = {"seed": self.seed, "autoencoder": self.task.autoencoder()}
        return {"name": self.name, **asdict(self.recipe), **about}

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "name": self.name,
            "seed": self.seed,
            "iteration": self.iteration,
            "losses": self.losses,
            "options": self.options(),
            "vae": None if self.task.vae is None else str(self.task.vae.resolve()),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there. Raises DisaError for the state of another model; this trainer is then of no use."""
        try:
            self.iteration, self.losses = state["iteration"], state["losses"]
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        except (KeyError, RuntimeError, ValueError) as error:
            raise DisaError(
                f"the training state does not fit {self.name}: another version of disa wrote it. Train into another "
                "folder, or go on with that version."
            ) from error


def _optimisers(model: nn.Module, recipe: Recipe, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of blocks where the recipe has a speed for them, with products in dtype. Only
    matrices decay. speed: by which the learning rate is multiplied."""
    others: dict[tuple[float, float], list[nn.Parameter]] = {}
    matrices: dict[tuple[torch.Size, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        path = name.split(".")
        if recipe.muon_speed and parameter.dim() == 2 and any(place.isdigit() for place in path):
            matrices.setdefault((parameter.shape, 3 if "qkv" in path else 1), []).append(parameter)
        else:
            decay = recipe.weight_decay if parameter.dim() == 2 else 0.0
            speed = recipe.head_speed if "head" in path else 1.0
            others.setdefault((decay, speed), []).append(parameter)
    groups = [{"params": group, "weight_decay": decay, "speed": speed} for (decay, speed), group in others.items()]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    if not matrices:
        return [adamw]
    stacks = [{"params": same, "parts": parts, "speed": recipe.muon_speed} for (_, parts), same in matrices.items()]
    return [adamw, Muon(stacks, weight_decay=recipe.weight_decay, dtype=dtype)]


@undisturbed(training=True)
def train(
    name: str,
    folder: Path,
    seed: int = 0,
    recipe: Recipe | None = None,
    resume: bool = True,
    on_step: Callable[[int, int, float], None] = lambda done, total, loss: None,
    save_every: int = 500,
    vae: Path | None = None,
) -> dict[str, Any]:
    """Train, write `model.safetensors`, `config.json`, `loss.png` and `training.json` into `folder`; returns a summary.

    vae: the folder of an autoencoder to use instead of the package's; it is written beside the model. A run that was
    stopped continues from `state.pt` in the same folder, with the same result as an unbroken one. Where the folder
    holds a run of other options it is refused, unless `resume` is false. Raises DisaError, and `Stopped` after Ctrl-C
    or SIGTERM.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRODUCTS_KEPT)  # read with the first product
    trainer = Trainer(name, seed, recipe, vae)
    make_folder(folder)
    with only_writer(folder):
        _take_up(trainer, folder, resume)
        started, first = time.perf_counter(), trainer.iteration
        _run(trainer, folder / STATE, on_step, save_every)
        summary = {
            "name": name,
            "seed": trainer.seed,
            "iterations": trainer.iteration,
            "iterations_this_run": trainer.iteration - first,
            "seconds_this_run": time.perf_counter() - started,
            "loss": sum(trainer.losses[-200:]) / max(1, len(trainer.losses[-200:])),
            "held_out_loss": trainer.held_out_loss(),
        }
        told = {CURVE: loss_curve(trainer.losses), SUMMARY: json_bytes(summary)}
        write_folder(folder, trainer.task.files(trainer.average), told)
    return summary


def _run(trainer: Trainer, path: Path, on_step: Callable[[int, int, float], None], save_every: int) -> None:
    """Iterations, to the last one or until someone wants to stop; the state is written in both cases."""
    total = trainer.recipe.iterations
    if trainer.iteration == total:
        return
    with stop_later() as stop:
        while trainer.iteration < total and not stop.signum:
            loss = trainer.step()
            on_step(trainer.iteration, total, loss)
            if trainer.iteration % save_every == 0 and trainer.iteration < total:
                _write_state(path, trainer)
        _write_state(path, trainer)
    if stop.signum:
        raise stopped(trainer.iteration, total, _command(trainer.state(), path.parent), stop.signum)


def _take_up(trainer: Trainer, folder: Path, resume: bool) -> None:
    """Go on with the run that the folder holds; refuse another one, and what is no run. Raises DisaError."""
    path, summary = folder / STATE, _read_summary(folder / SUMMARY)
    strange = [name for name in (CONFIG, WEIGHTS, CODEC_WEIGHTS, CURVE, SUMMARY) if (folder / name).exists()]
    if strange and summary is None and not path.exists():
        raise DisaError(f"{folder / strange[0]} is not of a training: choose another folder.")
    if not resume:
        return
    if path.exists():
        state = _read_state(path)
        found = {**state, **state.get("options", {})}
        check_same(found, trainer.options(), path, _command(state, folder))
        trainer.restore(state)
    elif summary is not None:
        check_same(summary, trainer.options(), folder / SUMMARY, _command(summary, folder))


def _command(found: dict[str, Any], folder: Path) -> str:
    """What goes on with a run, for the command line."""
    name, about = str(found["name"]), {**found, **found.get("options", {})}
    total, own = about.get("iterations"), RECIPES[name][1].iterations if name in RECIPES else None
    return command(
        name, folder, seed=about.get("seed"), iterations=None if total == own else total, vae=about.get("vae")
    )


def _write_state(path: Path, trainer: Trainer) -> None:
    write_whole(path, lambda file: torch.save(trainer.state(), file))


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, weights_only=True)
        return {"name": state["name"], **state}
    except Exception as error:
        raise DisaError(f"{path} is not the state of a training run. Remove it to start again.") from error


def _read_summary(path: Path) -> dict[str, Any] | None:
    """What a finished run told of itself; None where there is none, or it is not ours."""
    try:
        summary = json_in(path)
        return {name: summary[name] for name in ("name", "seed", "iterations")}
    except (ValueError, KeyError, TypeError):
        return None


def loss_curve(losses: list[float], window: int = 100) -> bytes:
    """A PNG of the loss, smoothed by a running mean."""
    from matplotlib.figure import Figure  # heavy

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    values = torch.tensor(losses)
    axes.plot(values, color="0.85", linewidth=0.5)
    if len(values) > window:
        smooth = values.unfold(0, window, 1).mean(1)
        axes.plot(range(window - 1, len(values)), smooth, linewidth=1.5)
    axes.set(xlabel="iteration", ylabel="loss", yscale="log", title="training loss")
    return plot_png(figure, 120)
