"""The examples run, and show what they say."""

import re
import runpy
from pathlib import Path

import pytest

from disa.models.registry import PRESETS
from small import changed

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
def test_minimal(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "mar-digits", changed(PRESETS["mar-digits"], num_ar_steps=8))
    example = runpy.run_path(str(EXAMPLES / "minimal.py"))
    example["draw_digits"]()
    example["own_loop"]()
    counts = [int(count) for count in re.findall(r"(\d+) evaluations", capsys.readouterr().out)]
    assert len(counts) == 3
    assert counts[1] < counts[0] / 4
    assert (tmp_path / "minimal.png").stat().st_size > 0


def test_a_policy_of_your_own(capsys: pytest.CaptureFixture[str]):
    example = runpy.run_path(str(EXAMPLES / "policy.py"))
    example["main"](["constant:3", example["Doubtful"](early=5, late=2)])
    counts = re.findall(r"([\d.]+) evaluations per row", capsys.readouterr().out)
    assert counts[0] == "3.0"
    assert 2 < float(counts[1]) < 5


def test_a_model_of_your_own(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(EXAMPLES / "own_model.py"), run_name="__main__")
    shown = re.findall(r"^(\S+) +(\d+) evaluations.* ([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    assert [policy for policy, _, _ in shown] == ["constant:50", "linear:50-5", "constant:27", "linear:5-50"]
    # 8 pictures of 16 lines: a count of n makes 8 n evaluations of a line.
    assert [int(evaluations) for _, evaluations, _ in shown] == [6400, 3520, 3456, 3520]
    full, annealed, even, reverse = (float(error) for _, _, error in shown)
    assert full < annealed < even < reverse
