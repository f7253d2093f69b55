"""What a notebook shows: a comparison with its table and its plot, and how far a drawing is."""

from __future__ import annotations

import contextlib
import re
import sys
from base64 import b64decode
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import small
from disa.draw.inputs import Inputs
from disa.progress import progress
from disa.study.compare import Comparison, compare


class Screen:
    """In place of IPython: what stands below the cell, one after the other."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> Screen:
        assert raw
        assert display_id
        self.update(content, raw=raw)
        return self

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(content)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """This process is the kernel of a notebook."""
    screen, module, display = Screen(), ModuleType("IPython"), ModuleType("IPython.display")
    module.get_ipython = lambda: SimpleNamespace(kernel=object())  # pyright: ignore[reportAttributeAccessIssue]
    display.display = screen.display  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("disa.progress.SECONDS_BETWEEN_BARS", 0.0)
    return screen


def test_a_drawing_has_a_bar_that_is_gone_at_the_end(screen: Screen, capsys: pytest.CaptureFixture[str]) -> None:
    small.sampler().sample([3, 5], 0, progress_bar=True)
    assert capsys.readouterr() == ("", "")
    bars = [re.findall(r'<progress value="(\d)" max="(\d)">', each["text/html"]) for each in screen.shown]
    assert bars == [[], *([(str(i), "4")] for i in (1, 2, 3, 4)), []]
    assert screen.shown[2]["text/plain"].startswith("drawing: 2 of 4")
    assert screen.shown[-1]["text/html"] == ""


def test_a_bar_is_gone_after_an_error_and_says_words_as_they_are(screen: Screen) -> None:
    with contextlib.suppress(KeyboardInterrupt), progress("a <b>", 2) as advance:
        advance(note="<i>")
        raise KeyboardInterrupt
    assert "a &lt;b&gt;" in screen.shown[1]["text/html"]
    assert "&lt;i&gt;" in screen.shown[1]["text/html"]
    assert screen.shown[-1]["text/html"] == ""


def test_an_ipython_that_is_no_notebook_has_lines(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: SimpleNamespace())
    with progress("drawing", 2) as advance:
        advance()
    assert screen.shown == []


def comparison(**options: Any) -> Comparison:
    sampler = small.sampler()
    inputs = Inputs.in_turn(range(4), labels=range(10))
    return compare(sampler, ["constant:6", "linear:4-2"], inputs, sampler.settings(num_ar_steps=3), **options)


def test_a_comparison_shows_its_table_and_its_plot() -> None:
    found = comparison()
    html = found._repr_html_()
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)[1:]]
    assert [row[0] for row in cells] == ["constant:6", "linear:4-2"]
    assert [float(row[3]) for row in cells] == [round(each.evaluations_per_row, 1) for each in found.policies]
    assert repr(found).startswith("Comparison(4 images, constant:6: 1.00x, linear:4-2: ")
    assert "small: 4 images, 3 AR steps, guidance 2" in html
    (plot,) = re.findall(r'src="data:image/png;base64,(.*?)"', html)
    assert b64decode(plot).startswith(b"\x89PNG")
