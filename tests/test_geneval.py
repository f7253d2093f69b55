"""Results of the official evaluators of GenEval and GenEval 2, read back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from command import Command, complaint
from disa.evaluate.geneval import read_results

TASKS = {"single_object": 0.9, "two_object": 0.5, "counting": 0.25}


def result(tag: str, prompt: str, image: int, correct: bool) -> dict[str, Any]:
    """A line as evaluate_images.py writes it."""
    about = {"tag": tag, "include": [{"class": "cat", "count": 1}], "prompt": prompt}
    return {
        "filename": f"images/{prompt}/samples/{image:04d}.png",
        "tag": tag,
        "prompt": prompt,
        "correct": correct,
        "reason": "" if correct else "expected cat>=1, found 0",
        "metadata": json.dumps(about),
        "details": "{}",
    }


def results(path: Path, num_prompts: int = 40) -> Path:
    """Four images of each prompt, of which the first are right."""
    lines = [
        result(tag, f"{tag} {i}", image, (4 * i + image) < round(share * 4 * num_prompts))
        for tag, share in TASKS.items()
        for i in range(num_prompts)
        for image in range(4)
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_the_score_is_the_mean_of_the_tasks(tmp_path: Path) -> None:
    found = read_results(results(tmp_path / "results.jsonl"))
    assert (found.num_prompts, found.num_images) == (120, 480)
    assert {tag: task.share.value for tag, task in found.tasks.items()} == pytest.approx(TASKS)
    assert found.scores["overall"].value == pytest.approx(sum(TASKS.values()) / 3)
    assert found.scores["images"].value == pytest.approx(264 / 480)
    assert found.scores["prompts"].value == pytest.approx((36 + 20 + 10) / 120)
    assert found.tasks["counting"].num_right == 40
    for score in found.scores.values():
        assert score.low < score.value < score.high
    assert "553 prompts with 4 images" in found.notes[0]


def test_intervals_take_the_images_of_a_prompt_together(tmp_path: Path) -> None:
    """Here they are all right or all wrong: four images of a prompt tell no more than one of them does."""
    found = read_results(results(tmp_path / "results.jsonl")).tasks["two_object"].share
    once = [result("two_object", str(i), 0, i < 20) for i in range(40)]
    (tmp_path / "once.jsonl").write_text("\n".join(map(json.dumps, once)))
    alone = read_results(tmp_path / "once.jsonl").tasks["two_object"].share
    assert found.std == pytest.approx(alone.std)
    assert found.std > 0.07


def test_the_scores_of_geneval_2_are_soft_tifa(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps([[1.0, 0.25], [0.5], [0.0, 1.0]] * 10))
    found = read_results(path)
    assert found.scores["Soft-TIFA GM"].value == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert found.scores["Soft-TIFA AM"].value == pytest.approx((0.625 + 0.5 + 0.5) / 3)


def test_the_command_tells_results(disa: Command, tmp_path: Path) -> None:
    path = results(tmp_path / "results.jsonl", 12)
    told = disa("evaluate", path, "--json", "--out", tmp_path / "told.json").json()
    assert told == json.loads((tmp_path / "told.json").read_text())
    assert set(told["tasks"]) == {*TASKS}
    said = disa("evaluate", path)
    assert said.code == 0
    assert "counting" in said.out
    assert "12 of 48" in said.out
    refused = complaint(disa("evaluate", path, "--against", "digits", "--device", "cpu"))
    assert "leave --against, --device out" in refused


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", "holds no results"),
        ("a.jsonl", "[1]", "line 1 of .* is no result of GenEval"),
        ("a.jsonl", '\n{"tag": "x"}', "line 2 of .* is no result of GenEval"),
        ("a.jsonl", '{"tag": "x", "prompt": "y"}', "does not say whether the image is correct"),
        ("a.jsonl", '{"tag": "x", "prompt": "y", "correct": 1}', "expected true or false"),
        ("a.jsonl", '{"tag": "x", "pro', "line 1 of .* is no JSON"),
        ("a.json", "{}", "holds no results"),
        ("a.json", "[[]]", "holds no results"),
        ("a.json", "[[2.0]]", "must be a number"),
        ("a.json", '[["x"]]', "must be a number"),
    ],
)
def test_other_files_are_one_line(disa: Command, tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    assert re.search(said, complaint(disa("evaluate", tmp_path / name)))
