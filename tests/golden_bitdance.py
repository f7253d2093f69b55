"""The replay of recorded runs of BitDance's official code, for `golden.py`.

Recorded times go from noise to data; so do `levels`, which are compared as 1 - t.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from disa.codecs.binary import BinaryAE, BinaryCodec, BinaryConfig
from disa.core import steps as policies
from disa.core.generate import generate_steps
from disa.core.problem import DenoisingProblem
from disa.core.request import Guidance, Request
from disa.core.solve import solve
from disa.core.solver import Solver
from disa.core.solvers import make_solver
from disa.models.bitdance.config import BitDanceConfig
from disa.models.bitdance.head import DataHead, DataNetwork
from disa.models.bitdance.model import BitDance
from disa.models.bitdance.names import official_names
from disa.models.guided import Guided, Network

Found = Iterator[tuple[str, Any, Any]]


class Noise:
    """What was recorded for one AR step or run."""

    def __init__(self, case: Any) -> None:
        self.tensors, self.device = case.tensors, case.device

    def orders(self, num_tokens: int) -> Tensor:
        raise NotImplementedError

    def initial(self, problem: DenoisingProblem) -> Tensor:
        return self.tensors[f"noise/init/{problem.ar_step:03d}"][recorded_rows(problem)].to(self.device)

    def added(self, problem: DenoisingProblem, num_steps: int) -> Tensor:
        return self.tensors[f"noise/steps/{problem.ar_step:03d}"][:, recorded_rows(problem)].to(self.device)


def recorded_rows(problem: DenoisingProblem) -> Tensor:
    """[R] where each row is in the recording: there the halves that are apart follow each other."""
    return problem.position * (int(problem.image.max()) + 1) + problem.image


@dataclass(frozen=True)
class Watched(Network):
    """A network whose answers are kept, as the data that they stand for."""

    network: Any
    said: list[Tensor]
    states: list[Tensor]

    @property
    def num_halves(self) -> int:
        return self.network.num_halves

    def select(self, rows: Tensor) -> Watched:
        return replace(self, network=self.network.select(rows))

    def on(self, grid: Any, num_halves: Any) -> Any:
        bound = self.network.on(grid, num_halves)

        def answer(x: Tensor, denoise_step: int) -> Any:
            answered = bound(x, denoise_step)
            self.states.append(x.clone())
            self.said.append((x - answered.value * bound.left[denoise_step]).flatten(0, 1))
            return answered

        return answer


class Watching(BitDance):
    """A model whose condition vectors, states and answers are kept."""

    z: Tensor
    said: list[Tensor]
    states: list[Tensor]

    def pose(self, state: Any) -> DenoisingProblem:
        self.said, self.states = [], []
        problem = super().pose(state)
        assert isinstance(problem.field, Guided)
        watched = Watched(problem.field.network, self.said, self.states)
        return replace(problem, field=replace(problem.field, network=watched))

    def _next(self, state: Any, rows: slice) -> Tensor:
        self.z = super()._next(state, rows)
        return self.z


def config_of(arguments: dict[str, Any]) -> BitDanceConfig:
    """From the constructor arguments of the official classes."""
    assert arguments["patch_size"] == 1
    side = arguments["resolution"] // arguments["down_size"]
    return BitDanceConfig(
        latent_size=(side, side),
        latent_channels=arguments["latent_dim"],
        group_size=arguments.get("parallel_num", 1),
        squares=arguments.get("parallel_mode", "patch") == "patch",
        width=arguments["dim"],
        depth=arguments["n_layer"],
        num_heads=arguments["n_head"],
        class_tokens=arguments["cls_token_num"],
        head_width=arguments["diff_dim"],
        head_depth=arguments["diff_layers"],
        head_modulations=arguments["diff_adanln_layers"],
        num_classes=arguments["num_classes"],
    )


def load(case: Any) -> Watching:
    config = config_of(case.about["config"])
    model = Watching(config)
    model.load_state_dict(official_names(config).from_official(case.part("weights/")))
    return case.placed(model)


def sampler(shift: float) -> Solver:
    return make_solver("euler-maruyama-ode", "bitdance" if shift == 1 else f"bitdance-{shift:g}")


def replay(case: Any) -> Found:
    model, sampling, expected = load(case), case.about["sampling"], case.part("expected/")
    labels, solver = torch.tensor(sampling["labels"]), sampler(case.about["config"]["time_shift"])
    rotation = model.rotation(torch.device("cpu"))
    table = expected["freqs_cis"][: len(rotation.cos)]
    yield "freqs_cis", torch.stack([rotation.cos, rotation.sin], -1), table
    guidance = Guidance(sampling["cfg_scale"], sampling["cfg_schedule"])
    request = Request(len(labels), sampling["num_ar_steps"], labels, guidance)
    policy, step = policies.constant(sampling["sample_steps"]), None
    for step in generate_steps(model, request, policy, solver, Noise(case)):
        k, problem, about = step.ar_step, step.problem, case.about["steps"][step.ar_step]
        yield f"z/{k}", model.z.flatten(0, 1).view_as(expected[f"z/{k:03d}"]), expected[f"z/{k:03d}"]
        order = recorded_rows(problem).argsort()
        said = torch.stack(model.said)
        yield f"x0/{k}", said[:, order] if about["halves_apart"] else said, expected[f"x0/{k:03d}"]
        yield f"traj/{k}", torch.stack([*model.states, step.tokens])[:, order], expected[f"traj/{k:03d}"]
        yield f"sampled/{k}", step.tokens.sign()[order], expected[f"sampled/{k:03d}"]
        yield f"rows/{k}", problem.num_rows, about["rows"]
        yield f"apart/{k}", problem.num_rows == 2 * len(labels), about["halves_apart"]
        grid = solver.plan(problem.process, int(step.steps))
        yield f"times/{k}", grid.network_times / 1000, about["timesteps"]
        yield f"evaluations/{k}", step.evaluations, about["network_rows"] * about["effective_steps"]
        yield f"guidance/{k}", problem.guidance, about["cfg"]
    assert step is not None
    yield "tokens", model.finish(step.state), expected["tokens"]


def replay_head(case: Any) -> Found:
    c, tensors = case.about["config"], case.tensors
    config = BitDanceConfig(
        group_size=c.get("parallel_num", 1), latent_channels=c["ch_target"], width=c["ch_cond"], num_heads=1,
        head_width=c["ch_latent"], head_depth=c["depth_latent"], head_modulations=c["depth_adanln"],
    )  # fmt: skip
    head = DataHead(config)
    names = {name: parts for name, parts in official_names(config).parts.items() if name.startswith("head.")}
    weights = {f"head.{name}": value for name, value in case.part("weights/").items()}
    state = {name: torch.cat([weights.pop(part.name) for part in parts]) for name, parts in names.items()}
    assert not weights
    head.load_state_dict({name.removeprefix("head."): value for name, value in state.items()})
    head = case.placed(head)
    with torch.no_grad():
        yield "x0", head(tensors["inputs/x"], tensors["inputs/t"], tensors["inputs/c"]), tensors["expected/x0"]
        for run in case.about["runs"]:
            yield from _head_run(case, head, run)


def _head_run(case: Any, head: DataHead, run: dict[str, Any]) -> Found:
    k, scale, expected = run["run"], run["cfg"], case.part("expected/")
    solver, z = sampler(run["time_shift"]), case.tensors[f"inputs/run/{k:03d}/c"]
    halves = z.unflatten(0, (2 if scale > 1 else 1, -1))
    halves = halves if halves.dim() == 4 else halves[:, :, None]
    said, states = list[Tensor](), list[Tensor]()
    rows = halves.shape[1]
    network = Watched(DataNetwork(head, head.condition(halves)), said, states)
    problem = DenoisingProblem(
        field=Guided(network, scale),
        process=BitDance.process,
        shape=tuple(case.tensors[f"noise/init/{k:03d}"].shape[1:]),
        image=torch.arange(rows),
        position=torch.zeros(rows, dtype=torch.int64),
        ar_step=k,
        num_ar_steps=len(case.about["runs"]),
    )
    solution = solve(problem, solver, run["sample_steps"], Noise(case))
    grid = solver.plan(problem.process, run["sample_steps"])
    yield f"times/{k}", grid.network_times / 1000, expected[f"times/{k:03d}"]
    yield f"evaluations/{k}", solution.evaluations, len(z) * run["evaluations"]
    yield f"x0/{k}", torch.stack(said), expected[f"x0/{k:03d}"]
    yield f"traj/{k}", torch.stack([*states, solution.tokens]), expected[f"traj/{k:03d}"]
    yield f"sampled/{k}", solution.tokens, expected[f"sampled/{k:03d}"]


def replay_loss(case: Any) -> Found:
    model, tensors, c = load(case), case.tensors, case.about["config"]
    flipped = tensors["noise/flip/r1"] < c["perturb_rate"] * tensors["noise/flip/r2"]
    embedding = model.embed(tensors["inputs/labels"], tensors["noise/label_drop"] < c["class_dropout_prob"])
    t = (tensors["noise/u"] * c["P_std"] + c["P_mean"]).sigmoid()
    yield "t", t, tensors["expected/t"]
    loss = model.loss(tensors["inputs/latents"], embedding, flipped, t, tensors["noise/eps"])
    yield "loss", loss.reshape(1), tensors["expected/loss"]
    loss.backward()
    zero = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    for name, gradient in official_names(model.config).to_official(zero).items():
        yield f"gradient/{name}", gradient.norm(), case.about["grad_norm"].get(name) or 0.0


def replay_autoencoder(case: Any) -> Found:
    c, half = case.about["config"], case.about["half"]
    widths = tuple(c["ch"] * multiplier for multiplier in c["ch_mult"])
    network = BinaryAE(BinaryConfig(c["z_channels"], widths, c["num_res_blocks"], c["in_channels"]))
    weights = {name.removeprefix(f"{half}."): value for name, value in case.part("weights/").items()}
    getattr(network, half).load_state_dict(weights)
    codec, tensors = BinaryCodec(network).to(case.device, torch.float32), case.tensors
    if half == "encoder":
        yield "h", codec.moments(tensors["inputs/image"].to(case.device)), tensors["expected/h"]
        yield "latents", codec.encode(tensors["inputs/image"].to(case.device)), tensors["expected/latents"]
    else:
        yield "decoded", codec.decode(tensors["inputs/latents"].to(case.device)), tensors["expected/decoded"]
