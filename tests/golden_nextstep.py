"""The replay of NextStep's recorded runs, for golden.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disa.core.flow import FlowLoss
from disa.core.generate import generate_steps
from disa.core.problem import DenoisingProblem, TimeGrid
from disa.core.request import Guidance, Prompts, Request
from disa.core.solve import solve
from disa.core.solver import Solver
from disa.core.solvers import EulerMaruyamaODE, make_solver
from disa.core.steps import constant
from disa.models.guided import Guided
from disa.models.heads import HeadNetwork, VelocityHead
from disa.models.layers import patchified
from disa.models.naming import HEAD, head_parts
from disa.models.nextstep.config import NextStepConfig
from disa.models.nextstep.model import NextStep
from disa.models.nextstep.names import official_names

Found = Iterator[tuple[str, Any, Any]]


_OTHER_NAMES = {
    "fm_head_dim": "genloss_width",
    "fm_head_layers": "genloss_depth",
    "latent_size": "image_size",
    "latent_channels": "num_channels",
    "latent_patch_size": "patch_size",
}
"""Of the same arguments in the configuration of NextStep-1.1."""


def config_of(arguments: Mapping[str, Any], norm_tokens: bool = True) -> NextStepConfig:
    """From the official `config.json`, of either version; `latent_size` is a side there."""

    said = {name: arguments.get(name, arguments.get(_OTHER_NAMES[name])) for name in _OTHER_NAMES}
    later = "genloss_width" in arguments
    table = "by-place" if later else "in-order"
    return NextStepConfig(
        latent_size=(said["latent_size"], said["latent_size"]),
        latent_channels=said["latent_channels"],
        patch_size=said["latent_patch_size"],
        vocab_size=arguments["vocab_size"],
        llm_width=arguments["hidden_size"],
        llm_hidden=arguments["intermediate_size"],
        llm_depth=arguments["num_hidden_layers"],
        llm_heads=arguments["num_attention_heads"],
        llm_kv_heads=arguments["num_key_value_heads"],
        rope_base=arguments["rope_theta"],
        llm_norm_eps=arguments["rms_norm_eps"],
        max_positions=arguments["max_position_embeddings"],
        head_width=said["fm_head_dim"],
        head_depth=said["fm_head_layers"],
        norm_tokens=norm_tokens,
        placeholder_id=arguments["image_placeholder_id"],
        positions=table if arguments.get("use_gen_pos_embed") else "none",
        positions_side=arguments.get("base_image_grid_size", 32),
    )


def replay_nextstep(case: Any) -> Found | None:
    config = case.about["config"]
    if config["mlp_bias"] or config["o_attention_bias"] is not False:
        return None  # biases that Qwen2 has not, and no published weights have
    return _replay(case)


def _replay(case: Any) -> Found:
    sampling, expected = case.about["sampling"], case.part("expected/")
    config = replace(config_of(case.about["config"], sampling["use_norm"]), norm_source=False)
    model = NextStep(config)
    model.load_state_dict(official_names(config).from_official(case.part("weights/")))
    model, batch = case.placed(model), len(expected["tokens"])
    ids, real = case.tensors["inputs/input_ids"], case.tensors["inputs/attention_mask"].bool()
    prompts = Prompts.of([row[seen].tolist() for row, seen in zip(ids, real, strict=True)])
    yield "lengths", prompts.lengths, case.about["prompt_lengths"]
    source, vae = case.tensors.get("inputs/latents"), case.about["vae"]
    if source is not None:  # recorded as the autoencoder gives it
        source = (source - vae["shift_factor"]) * vae["scaling_factor"]
        yield "picture", patchified(source, config.patch_size).flatten(0, 1), expected["image_tokens"]
    ramp = {"constant": "constant", "linear": "falling"}[sampling["cfg_schedule"]]
    request = Request(
        batch, sampling["num_ar_steps"], prompts=prompts, token_grid=tuple(sampling["grid"]),
        guidance=Guidance(sampling["cfg"], ramp, source_guidance=sampling["cfg_img"]),
        source=source,
    )  # fmt: skip
    solver = make_solver("euler-maruyama-ode", f"nextstep-{sampling['timesteps_shift']}")
    policy, noise = constant(sampling["num_sampling_steps"]), _Recorded(case.tensors, case.device)
    step = None
    for step in generate_steps(model, request, policy, solver, noise):
        k, about = step.ar_step, case.about["steps"][step.ar_step]
        yield f"hidden/{k}", step.state.hidden, expected[f"hidden/{k:03d}"]
        assert step.problem.condition is not None
        yield f"z/{k}", step.problem.condition, expected[f"z/{k:03d}"][:batch]
        yield from _path(step.problem, solver, about["effective_steps"], expected, k)
        yield f"drawn/{k}", step.tokens, expected[f"traj/{k:03d}"][-1]
        yield f"sampled/{k}", step.state.tokens[:, k], expected[f"sampled/{k:03d}"]
        rows = sampling["guidance_rows"] * batch
        yield f"evaluations/{k}", step.evaluations, rows * about["effective_steps"]
        yield f"guidance/{k}", step.problem.guidance, about["cfg"]
    assert step is not None
    yield "tokens", model.finish(step.state), expected["tokens"]


def _path(problem: DenoisingProblem, solver: Solver, count: int, expected: dict[str, Tensor], k: int) -> Found:
    """What the network says at every recorded state, before guidance, and when."""
    grid = solver.plan(problem.process, count)
    fed = expected["times"] if "times" in expected else expected[f"times/{k:03d}"]
    yield f"times/{k}", grid.network_times, fed
    field: Any = problem.field
    network, halves = field.network, field.network.num_halves
    with torch.no_grad():
        bound = network.on(grid, [halves] * grid.num_evaluations)
        for i, said in enumerate(expected[f"v/{k:03d}"]):
            found = bound(expected[f"traj/{k:03d}"][i].to(problem.device), i).value
            # Officially data minus noise, and all rows in one.
            yield f"v/{k}/{i}", -found.flatten(0, 1), said


class _Recorded:
    """Recorded noise in place of `SeededNoise`."""

    def __init__(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.tensors, self.device = tensors, device

    def orders(self, num_tokens: int) -> Tensor:
        raise NotImplementedError  # tokens are drawn row by row

    def initial(self, problem: DenoisingProblem) -> Tensor:
        return self.tensors[f"noise/init/{problem.ar_step:03d}"].to(self.device)

    def added(self, problem: DenoisingProblem, num_steps: int) -> Tensor:
        return self.tensors[f"noise/steps/{problem.ar_step:03d}"][:num_steps].to(self.device)


def replay_nextstep_head(case: Any) -> Found:
    config, tensors, expected = case.about["config"], case.tensors, case.part("expected/")
    shape = config["dim"], config["layers"]
    head = VelocityHead(config["input_dim"], config["cond_dim"], *shape)
    official = {name.removeprefix("weights/"): value for name, value in tensors.items() if name.startswith("weights/")}
    state = {}
    for name in head.state_dict():
        parts = [official[part.name] for part in head_parts(name, "net", *shape)]
        state[name] = torch.cat(parts)
    assert {name.partition(".")[0] for name in state} == {*HEAD, "blocks", "modulation"}
    head.load_state_dict(state)
    head = case.placed(head)
    with torch.no_grad():
        said = head(tensors["inputs/x"], tensors["inputs/t"], tensors["inputs/c"]).value
    yield "v", -said, expected["v"]
    t = 1 - torch.sigmoid(tensors["noise/loss/u"])
    loss = head.loss(
        FlowLoss(), tensors["inputs/target"], tensors["inputs/c"], t, tensors["noise/loss/eps"],
        tensors["inputs/mask"].float(),
    )  # fmt: skip
    yield "loss", loss, expected["loss"]
    for run in case.about["runs"]:
        k, count, rows = run["run"], run["num_sampling_steps"], run["guidance_rows"]
        conditions = tensors[f"inputs/run/{k:03d}/c"].chunk(rows)
        network, batch = HeadNetwork.of(head, *conditions), len(conditions[0])
        field = Guided(network, run.get("cfg", 1.0), source_scale=run.get("cfg2", 1.0))
        index = torch.arange(batch)
        problem = DenoisingProblem(field, NextStep.process, (config["input_dim"],), index, index, k, k + 1)
        solver = _solver(run)
        with torch.no_grad():
            solution = solve(problem, solver, count, _Recorded(tensors, case.device))
            yield from _path(problem, solver, count, expected, k)
        yield f"sampled/{k}", solution.tokens, expected[f"sampled/{k:03d}"]
        yield f"evaluations/{k}", solution.evaluations, rows * batch * count


def _solver(run: dict[str, Any]) -> Solver:
    shift = run.get("timesteps_shift", 1.0)
    if run["sampler"] == "sample_new":
        return make_solver("euler-maruyama-noisy", f"shifted-{shift}")
    if (last := run.get("last_step_size")) is None:
        return make_solver("euler-maruyama-ode", f"nextstep-{shift}")

    def ending_in(process: Any, num_steps: int) -> TimeGrid:
        return process.grid_at(np.linspace(1, last, num_steps))

    return EulerMaruyamaODE(ending_in)
