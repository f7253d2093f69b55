"""Whatever comes from outside is used, or refused with one line, soon and in little memory: see tests/fuzz.py."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch as safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st

import planned
import small
import test_families as families
from disa import cli
from disa.core.flow import FlowMatching
from disa.core.plans import read_plan
from disa.core.problem import DenoisingProblem
from disa.core.spending import Spending
from disa.core.texts import parse, table
from disa.draw.prompts import read_prompts
from disa.draw.run import Run
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings, digest
from disa.errors import DisaError
from disa.models.registry import PRESETS
from disa.policies.adaptive import policy
from disa.policies.probe import FittedProbe
from disa.weights.build import layout
from disa.weights.config import from_json, read_config, to_json
from disa.weights.package import in_package
from disa.weights.read import read_tensors
from fuzz import JSON, NUMBERS, PLAIN, TEXTS, bytes_near, check_line, json_near, texts_near, used_or_refused

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = texts_near(
    "linear:50-5", "constant:50", "two-stage:50-5", "table:counts.json", "mlp:50-5@20", "variance:draws:9-2@5",
    "straight@4", "straight:plan.json@4",
    "mlp@18:probe.safetensors", "plan:plan.json@3", "plan@8.5",
)  # fmt: skip
SOLVERS = texts_near(
    "ddim@uniform:eta=0.5",
    "ddpm",
    "euler-maruyama@xar-em:temperature=0.9",
    "heun",
    "dpm-solver++-2@logsnr",
    "plan:plan.json",
)
GRIDS = texts_near("uniform", "clipped-950", "shifted-3", "flowar-split", "ddim-980")
SPANS = texts_near("0-0.9", "0.2-1") | st.lists(NUMBERS, max_size=3)
OF_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "steps": STEPS | st.lists(NUMBERS, max_size=5) | st.tuples(NUMBERS, NUMBERS),
    "solver": SOLVERS,
    "grid": GRIDS,
    "ramp": texts_near("linear", "constant"),
    "interval": SPANS,
    "progress": SPANS,
    "size": texts_near("32x32", "64x32") | st.lists(NUMBERS, max_size=3),
}


@cache
def sampler(family: str) -> Sampler:
    return small.sampler() if family == "mar" else families.sampler(families.shrunk(f"{family}-digits"))


@pytest.fixture(scope="module", autouse=True)
def ready() -> None:
    """What is made or imported once does not count as slow."""
    for family in ("mar", "flowar"):
        with suppress(DisaError):
            sampler(family).settings(solver="dpm-solver++-2")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that every example writes anew, in the folder that relative paths begin in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counts.json").write_text("[4, 3, 2, 1]")
    planned.written(tmp_path / "plan.json")
    return tmp_path / "file"


# -- options -------------------------------------------------------------------------------------------------------

OPTION_NAMES = [each.name for each in fields(Settings)]
OPTIONS = st.fixed_dictionaries(
    {}, optional={name: OF_OPTIONS.get(name, st.nothing()) | PLAIN for name in OPTION_NAMES}
)


def check_told(loaded: Sampler, settings: Settings) -> None:
    """What is told of settings makes them again."""
    told = settings.to_json()
    again = {name: value for name, value in told.items() if name in OPTION_NAMES}
    if "step_counts" not in told:
        assert loaded.settings(**again).to_json() == told


@given(OPTIONS, st.sampled_from(["mar", "flowar"]))
def test_options_of_drawing(file: Path, options: dict[str, Any], family: str):
    settings = used_or_refused(lambda: sampler(family).settings(**options))
    if settings is not None:
        told = settings.to_json()
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        assert digest(told)
        check_told(sampler(family), settings)


@given(st.sampled_from(["mar", "flowar"]), st.data())
def test_one_option_of_drawing(file: Path, family: str, data: st.DataObject):
    """Alone an option gets further than among others that are refused before it."""
    name = data.draw(st.sampled_from(sorted(OF_OPTIONS)))
    value = data.draw(OF_OPTIONS[name])
    settings = used_or_refused(lambda: sampler(family).settings(**{name: value}))
    if settings is not None:
        check_told(sampler(family), settings)


@given(STEPS | TEXTS)
def test_texts_of_policies(file: Path, text: str):
    found = used_or_refused(lambda: parse(text))
    assert found is None or not str(found).startswith("table") or found.values
    if found is not None:
        assert parse(str(found)) == found


class Drawing(Exception):
    """A command has come to its first AR step."""


def command_lines() -> st.SearchStrategy[list[str]]:
    words = {
        "labels": texts_near("3", "0-7", "1,5,9", "none"),
        "seeds": texts_near("0-7", "100000-100007", "1,5,9"),
        "steps": STEPS,
        "solver": SOLVERS,
        "grid": GRIDS,
        "guidance": texts_near("2.5", "-1", "1e3"),
        "guidance-interval": texts_near("0-0.9"),
        "guidance-progress": texts_near("0.2-1"),
        "num-ar-steps": texts_near("4", "3"),
        "temperature": texts_near("0.9"),
        "eta": texts_near("0.5"),
        "size": texts_near("32x32"),
        "height": texts_near("32"),
        "batch-size": texts_near("2"),
        "per-label": texts_near("2"),
        "prompt": TEXTS,
        "device": texts_near("cpu"),
        "dtype": texts_near("fp32"),
        "budget": texts_near("0.3", "20", "linear:50-5", "mlp:50-5@20"),
        "reference": texts_near("40"),
        "most": texts_near("3"),
        "seed": texts_near("1"),
    }
    flag = st.just(("--counts-only",))
    option = st.one_of([st.tuples(st.just(f"--{name}"), value) for name, value in words.items()]) | flag
    several = st.lists(option, max_size=4).map(lambda pairs: [part for pair in pairs for part in pair])
    base = st.sampled_from(["sample", "sample", "compare", "calibrate", "fit-probe", "bench", "evidence"])
    return st.builds(lambda command, given, more: [command, *given, *more], base, several, st.lists(TEXTS, max_size=1))


@given(command_lines())
def test_command_lines(file: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]):
    model = file.with_name("model")
    if not model.exists():
        small.folder(model)

    def stop(self: Run) -> Any:
        raise Drawing

    words = [word.replace("\0", "") for word in words]  # the shell cannot pass it
    at = ["--model", str(model), "--out", str(file.with_name("out"))]
    code, out, err = None, io.StringIO(), io.StringIO()
    with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(Run, "__next__", stop)
        patch.setattr(sys, "argv", ["disa", words[0], *([] if words[0] == "bench" else at), *words[1:]])
        try:
            used_or_refused(cli.main, 5)
        except Drawing:
            code = 0
        except SystemExit as stopped:
            code = stopped.code
    said = err.getvalue().encode("utf-8", "backslashreplace").decode()  # as standard error writes it
    lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
    assert code in (0, 2)
    if code == 2:
        assert len(lines) == 1, err.getvalue()
        assert lines[0].startswith("disa: ")
        check_line(lines[0])


# -- files ---------------------------------------------------------------------------------------------------------

TABLE = {"counts": [9, 4, 1], "measured_for": {"model": "small", "interval": [0.0, 1.0]}, "budget": 20.0, "curves": {}}


def as_file(content: st.SearchStrategy[Any], *good: Any) -> st.SearchStrategy[bytes]:
    """JSON as bytes, and bytes near to good JSON."""
    whole = content.map(lambda value: json.dumps(value).encode("utf-8", "replace"))
    return whole | bytes_near(*(json.dumps(value).encode() for value in good))


@given(as_file(json_near(TABLE) | JSON | st.lists(NUMBERS), TABLE, [9, 4, 1]))
def test_tables(file: Path, content: bytes):
    file.write_bytes(content)
    found = used_or_refused(lambda: table(file))
    if found is not None:
        assert all(type(count) is int and count > 0 for count in found.counts(len(found.values)))
        used_or_refused(lambda: sampler("mar").settings(steps=found))


PLAN = planned.content(most=2, num_stretches=2)


@given(as_file(json_near(PLAN) | json_near(PLAN, 1), PLAN), st.floats(0, 20))
def test_plans(file: Path, content: bytes, budget: float):
    file.write_bytes(content)
    plan = used_or_refused(lambda: read_plan(file, f"plan:{file.name}"))
    if plan is None:
        return
    assert plan.hash
    num_ar_steps = len(plan.content["rows"])
    with np.errstate(all="ignore"):
        for asked in (None, budget):
            steps = used_or_refused(lambda asked=asked: plan.steps(asked))
            assert steps is None or len(steps.counts(num_ar_steps)) == num_ar_steps
            if steps is not None and num_ar_steps <= 4:
                options = {"steps": steps, "num_ar_steps": num_ar_steps}
                used_or_refused(lambda options=options: sampler("mar").settings(**options))
    used_or_refused(lambda: sampler("mar").settings(steps=1, solver=f"plan:{file.name}"))


PROBE = in_package("flowar-digits-probe.safetensors")


@st.composite
def probes(draw: st.DrawFn) -> bytes:
    """The probe of the package with other numbers and tensors."""
    known = FittedProbe.read(PROBE)
    state = known.tensors()
    said = draw(json_near(json.loads(known.metadata()["disa"]), 3))
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(state)))
        change = draw(st.sampled_from(["number", "shape", "type", "out", "other"]))
        value = state.pop(name, torch.zeros(1)).clone()
        if change == "number" and value.numel():
            value.view(-1)[draw(st.integers(0, value.numel() - 1))] = draw(st.floats(width=32))
        elif change == "shape":
            value = value.flatten()[: draw(st.integers(0, 40))]
        elif change == "type":
            value = value.to(
                draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool]))
            )
        if change != "out":
            # safetensors itself writes no half of a character.
            other = draw(TEXTS).encode("utf-8", "replace").decode()
            state[other if change == "other" else name] = value
    return safetensors.save(state, {"disa": json.dumps(said)})


@given(st.one_of(probes(), probes(), bytes_near(PROBE.read_bytes())))
def test_probes(file: Path, content: bytes):
    file.write_bytes(content)
    found = used_or_refused(lambda: FittedProbe.read(file))
    if found is None:
        return
    for name in ("mlp", "variance:probe"):
        rows, nothing = torch.zeros(6, dtype=torch.int64), FlowMatching()
        z = torch.randn(6, found.width, generator=torch.Generator().manual_seed(0))
        ask: Any = {
            "field": None,
            "process": nothing,
            "shape": (4,),
            "image": rows,
            "position": rows,
            "rows_to_come": 6,
        }
        problem = DenoisingProblem(ar_step=1, num_ar_steps=3, condition=z, **ask)
        for spending in (Spending(20, 2, 6), Spending(20, 2)):
            steps = used_or_refused(partial(policy, name, found, spending))
            counts = None if steps is None else used_or_refused(partial(steps.begin(), problem))
            assert counts is None or 2 <= counts.min() <= counts.max() <= 20


ASKED = [
    b"a red circle\na blue star\n", b'["a red circle", "a blue star"]',
    b'{"prompt": "a red circle"}\n{"prompt": "b"}\n',
    b"id\tprompt\n1\ta red circle\n", "\ufeffa red circle\r\n".encode(), "a red circle".encode("utf-16"),
]  # fmt: skip


@given(
    bytes_near(*ASKED)
    | JSON.map(lambda value: json.dumps(value).encode())
    | TEXTS.map(lambda text: text.encode("utf-8", "replace"))
)
def test_files_of_prompts(file: Path, content: bytes):
    file.write_bytes(content)
    found = used_or_refused(lambda: read_prompts(file))
    assert found is None or (found and all(entry["prompt"].strip() for entry in found))


CONFIGS = [to_json(small.PRESET), *(to_json(preset) for name, preset in sorted(PRESETS.items()) if preset.embedded)]


@given(st.sampled_from(CONFIGS).flatmap(json_near), st.booleans())
def test_configurations(file: Path, content: Any, official: bool):
    file.write_bytes(json.dumps(content).encode())
    found = used_or_refused(lambda: read_config(file))
    if found is not None:
        preset, _ = found
        assert from_json(json.loads(json.dumps(to_json(preset)))) == preset
        assert used_or_refused(lambda: layout(preset, official), 10) != {}


@given(as_file(JSON, *CONFIGS[:2]))
def test_what_is_near_to_a_configuration(file: Path, content: bytes):
    file.write_bytes(content)
    used_or_refused(lambda: read_config(file))


# -- weights -------------------------------------------------------------------------------------------------------

STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(3, dtype=torch.bfloat16)}


def torch_file(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A safetensors file with another header."""
    whole = safetensors.save(STATE)
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.dumps(draw(json_near(json.loads(whole[8 : 8 + length]), 3))).encode("utf-8", "replace")
    told = len(header) if draw(st.integers(0, 3)) else draw(st.integers(0, 2**64 - 1))
    return struct.pack("<Q", told) + header + whole[8 + length :]


TENSORS = st.sampled_from(
    [torch.ones(2), torch.ones(2).to_sparse(), torch.ones(2, device="meta"), torch.ones(2, dtype=torch.cfloat)]
)
HELD = st.recursive(
    PLAIN | TENSORS | st.binary(max_size=3),
    lambda part: st.dictionaries(st.sampled_from(["model", "model_ema", "state_dict", "a.weight"]) | TEXTS | NUMBERS,
    part, max_size=3)
    | st.lists(part, max_size=2) | st.tuples(part),
    max_leaves=6,
)  # fmt: skip
PICKLES = bytes_near(torch_file(STATE), pickle.dumps({"a": [1]}, 2)) | HELD.map(torch_file) | HELD.map(
    lambda value: pickle.dumps(value, 2)
)  # fmt: skip


def read(file: Path, content: bytes, endings: tuple[str, ...]) -> Iterator[Callable[[], Any]]:
    for ending in endings:
        path = file.with_suffix(ending)
        path.write_bytes(content)
        yield lambda path=path: read_tensors(path)


@given(headers() | bytes_near(safetensors.save(STATE)) | PICKLES)
def test_files_of_weights(file: Path, content: bytes):
    for action in read(file, content, (".safetensors", ".pth")):
        found = used_or_refused(action)
        assert found is None or all(isinstance(value, torch.Tensor) for value in found.values())


# -- the checks themselves -------------------------------------------------------------------------------------------


def test_what_must_not_be_is_seen():
    def refuse(said: str) -> Callable[[], None]:
        def action() -> None:
            raise DisaError(said)

        return action

    assert used_or_refused(lambda: 3) == 3
    assert used_or_refused(refuse("expected 3, found 4.")) is None
    for said in ("", "two\nlines", "long " * 200, "half of \ud83d"):
        with pytest.raises((AssertionError, UnicodeEncodeError)):
            used_or_refused(refuse(said))
    with pytest.raises(ZeroDivisionError):
        used_or_refused(lambda: 1 / 0)
    with pytest.raises(AssertionError, match="too long"):
        used_or_refused(lambda: sum(range(10**5)), 0)
