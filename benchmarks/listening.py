"""Whether a model of scenes listens to captions: how well it predicts noise with the right one and with others.

    python benchmarks/listening.py harmon-shapes          # or a folder that `disa train` wrote
    python benchmarks/listening.py --state runs/harmon-shapes/state.pt

A model draws plausible pictures of anything long before it draws what it is asked for, and its loss hardly tells: most
of a loss is noise that nothing predicts. Captions here tell everything. own: the scene's; reshaped: the same with other
shapes; others: another scene's; none: the unconditional prompt. What gives the error of own is not heard. The last
line is JSON: mean squared errors of the predicted noise, of tokens that are part of an object and of the others.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import publish

from disa.draw.sampler import Sampler
from disa.models.harmon.model import Harmon
from disa.tiny import shapes
from disa.tiny.captions import SHAPES, Facts, describe
from disa.tiny.scenes import facts
from disa.tiny.tasks import HarmonTask, find_recipe, find_task
from disa.tiny.train import Trainer

SHARES, TIMES = (1.0, 0.6, 0.2), (850, 600)
"""Shares of the tokens that are masked, and timesteps."""


@torch.no_grad()
def measure(model: Harmon, task: HarmonTask, seed: int) -> list[dict[str, Any]]:
    """A row per share of masked tokens and timestep, over one batch of the task."""
    random, num_scenes = torch.Generator().manual_seed(seed), task.recipe.batch_size
    scenes = [(scene, describe(facts(scene))) for scene, _ in shapes.scenes(num_scenes, "train", random)]
    latents, on_object = task.latents(scenes, random), shapes.shown(scenes, model.config.grid) > 0
    size = model.config.num_image_tokens()
    told = {
        "own": scenes,
        "reshaped": [(scene, describe(reshaped(facts(scene)))) for scene, _ in scenes],
        "others": scenes[1:] + scenes[:1],
        "none": scenes,
    }
    captions = {
        name: shapes.prompts_to_draw(task.text, those, torch.full((num_scenes,), name == "none"), size)
        for name, those in told.items()
    }
    rows = []
    for share in SHARES:
        visible, masked = task.split_tokens(model.config.num_tokens, random, share)
        for time in TIMES:
            noise = torch.randn(masked.numel(), model.config.token_channels, generator=random)
            t = torch.full((masked.numel(),), time)
            shown = on_object.gather(1, masked)
            errors = {
                name: model.loss(task.objective, latents, prompts, visible, masked, t, noise).mse.view(masked.shape)
                for name, prompts in captions.items()
            }
            rows.append(
                {
                    "masked": share,
                    "timestep": time,
                    "objects": {name: e[shown].mean().item() for name, e in errors.items()},
                    "background": {name: e[~shown].mean().item() for name, e in errors.items()},
                }
            )
    return rows


def reshaped(known: Facts) -> Facts:
    """The same with other shapes: the next one of SHAPES for each."""
    groups = (replace(g, shape=SHAPES[(SHAPES.index(g.shape) + 1) % len(SHAPES)]) for g in known.groups)
    return replace(known, groups=tuple(groups))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="harmon-shapes", help="a name, or a folder that disa wrote")
    parser.add_argument("--state", type=Path, help="the state of a training run instead")
    parser.add_argument("--scenes", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    task = find_task("harmon-shapes", replace(find_recipe("harmon-shapes"), batch_size=given.scenes))
    assert isinstance(task, HarmonTask)
    if given.state:
        trainer = Trainer("harmon-shapes")
        trainer.restore(torch.load(given.state, weights_only=True))
        model, iteration = trainer.average.eval(), trainer.iteration
    else:
        model, iteration = Sampler.load(given.model).model, None
    if not isinstance(model, Harmon):
        parser.error(f"{given.model} is not a Harmon model")
    rows = measure(model, task, given.seed)
    print("masked  timestep  tokens      " + "".join(f"{name:<10}" for name in rows[0]["objects"]))
    for row in rows:
        for tokens in ("objects", "background"):
            errors = "".join(f"{error:<10.4f}" for error in row[tokens].values())
            print(f"{row['masked']:<8}{row['timestep']:<10}{tokens:<12}{errors}")
    publish({"benchmark": "listening", "iteration": iteration, "rows": rows})


if __name__ == "__main__":
    main()
