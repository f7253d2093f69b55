"""Replay a folder of recorded runs of the official code: `python tests/golden.py DIR`.

Prints a line per case (name, largest relative difference, ok / FAIL / not supported) and exits 1 on any FAIL. A case is
`<case>.json` (arguments) beside `<case>.safetensors` (weights, inputs, noise, expected values); `schedules.json` holds
step counts and time grids. The relative difference of a tensor is max|found - expected| / max|expected|.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import golden_bitdance as bitdance
import golden_emigm as emigm
import golden_unipic as unipic
from disa.codecs.base import split_moments
from disa.codecs.kl16 import KL16Codec, VAEConfig, build, from_official
from disa.core import steps as policies
from disa.core import texts
from disa.core.diffusion import CosineDiffusion, TrainingLoss
from disa.core.flow import FlowLoss, FlowMatching
from disa.core.generate import generate_steps
from disa.core.problem import DenoisingProblem, Process
from disa.core.request import Guidance, Prompts, Request
from disa.core.solvers import make_solver
from disa.errors import DisaError
from disa.models.flowar import names as flowar
from disa.models.flowar.config import FlowARConfig
from disa.models.flowar.model import FlowAR
from disa.models.harmon import names as harmon
from disa.models.harmon.config import HarmonConfig
from disa.models.harmon.model import Harmon
from disa.models.mar.config import MARConfig
from disa.models.mar.model import MAR
from disa.models.mar.names import official_names
from disa.models.naming import NameMap
from disa.models.xar import names as xar
from disa.models.xar.config import XARConfig
from disa.models.xar.model import XAR
from disa.runtime.devices import CPU
from golden_nextstep import replay_nextstep, replay_nextstep_head

TOLERANCE = 2e-5

Found = Iterator[tuple[str, Any, Any]]
"""Name, found value, expected value."""


@dataclass(frozen=True)
class Case:
    """One recorded run."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    """What sampling is replayed on, and in. Inputs and expected values are on the CPU, in float32."""

    @classmethod
    def read(cls, path: Path, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> Case:
        return cls(json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")), device, dtype)

    def placed(self, model: Any) -> Any:
        """A model as it is replayed."""
        return model.eval().to(self.device, self.dtype)

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


class RecordedNoise:
    """The noise of a recorded run, in place of `SeededNoise`."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def orders(self, num_tokens: int) -> Tensor:
        orders = self.case.tensors["inputs/orders"]
        # Of doubled batches both halves are recorded.
        return orders[: len(self.case.tensors["expected/tokens"])].to(self.case.device)

    def initial(self, problem: DenoisingProblem) -> Tensor:
        return self.case.tensors[f"noise/init/{problem.ar_step:03d}"][: problem.num_rows].to(self.case.device)

    def added(self, problem: DenoisingProblem, num_steps: int) -> Tensor:
        return self.case.tensors[f"noise/steps/{problem.ar_step:03d}"][:num_steps].to(self.case.device)


# -- MAR -----------------------------------------------------------------------------------------------------------

SAMPLERS = {
    "DiSA": ("ddpm", "clipped-950"),
    "default": ("ddpm", "full"),
    "DDIM": ("ddim", "ddim-980"),
    "DPM_Solver": ("dpm-solver", "dpm-950"),
    "DPM_Solver++": ("dpm-solver++", "dpm-950"),
}


def load_mar(case: Case) -> MAR:
    config = MARConfig.from_official(case.about["config"])
    model = MAR(config)
    model.load_state_dict(official_names(config).from_official(case.part("weights/")))
    return case.placed(model)


def mar_policy(config: dict[str, Any]) -> policies.Schedule:
    early, late = config["diff_upper_steps"], config["diff_lower_steps"]
    if config["diff_sampler"] == "default":
        return policies.constant(early)
    if config["diff_annealing_strategy"] == "constant":
        return policies.constant(late)
    return texts.parse(f"{config['diff_annealing_strategy']}:{early}-{late}")


def replay_mar(case: Case) -> Found:
    config, sampling = case.about["config"], case.about["sampling"]
    model = load_mar(case)
    name, grid = SAMPLERS[config["diff_sampler"]]
    temperature = sampling["temperature"] if name == "ddpm" else 1.0
    solver = make_solver(name, grid, temperature)
    ignored = name.startswith("dpm")  # the official DPM-Solver takes no guidance
    request = Request(
        sampling["bsz"],
        sampling["num_iter"],
        case.tensors.get("inputs/labels"),
        Guidance(1.0 if ignored else sampling["cfg"], sampling["cfg_schedule"]),
    )
    step = None
    for step in generate_steps(model, request, mar_policy(config), solver, RecordedNoise(case)):
        k, problem, about = step.ar_step, step.problem, case.about["steps"][step.ar_step]
        assert problem.condition is not None
        z = case.tensors[f"expected/z/{k:03d}"][: problem.num_rows]
        yield f"z/{k}", problem.condition, z
        yield f"sampled/{k}", step.tokens, case.tensors[f"expected/sampled/{k:03d}"]
        index = torch.stack([problem.image, problem.position], 1)
        yield f"index/{k}", index, case.tensors[f"expected/pred_index/{k:03d}"]
        times = solver.plan(problem.process, int(step.steps)).network_times
        yield f"times/{k}", times, about["timesteps"]
        halves = 2 if request.guidance.active and request.labels is not None else 1
        yield f"evaluations/{k}", step.evaluations, halves * problem.num_rows * about["effective_steps"]
        if not ignored:
            yield f"guidance/{k}", problem.guidance, about["cfg"]
    assert step is not None
    yield "tokens", model.finish(step.state), case.tensors["expected/tokens"]


def replay_mar_loss(
    case: Case, load: Callable[[Case], MAR] = load_mar, names: Callable[[Any], NameMap] = official_names
) -> Found:
    model, tensors = load(case), case.tensors
    length, mask = model.config.num_tokens, tensors["inputs/mask"].bool()
    # Stable sorts of a boolean put the visible positions first, both parts in raster order.
    in_order = mask.long().argsort(dim=1, stable=True)
    masked = case.about["masked_tokens_per_image"]
    visible, wanted = in_order[:, : length - masked], in_order[:, length - masked :]
    everything = torch.arange(length).expand(len(mask), -1)
    dropped = tensors["noise/label_drop"] < case.about["config"]["label_drop_prob"]
    objective = TrainingLoss(model.process)
    yield "target", model.patchify(tensors["inputs/imgs"]), tensors["expected/target"]
    embedding = model.embed(tensors["inputs/labels"], dropped)
    with torch.no_grad():
        yield (
            "z",
            model.condition(model.patchify(tensors["inputs/imgs"]), embedding, visible, everything),
            tensors["expected/z"],
        )
        terms = model.loss(objective, tensors["inputs/imgs"], embedding, visible, everything,
                           tensors["noise/t"], tensors["noise/eps"])  # fmt: skip
    yield "terms/mse", terms.mse, tensors["expected/terms/mse"]
    yield "terms/vb", terms.variational, tensors["expected/terms/vb"]
    yield "terms/loss", terms.loss, tensors["expected/terms/loss"]

    copies = len(tensors["noise/t"]) // mask.numel()
    rows = mask.flatten().repeat(copies)
    loss = model.loss(objective, tensors["inputs/imgs"], embedding, visible, wanted,
                      tensors["noise/t"][rows], tensors["noise/eps"][rows]).loss.mean()  # fmt: skip
    yield "loss", loss.detach(), tensors["expected/loss"]
    loss.backward()
    zero = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    official = names(model.config)
    for name, gradient in official.to_official(zero).items():
        if name not in official.copies.values():  # a parameter of two names is recorded under the other one
            yield f"gradient/{name}", gradient.norm(), case.about["grad_norm"].get(name) or 0.0


# -- FlowAR --------------------------------------------------------------------------------------------------------


def load_flowar(case: Case) -> FlowAR:
    weights = case.part("weights/")
    config = FlowARConfig.from_official(case.about["config"])
    config = replace(config, num_classes=len(weights["class_emb.weight"]) - 1)
    model = FlowAR(config)
    model.load_state_dict(flowar.official_names(config).from_official(weights))
    return case.placed(model)


def replay_flowar(case: Case) -> Found:
    model, sampling, expected = load_flowar(case), case.about["sampling"], case.part("expected/")
    early, late, steps = sampling["flow_upper_steps"], sampling["flow_lower_steps"], case.about["steps"]
    policy = policies.constant(early) if early == late else policies.linear(early, late)
    yield "counts", policy.counts(model.config.num_ar_steps), [about["nominal_steps"] for about in steps]
    labels, solver = case.tensors["inputs/labels"], make_solver("euler", "flowar-split")
    guidance = Guidance(sampling["cfg"], "linear", (0.0, sampling["guidance"]))
    request = Request(len(labels), model.config.num_ar_steps, labels, guidance)
    step = None
    for step in generate_steps(model, request, policy, solver, RecordedNoise(case)):
        k, problem, about = step.ar_step, step.problem, steps[step.ar_step]
        assert problem.condition is not None
        yield f"z/{k}", problem.condition, expected[f"z/{k:03d}"][: problem.num_rows]
        yield f"sampled/{k}", step.tokens, expected[f"sampled/{k:03d}"]
        grid = solver.plan(problem.process, int(step.steps))
        yield f"times/{k}", grid.network_times, about["timesteps"]
        yield f"levels/{k}", grid.levels, expected[f"t_grid/{k:03d}"]
        evaluations = sum(2 if guided else 1 for guided in about["guidance_applied"])
        yield f"evaluations/{k}", step.evaluations, problem.num_rows * evaluations
        yield f"guidance/{k}", problem.guidance, about["cfg"]
    assert step is not None
    yield "tokens", model.finish(step.state), expected["tokens"]


def replay_flowar_loss(case: Case) -> Found:
    model, tensors, scales = load_flowar(case), case.tensors, range(len(case.about["config"]["scale"]))

    def recorded(name: str) -> list[Tensor]:
        return [tensors[f"{name}/{k:03d}"] for k in scales]

    embedding = model.embed(
        tensors["inputs/labels"], tensors["noise/label_drop"] < case.about["config"]["label_drop_prob"]
    )
    targets = model.targets(tensors["inputs/imgs"])
    yield "targets", torch.cat(targets, 1), torch.cat(recorded("expected/target"), 1)
    yield "z", model.conditions(targets, embedding), torch.cat(recorded("expected/z"), 1)
    t, noise = torch.stack(recorded("noise/t"), 1), torch.cat(recorded("noise/eps"), 1)
    inputs = FlowLoss(), tensors["inputs/imgs"], embedding, t, noise
    yield "errors", model.errors(*inputs), torch.stack(recorded("expected/mse"), 1)
    loss = model.loss(*inputs)
    yield "loss", loss, tensors["expected/loss"]
    loss.backward()
    zero = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    for name, gradient in flowar.official_names(model.config).to_official(zero).items():
        yield f"gradient/{name}", gradient.norm(), case.about["grad_norm"].get(name) or 0.0


# -- xAR -----------------------------------------------------------------------------------------------------------


def load_xar(case: Case) -> XAR:
    weights = case.part("weights/")
    config = XARConfig.from_official(case.about["config"])
    config = replace(config, num_classes=len(weights["class_emb.weight"]) - 1)
    model = XAR(config)
    model.load_state_dict(xar.official_names(config).from_official(weights))
    return case.placed(model)


def replay_xar(case: Case) -> Found | None:
    # With fewer than 3 steps the official sampler takes its last evaluation for its first: it feeds the finished cell
    # again, without a mask, so that its keys are there twice, and truncates the time in float64, to 39 instead of 40.
    if any(about["effective_steps"] < 3 for about in case.about["steps"]):
        return None
    return _replay_xar(case)


def _replay_xar(case: Case) -> Found:
    model, sampling, expected = load_xar(case), case.about["sampling"], case.part("expected/")
    early, late, steps = sampling["flow_upper_steps"], sampling["flow_lower_steps"], case.about["steps"]
    policy = policies.constant(early) if early == late else policies.linear(early, late)
    yield "counts", policy.counts(model.config.num_ar_steps), [about["nominal_steps"] for about in steps]
    labels, solver = case.tensors["inputs/labels"], make_solver("euler-maruyama", "xar-em")
    request = Request(len(labels), model.config.num_ar_steps, labels, Guidance(sampling["cfg"]))
    step = None
    for step in generate_steps(model, request, policy, solver, RecordedNoise(case)):
        k, problem, about = step.ar_step, step.problem, steps[step.ar_step]
        yield f"sampled/{k}", step.tokens, expected[f"sampled/{k:03d}"]
        grid = solver.plan(problem.process, int(step.steps))
        yield f"times/{k}", grid.network_times, about["timesteps"]
        yield f"levels/{k}", grid.levels, expected[f"t_grid/{k:03d}"]
        # The official count is of calls; here the unconditional half is not evaluated where guidance does not act.
        halves = 2 if about["cfg"] > 1 else 1
        yield f"evaluations/{k}", step.evaluations, halves * problem.num_rows * about["effective_steps"]
        yield f"guidance/{k}", problem.guidance, about["cfg"]
    assert step is not None
    yield "tokens", model.finish(step.state), expected["tokens"]


def replay_xar_loss(case: Case) -> Found:
    model, tensors = load_xar(case), case.tensors
    labels = tensors["inputs/labels"]
    t = tensors["noise/t"].view(-1, len(labels)).T  # recorded cell by cell, and so is the noise
    noise = tensors["noise/eps"].transpose(0, 1).flatten(1, 2)
    embedding = model.embed(labels, tensors["noise/label_drop"] < case.about["config"]["label_drop_prob"])
    objective, start = FlowLoss(), model.to_tokens(tensors["inputs/imgs"])
    x = objective.noised(start, t.repeat_interleave(start.shape[1] // t.shape[1], dim=1)[:, :, None], noise)
    yield "v", model.predict(x, embedding, t), tensors["expected/v"]
    loss = model.loss(objective, tensors["inputs/imgs"], embedding, t, noise)
    yield "loss", loss, tensors["expected/loss"]
    loss.backward()
    zero = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    for name, gradient in xar.official_names(model.config).to_official(zero).items():
        yield f"gradient/{name}", gradient.norm(), case.about["grad_norm"].get(name) or 0.0


# -- Harmon --------------------------------------------------------------------------------------------------------


def load_harmon(case: Case) -> Harmon:
    config = HarmonConfig.from_official(case.about)
    model = Harmon(config)
    model.load_state_dict(harmon.official_names(config).from_official(case.part("weights/")))
    return case.placed(model)


def replay_harmon(case: Case) -> Found:
    model, sampling, expected = load_harmon(case), case.about["sampling"], case.part("expected/")
    lengths = case.tensors["inputs/attention_mask"].long().sum(1)
    yield "lengths", lengths, case.about["prompt_lengths"]
    shape = sampling["image_shape"]
    request = Request(
        len(expected["tokens"]), sampling["num_iter"],
        guidance=Guidance(sampling["cfg"], sampling["cfg_schedule"]),
        prompts=Prompts(case.tensors["inputs/input_ids"], lengths),
        token_grid=None if shape is None else (shape[0], shape[1]),
    )  # fmt: skip
    policy = mar_policy(case.about["mar_config"] | {"diff_sampler": "DiSA"})
    solver = make_solver("ddpm", "clipped-950", sampling["temperature"])
    step = None
    for step in generate_steps(model, request, policy, solver, RecordedNoise(case)):
        k, problem, about = step.ar_step, step.problem, case.about["steps"][step.ar_step]
        assert problem.condition is not None
        yield f"z/{k}", problem.condition, expected[f"z/{k:03d}"][: problem.num_rows]
        yield f"sampled/{k}", step.tokens, expected[f"sampled/{k:03d}"]
        yield f"times/{k}", solver.plan(problem.process, int(step.steps)).network_times, about["timesteps"]
        halves = 1 if about["cfg"] == 1 else 2
        yield f"evaluations/{k}", step.evaluations, halves * problem.num_rows * about["effective_steps"]
        yield f"guidance/{k}", problem.guidance, about["cfg"]
    assert step is not None
    yield "tokens", model.finish(step.state), expected["tokens"]


def replay_harmon_text(case: Case) -> Found:
    model, tensors, logits = load_harmon(case), case.tensors, []
    with torch.no_grad():
        yield "z_enc", model.look(tensors["inputs/latent"]), tensors["expected/z_enc"]

    def choose(found: Tensor) -> Tensor:
        logits.append(found)
        return found.argmax(-1)

    ids = model.describe(
        tensors["inputs/latent"], tensors["inputs/input_ids"], case.about["image_token_id"], choose,
        max_tokens=case.about["max_new_tokens"],
    )  # fmt: skip
    found = torch.stack(list(ids), dim=1)
    yield "ids", float((found != tensors["expected/new_tokens"]).sum()), 0.0
    yield "logits", torch.stack(logits, dim=1), tensors["expected/logits"]


# -- autoencoder ---------------------------------------------------------------------------------------------------


def replay_vae(case: Case) -> Found:
    config = VAEConfig.from_official(case.about["config"])
    network = build(config)
    network.load_state_dict(from_official(case.part("weights/"), config))
    codec, expected = KL16Codec(network.eval()).to(case.device, torch.float32), case.part("expected/")
    with torch.no_grad():
        moments = codec.moments(case.tensors["inputs/image"].to(case.device))
        yield "moments", moments, expected["moments"]
        mean, log_variance = split_moments(moments)
        yield "mean", mean, expected["mean"]
        yield "logvar", log_variance, expected["logvar"]
        image, noise = (case.tensors[name].to(case.device) for name in ("inputs/image", "noise/sample"))
        sample = codec.encode(image, noise) / config.scale
        yield "sample", sample, expected["sample"]
        yield "decoded", codec.decode(case.tensors["inputs/latent"].to(case.device) * config.scale), expected["decoded"]


# -- schedules -----------------------------------------------------------------------------------------------------


OFFICIAL_GRIDS: dict[str, tuple[Process, str]] = {
    "mar": (CosineDiffusion(), "clipped-950"),
    "flowar": (FlowMatching(), "flowar-split"),
    "xar": (FlowMatching(), "xar-em"),
}


def replay_schedules(content: dict[str, Any]) -> Found:
    process = CosineDiffusion()
    for name, entry in content["strategies"].items():
        if name.partition("/")[0] in OFFICIAL_GRIDS:
            yield name, *_strategy(name, entry)
    base = content["strategies"]["base_alphas_cumprod_1000"]
    yield "alpha_bar", process.alpha_bar, base if isinstance(base, list) else next(iter(base.values()))
    for name, entry in content["spaced"].items():
        kind, count, clip = name.split("/")
        grid_name = {"clip950": "clipped-950", "clip1001": "full", "clip980": "ddim-980"}[clip]
        if (kind == "ddim" and grid_name != "ddim-980") or int(count) < 2:
            continue
        grid = process.grid(grid_name, int(count))
        yield f"{name}/timesteps", grid.network_times[::-1].copy(), entry["timesteps"]
        if entry.get("alphas_cumprod") is not None:
            yield f"{name}/levels", grid.levels[-2::-1].copy(), entry["alphas_cumprod"]
    yield from _flow_grids(content["strategies"])


def _flow_grids(strategies: dict[str, Any]) -> Found:
    process = FlowMatching()
    for model in ("flowar", "xar"):
        for count, entry in strategies[f"{model}_time_grids"].items():
            if int(count) > 1:  # the official samplers have no single step
                grid = process.grid(OFFICIAL_GRIDS[model][1], int(count))
                yield f"{model}/{count}/levels", grid.levels, entry["t"]
                fed = entry["embed_int"][: grid.num_evaluations]
                yield f"{model}/{count}/network_times", grid.network_times, fed


def _strategy(name: str, entry: dict[str, Any]) -> tuple[Any, Any]:
    model, num_ar_steps, bounds, strategy = name.split("/")
    process, grid = OFFICIAL_GRIDS[model]
    early, late = map(int, bounds.split("to"))
    policy = policies.constant(late) if strategy == "constant" else texts.parse(f"{strategy}:{early}-{late}")
    nominal = policy.counts(int(num_ar_steps[1:]))
    made = [process.grid(grid, count).num_evaluations for count in nominal]
    return nominal + made, entry["nominal"] + entry["effective"]


# -- the report ----------------------------------------------------------------------------------------------------

REPLAYS: dict[tuple[str, str], Callable[[Case], Found | None]] = {
    ("MAR", "sampling"): replay_mar,
    ("MAR", "training loss"): replay_mar_loss,
    ("FlowAR", "sampling"): replay_flowar,
    ("FlowAR", "training loss"): replay_flowar_loss,
    ("xAR", "sampling"): replay_xar,
    ("xAR", "training loss"): replay_xar_loss,
    ("Harmon", "sampling"): replay_harmon,
    ("Harmon", "image to text"): replay_harmon_text,
    ("AutoencoderKL", "sampling"): replay_vae,
    ("BitDance", "sampling"): bitdance.replay,
    ("BitDance", "head"): bitdance.replay_head,
    ("BitDance", "training loss"): bitdance.replay_loss,
    ("BitDance", "autoencoder"): bitdance.replay_autoencoder,
    ("eMIGM", "sampling"): lambda case: emigm.replay(case, RecordedNoise(case)),
    ("eMIGM", "training loss"): lambda case: replay_mar_loss(case, emigm.load, emigm.official_names),
    ("eMIGM", "schedule"): emigm.replay_schedule,
    ("NextStep-1", "sampling"): replay_nextstep,
    ("NextStep-1", "head"): replay_nextstep_head,
    ("UniPic", "sampling"): lambda case: unipic.replay(case, RecordedNoise(case)),
    ("UniPic", "editing"): lambda case: unipic.replay(case, RecordedNoise(case)),
    ("UniPic", "schedule"): unipic.replay_schedule,
}


def difference(found: Any, expected: Any) -> float:
    """Largest difference relative to the largest expected magnitude; infinite where shapes differ or on NaN."""
    values = (x.detach().cpu().double() if isinstance(x, Tensor) else x for x in (found, expected))
    a, b = (np.asarray(value, dtype=np.float64) for value in values)
    if a.size != b.size or (a.ndim and b.ndim and a.shape != b.shape):
        return float("inf")
    gap, size = np.abs(a - b).max(initial=0), np.abs(b).max(initial=0)
    if not np.isfinite(gap):
        return float("inf")
    return 0.0 if gap == 0 else float(gap / max(size, 1e-30))


def replay(
    path: Path,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    measure: Callable[[Any, Any], float] = difference,
) -> Iterator[tuple[str, float]] | None:
    """Name and relative difference of every tensor of a case, or None where the case is not supported.

    device, dtype: of what is sampled. Training and text are replayed on the CPU alone, in float32. measure: of a found
    and an expected value.
    """
    if path.name == "schedules.json":
        found = replay_schedules(json.loads(path.read_text()))
    else:
        case = Case.read(path, device, dtype)
        run = REPLAYS.get((case.about["model"], case.about.get("kind", "sampling")))
        if run is None:
            return None
        found = run(case)
        if found is None:
            return None
    return ((name, measure(value, expected)) for name, value, expected in found)


def report(path: Path) -> tuple[str, bool]:
    """The line of one case, and whether it may pass."""
    try:
        differences = replay(path)
        if differences is None:
            return f"{path.stem:32} {'-':>10}  not supported", True
        worst, gap = max(differences, key=lambda pair: pair[1])
    except (DisaError, SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        return f"{path.stem:32} {'-':>10}  FAIL ({type(error).__name__}: {error})", False
    good = gap <= TOLERANCE
    return f"{path.stem:32} {gap:10.2e}  {'ok' if good else f'FAIL ({worst})'}", good


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not (folder := Path(arguments[0])).is_dir():
        print("usage: python tests/golden.py DIR (a folder of recorded cases)", file=sys.stderr)
        return 2
    results = [report(path) for path in sorted(folder.glob("*.json"))]
    for line, _ in results:
        print(line)
    if not results:
        print(f"no cases in {folder}", file=sys.stderr)
    return 0 if results and all(good for _, good in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
