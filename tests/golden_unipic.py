"""The replay of UniPic's recorded runs, for golden.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from disa.core.generate import generate_steps
from disa.core.request import Guidance, Prompts, Request
from disa.core.solvers import make_solver
from disa.core.steps import constant
from disa.models.unipic.config import UniPicConfig
from disa.models.unipic.model import UniPic
from disa.models.unipic.names import official_names

Found = Iterator[tuple[str, Any, Any]]


def load(case: Any) -> UniPic:
    """The model of a case; its file also holds what the official files hold besides."""
    about = case.about
    config = replace(UniPicConfig.from_official(about), placeholder_id=about.get("image_token_id", 0))
    model, others = UniPic(config), dict.fromkeys(about["other_checkpoint_keys"], torch.zeros(1))
    model.load_state_dict(official_names(config).from_official(case.part("weights/") | others))
    return case.placed(model)


def replay(case: Any, noise: Any) -> Found:
    """noise: the recorded one."""
    model, sampling, expected, tensors = load(case), case.about["sampling"], case.part("expected/"), case.tensors
    lengths, shape = tensors["inputs/attention_mask"].long().sum(1), sampling["image_shape"]
    yield "lengths", lengths, case.about["prompt_lengths"]
    source, grid = tensors.get("inputs/latent"), model.config.grid if shape is None else tuple(shape)
    if source is not None:
        with torch.no_grad():
            seen = model.encoded(source, grid)
            yield "x_con", seen, expected["x_con"]
            yield "z_enc", model.visual(seen), expected["z_enc"]
    request = Request(
        len(expected["tokens"]), sampling["num_iter"],
        guidance=Guidance(sampling["cfg"], sampling["cfg_schedule"]),
        prompts=Prompts(tensors["inputs/input_ids"], lengths),
        token_grid=None if shape is None else grid,
        source=source,
    )  # fmt: skip
    solver, step = make_solver("ddpm", "full", sampling["temperature"]), None
    policy = constant(int(case.about["mar_config"]["num_sampling_steps"]))
    for step in generate_steps(model, request, policy, solver, noise):
        k, problem, about = step.ar_step, step.problem, case.about["steps"][step.ar_step]
        assert problem.condition is not None
        yield f"z/{k}", problem.condition, expected[f"z/{k:03d}"][: problem.num_rows]
        yield f"drawn/{k}", step.tokens, expected[f"traj/{k:03d}"][-1]
        yield f"sampled/{k}", step.tokens, expected[f"sampled/{k:03d}"]
        index = torch.stack([problem.image, problem.position], 1)
        yield f"index/{k}", index, expected[f"pred_index/{k:03d}"]
        yield f"times/{k}", solver.plan(problem.process, int(step.steps)).network_times, about["timesteps"]
        halves = 1 if about["cfg"] == 1 else 2
        yield f"evaluations/{k}", step.evaluations, halves * problem.num_rows * about["effective_steps"]
        yield f"guidance/{k}", problem.guidance, about["cfg"]
    assert step is not None
    yield "tokens", model.finish(step.state), expected["tokens"]


def replay_schedule(case: Any) -> Found:
    process, expected = UniPic.process, case.part("expected/")
    yield "max_beta", process.max_beta, case.about["max_beta"]
    yield "trained", process.last_trained + 1, case.about["train_diffusion_timesteps"]
    yield "betas", process.betas, expected["betas_1000"]
    yield "alpha_bar", process.alpha_bar, expected["alphas_cumprod_1000"]
    for name, timesteps in expected.items():
        place, _, kind = name.rpartition("/")
        if kind != "timesteps":
            continue
        grid = process.grid("full", int(place.rpartition("/")[2]))
        levels = grid.levels[-2::-1]
        yield name, grid.network_times[::-1].copy(), timesteps
        yield f"{place}/levels", levels.copy(), expected[f"{place}/alphas_cumprod"]
        betas = 1 - levels / np.append(1.0, levels[:-1])
        yield f"{place}/betas", betas, expected[f"{place}/betas"]
