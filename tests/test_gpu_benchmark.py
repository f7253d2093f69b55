"""The benchmark for GPUs, dry: small models on a CPU, all else as on a GPU."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402  # pyright: ignore
import gpu_write  # noqa: E402  # pyright: ignore
import work  # noqa: E402  # pyright: ignore

import small  # noqa: E402
from disa.core.diffusion import CosineDiffusion  # noqa: E402
from disa.models.registry import PRESETS  # noqa: E402


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """To run it, and have its exit code and what it wrote."""
    pytest.importorskip("transformers")

    def run(*flags: str) -> tuple[int, dict[str, Any]]:
        given = "--device", "cpu", "--quick", "--no-tests", "--out", str(tmp_path), "--earlier", str(tmp_path), *flags
        monkeypatch.setattr(sys, "argv", ["gpu.py", *given])
        return gpu.main(), json.loads((tmp_path / "gpu-cpu-quick.json").read_text())

    return run


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_every_family_is_measured_and_an_interrupted_call_goes_on(
    measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = gpu.Cell("xar-digits", "fp32", "disa", 2, "plain")

    def measure(self: Any, cell: Any) -> dict[str, Any]:
        if cell == broken:
            raise RuntimeError("no such kernel")
        return before(self, cell)

    before = gpu.Bench.measure
    with monkeypatch.context() as patched:
        patched.setattr(gpu.Bench, "measure", measure)
        code, first = measured()
    assert code == 1
    assert first["cells"][broken.name] == {"error": "no such kernel"}
    assert {cell["steps"] for cell in first["cells"].values() if "seconds" in cell} == {"linear:3-2", "constant:4"}
    printed = capsys.readouterr().out
    assert "| xar-digits, fp32 |  | 2 | failed" not in printed  # its fused form has a time
    assert "| failed |" in printed

    # A call that has no time left measures nothing, and loses nothing.
    lost, *kept = first["cells"]
    fewer = first | {"cells": {name: first["cells"][name] for name in kept}}
    (tmp_path / "gpu-cpu-quick.json").write_text(json.dumps(fewer))
    _, none = measured("--minutes", "0")
    assert none["cells"].keys() == set(kept)

    code, second = measured()
    assert code == 0
    assert second["cells"].keys() == first["cells"].keys()
    assert all("seconds" in cell for cell in second["cells"].values())
    same = first["cells"].keys() - {lost, broken.name}
    assert {name: second["cells"][name] for name in same} == {name: first["cells"][name] for name in same}


def test_every_published_model_has_its_cells_and_none_twice() -> None:
    bench = gpu.Bench(torch.device("cpu"), False, 0, Path(), {"cells": {}, "missing": []})
    cells = bench.todo()
    assert len(set(cells)) == len(cells)
    published = {name for name, preset in PRESETS.items() if not preset.embedded} - {small.PRESET.name}
    alike = {"nextstep-1-edit", "nextstep-1.1", "unipic-1"}  # as nextstep-1, and as harmon-1.5b in larger images
    assert {cell.model for cell in cells} == published - alike
    assert {cell.batch for cell in cells} == {1, 8, 64, 256}
    bench.result["missing"] = ["transformers"]
    assert not any(cell.model.startswith("harmon") for cell in bench.todo())


def test_tests_that_take_too_long_are_stopped(tmp_path: Path) -> None:
    found = gpu.tested(False, None, tmp_path / "log", 0.05)
    assert found["code"] is None
    assert "stopped" in found["said"]


@pytest.mark.long
def test_what_an_original_takes_is_extrapolated_from_few_steps() -> None:
    preset = PRESETS["flowar-digits"]
    model, asked = work.on_meta(preset), work.Asked(4, "constant:12")
    through, found = (how(preset, model, asked, "plain") for how in (work.count, work.extrapolated))
    assert found["flops"] == pytest.approx(through["flops"], rel=1e-6)
    assert found["launches"] == pytest.approx(through["launches"], rel=0.02)


def test_the_fast_recipe_of_a_family_is_drawn_as_the_recipe_says() -> None:
    preset = PRESETS["mar-base"]
    request, policy, solver = work.Asked.of(preset, "fast").drawing(preset, 2)
    assert (str(request.order), str(request.counts), str(request.reuse)) == (
        "checkerboard:3",
        "stages:24-6-2",
        "residual:9",
    )
    assert (request.num_ar_steps, request.guidance.active, str(policy)) == (32, True, "linear:12-3")
    assert solver.plan(CosineDiffusion(), 5).num_evaluations == 5
    bench = gpu.Bench(torch.device("cpu"), False, 0, Path(), {"cells": {}, "missing": []})
    fast = {cell.model for cell in bench.todo() if cell.settings == "fast"}
    assert fast == {name for name in work.MODELS if work.recipe_of(PRESETS[name]).exists()}
    assert {"mar-base", "flowar-small", "xar-huge"} < fast


@pytest.mark.parametrize(("name", "num_ar_steps"), [("flowar-small", 5), ("xar-large", 4)])
def test_a_recipe_without_counts_keeps_the_ar_steps_of_its_model(name: str, num_ar_steps: int) -> None:
    asked = work.Asked.of(PRESETS[name], "fast")
    assert asked.num_ar_steps == num_ar_steps
    assert asked.solver is not None
    assert asked.options == {}


def test_the_page_has_the_tables_of_the_results() -> None:
    page = gpu_write.PAGE.read_text(encoding="utf-8")
    assert "<!-- gpu -->" in page
    assert gpu_write.filled(page) == page
