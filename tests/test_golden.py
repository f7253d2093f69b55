"""The official numbers: every recorded case through the public code, and the checker notices damage."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from conftest import GOLDEN
from golden import main, replay, report

CASES = sorted(path.stem for path in GOLDEN.glob("*.json")) or ["(none)"]
REQUIRED = ("mar_", "vae_", "flowar_", "xar_disa", "xar_nocfg", "xar_loss", "harmon_", "schedules")
SMALL = "mar_patch2"


@pytest.mark.parametrize("case", CASES)
def test_case(golden: Path, case: str):
    line, good = report(golden / f"{case}.json")
    assert good, line
    if case.startswith(REQUIRED):
        assert line.endswith("  ok"), line


def test_no_case_is_missing(golden: Path):
    assert sum(case.startswith("mar_") for case in CASES) >= 12
    assert sum(case.startswith("vae_") for case in CASES) >= 2
    assert "schedules" in CASES


# --- damage -----------------------------------------------------------------------------------------------------------


def copy(golden: Path, folder: Path, case: str) -> Path:
    for path in golden.glob(f"{case}.*"):
        shutil.copyfile(path, folder / path.name)
    return folder / f"{case}.safetensors"


def test_an_undamaged_copy_passes(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy(golden, tmp_path, SMALL)
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(SMALL)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (SMALL, "expected/z/000"),
        (SMALL, "expected/sampled/001"),
        (SMALL, "expected/tokens"),
        (SMALL, "weights/diffloss.net.res_blocks.0.mlp.0.weight"),
        ("mar_loss", "expected/loss"),
        ("vae_kl16", "expected/decoded"),
    ],
)
def test_a_change_of_a_thousandth_fails(golden: Path, tmp_path: Path, case: str, name: str):
    path = copy(golden, tmp_path, case)
    tensors = load_file(path)
    flat = tensors[name].view(-1)
    flat[flat.abs().argmax()] *= 1.001
    save_file(tensors, path)
    line, good = report(path.with_suffix(".json"))
    assert not good
    assert "FAIL" in line
    assert main([str(tmp_path)]) == 1


def test_one_failure_among_good_cases_fails_the_folder(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy(golden, tmp_path, SMALL)
    path = copy(golden, tmp_path, "mar_loss")
    about = json.loads(path.with_suffix(".json").read_text())
    name = max(about["grad_norm"], key=lambda name: about["grad_norm"][name] or 0)
    about["grad_norm"][name] *= 1.001
    path.with_suffix(".json").write_text(json.dumps(about))
    assert main([str(tmp_path)]) == 1
    failed, passed = capsys.readouterr().out.splitlines()
    assert f"FAIL (gradient/{name})" in failed
    assert passed.endswith("ok")


@pytest.mark.parametrize("key", ["mar/K16/50to5/linear", "mar/K16/50to5/two-stage"])
def test_a_wrong_step_count_fails(golden: Path, tmp_path: Path, key: str):
    content = json.loads((golden / "schedules.json").read_text())
    content["strategies"][key]["nominal"][3] += 1
    (tmp_path / "schedules.json").write_text(json.dumps(content))
    line, good = report(tmp_path / "schedules.json")
    assert not good
    assert f"FAIL ({key})" in line


def test_harmon_is_expected_to_evaluate_one_half_without_guidance(golden: Path, tmp_path: Path):
    path = copy(golden, tmp_path, "harmon_t2i").with_suffix(".json")
    about = json.loads(path.read_text())
    for part in (about["sampling"], *about["steps"]):
        part["cfg"] = 1.0
    path.write_text(json.dumps(about))
    found = replay(path)
    assert found is not None
    evaluations = {name: gap for name, gap in found if name.startswith("evaluations/")}
    assert evaluations == dict.fromkeys((f"evaluations/{k}" for k in range(6)), 0.0)


def test_a_missing_tensor_fails(golden: Path, tmp_path: Path):
    path = copy(golden, tmp_path, SMALL)
    tensors = load_file(path)
    del tensors["weights/mask_token"]
    save_file(tensors, path)
    line, good = report(path.with_suffix(".json"))
    assert not good
    assert "mask_token" in line


@pytest.mark.parametrize("name", ["expected/z/001", "expected/tokens"])
def test_a_recorded_value_that_is_not_a_number_fails(golden: Path, tmp_path: Path, name: str):
    path = copy(golden, tmp_path, SMALL)
    tensors = load_file(path)
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, path)
    line, good = report(path.with_suffix(".json"))
    assert not good
    assert "FAIL" in line


@pytest.mark.parametrize("damage", ["truncated", "absent", "json"])
def test_an_unreadable_case_fails_and_the_others_are_still_run(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
):
    path = copy(golden, tmp_path, "mar_loss")
    copy(golden, tmp_path, SMALL)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "absent":
        path.unlink()
    else:
        path.with_suffix(".json").write_text("{")
    assert main([str(tmp_path)]) == 1
    failed, passed = capsys.readouterr().out.splitlines()
    assert failed.startswith("mar_loss")
    assert "FAIL" in failed
    assert passed.endswith("ok")


def test_an_unknown_model_is_not_supported_and_does_not_fail(golden: Path, tmp_path: Path):
    path = copy(golden, tmp_path, SMALL)
    about = json.loads(path.with_suffix(".json").read_text()) | {"model": "another"}
    path.with_suffix(".json").write_text(json.dumps(about))
    line, good = report(path.with_suffix(".json"))
    assert good
    assert "not supported" in line


# --- the command ------------------------------------------------------------------------------------------------------


def test_an_empty_folder_is_a_failure(tmp_path: Path):
    script = Path(__file__).with_name("golden.py")
    result = subprocess.run([sys.executable, script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "no cases" in result.stderr


def test_what_is_no_folder_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").touch()
    for arguments in ([], [str(tmp_path / "absent")], [str(tmp_path / "file")], [str(tmp_path), str(tmp_path)]):
        assert main(arguments) == 2
        assert "usage" in capsys.readouterr().err
