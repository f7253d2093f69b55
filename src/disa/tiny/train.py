"""Training of the embedded models: `disa train mar-digits` makes the weights that the package ships.

Every random number of an iteration follows from (seed, iteration), so a resumed run continues as if never stopped.
Shapes: B images, L tokens, V visible and N masked tokens, C token channels.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from disa.checkpoints import save_model
from disa.diffusion import TrainingLoss
from disa.errors import DisaError
from disa.files import make_folder, write_text, write_whole
from disa.models.layers import initialise
from disa.models.mar import MAR, MARConfig
from disa.presets import PRESETS
from disa.tiny.data import digits


@dataclass(frozen=True)
class Recipe:
    """copies: timesteps drawn per masked token. learning_rate: peak of a cosine after a linear warm-up."""

    iterations: int = 9_000
    batch_size: int = 64
    copies: int = 1
    learning_rate: float = 1.5e-3
    warmup: int = 200
    weight_decay: float = 0.02
    ema: float = 0.999
    label_dropout: float = 0.1


RECIPES = {"mar-digits": Recipe()}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name."""
    if name not in RECIPES:
        raise DisaError(f"no recipe to train {name!r}: expected one of {', '.join(RECIPES)}.")
    return RECIPES[name]


@dataclass(frozen=True)
class Batch:
    """Everything random about one iteration. t: [copies B N], noise: [copies B N, C]."""

    images: Tensor
    labels: Tensor
    dropped: Tensor
    visible: Tensor
    masked: Tensor
    t: Tensor
    noise: Tensor


def draw_batch(
    config: MARConfig, recipe: Recipe, images: Tensor, labels: Tensor, num_timesteps: int, seed: int
) -> Batch:
    """The mask rate is cos(pi/2 u), u uniform: the whole range that generation passes through, not MAR's 0.7 to 1."""
    random = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(images), (recipe.batch_size,), generator=random)
    share = math.cos(math.pi / 2 * torch.rand((), generator=random).item())
    num_masked = max(1, math.ceil(share * config.num_tokens))
    orders = torch.rand(recipe.batch_size, config.num_tokens, generator=random).argsort(1)
    rows = recipe.copies * recipe.batch_size * num_masked
    return Batch(
        images[chosen],
        labels[chosen],
        dropped=torch.rand(recipe.batch_size, generator=random) < recipe.label_dropout,
        visible=orders[:, num_masked:].sort(1).values,
        masked=orders[:, :num_masked].sort(1).values,
        t=torch.randint(num_timesteps, (rows,), generator=random),
        noise=torch.randn(rows, config.token_channels, generator=random),
    )


class Trainer:
    """Model, average and optimiser of one run."""

    def __init__(self, name: str, seed: int = 0, recipe: Recipe | None = None) -> None:
        self.name, self.seed, self.recipe = name, seed, recipe or find_recipe(name)
        self.config = PRESETS[name].architecture
        self.model, self.average = MAR(self.config), MAR(self.config)
        initialise(self.model, seed)
        self.average.load_state_dict(self.model.state_dict())
        self.objective = TrainingLoss(self.model.process)
        self.optimiser = torch.optim.AdamW(_groups(self.model, self.recipe.weight_decay), betas=(0.9, 0.95), fused=True)
        self.images, self.labels = digits("train")
        self.iteration, self.losses = 0, list[float]()

    def step(self) -> float:
        """One iteration; returns the loss."""
        batch = self.batch(self.seed * 1_000_003 + self.iteration)
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        # The fused attention kernel is written for long sequences: its backward pass takes a third of a step here.
        with sdpa_kernel(SDPBackend.MATH):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = self.loss(self.model, batch)
            self.optimiser.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 3.0)
        self.optimiser.step()
        self.iteration += 1
        self._update_average()
        self.losses.append(loss.item())
        return self.losses[-1]

    def loss(self, model: MAR, batch: Batch) -> Tensor:
        embedding = model.embed(batch.labels, batch.dropped)
        return model.loss(
            self.objective, batch.images, embedding, batch.visible, batch.masked, batch.t, batch.noise
        ).loss.mean()

    @torch.no_grad()
    def held_out_loss(self, num_batches: int = 16) -> float:
        """Loss of the average on digits that are never trained on, over fixed random numbers."""
        images, labels = digits("test")
        losses = [
            self.loss(self.average, draw_batch(self.config, self.recipe, images, labels, 951, i)).item()
            for i in range(num_batches)
        ]
        return sum(losses) / num_batches

    def batch(self, seed: int) -> Batch:
        """A training batch as a function of the seed."""
        return draw_batch(
            self.config, self.recipe, self.images, self.labels, self.objective.num_timesteps, seed
        )  # fmt: skip

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

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "name": self.name, "seed": self.seed, "iteration": self.iteration, "losses": self.losses,
            "model": self.model.state_dict(), "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.seed, self.iteration, self.losses = state["seed"], state["iteration"], state["losses"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def train(
    name: str,
    folder: Path,
    seed: int = 0,
    recipe: Recipe | None = None,
    resume: bool = True,
    on_step: Callable[[int, int, float], None] = lambda done, total, loss: None,
    save_every: int = 500,
) -> dict[str, Any]:
    """Train, write `model.safetensors`, `config.json`, `loss.png` and `training.json` into `folder`; returns a summary.

    A run that was stopped continues from `state.pt` in the same folder, with the same result as an unbroken one.
    """
    trainer = Trainer(name, seed, recipe)
    make_folder(folder)
    saved = folder / "state.pt"
    if resume and saved.exists():
        trainer.restore(_read_state(saved, name))
    started, first = time.perf_counter(), trainer.iteration
    while trainer.iteration < trainer.recipe.iterations:
        loss = trainer.step()
        on_step(trainer.iteration, trainer.recipe.iterations, loss)
        if trainer.iteration % save_every == 0:
            _write_state(saved, trainer)
    save_model(folder, name, trainer.config, trainer.average.state_dict())
    write_whole(folder / "loss.png", lambda file: file.write(loss_curve(trainer.losses)))
    summary = {
        "name": name, "seed": trainer.seed, "iterations": trainer.iteration,
        "iterations_this_run": trainer.iteration - first, "seconds_this_run": time.perf_counter() - started,
        "loss": sum(trainer.losses[-200:]) / max(1, len(trainer.losses[-200:])),
        "held_out_loss": trainer.held_out_loss(),
    }  # fmt: skip
    write_text(folder / "training.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _write_state(path: Path, trainer: Trainer) -> None:
    write_whole(path, lambda file: torch.save(trainer.state(), file))


def _read_state(path: Path, name: str) -> dict[str, Any]:
    try:
        state = torch.load(path, weights_only=True)
        found = state["name"]
    except Exception as error:
        raise DisaError(f"{path} is not the state of a training run. Remove it to start again.") from error
    if found != name:
        raise DisaError(f"{path} belongs to a run of {found}, not of {name}. Choose another folder.")
    return state


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
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
