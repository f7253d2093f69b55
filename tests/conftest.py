"""What several test modules share."""

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from command import Command, Done
from disa import cli

GOLDEN = Path(os.environ.get("DISA_GOLDEN") or Path(__file__).resolve().parents[2] / "shared" / "golden")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of inputs and outputs of the official code: beside the checkout, or where DISA_GOLDEN says."""
    if not (GOLDEN / "schedules.json").is_file():
        pytest.skip(f"no golden files: expected schedules.json and <case>.safetensors in {GOLDEN}")
    return GOLDEN


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where hashes are recorded during a test: not in the home of whoever runs it."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DISA_CACHE", str(folder))
    return folder


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """To set the number of threads during a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads: Callable[[int], None]) -> None:
    """For tests that compare bits, or that are too small for more."""
    threads(1)


@pytest.fixture(scope="module")
def short_paths() -> Iterator[None]:
    """Plans are measured along paths of 8 times instead of 40, for tests that do not depend on how fine they are."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("times", "planning"):
            patch.setattr(f"disa.study.{module}.NUM_TIMES", 8)
        yield


@pytest.fixture
def disa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process, as the shell would."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    # A busy machine makes any command slow, which is then told.
    monkeypatch.setattr("disa.progress.SECONDS_BETWEEN_LINES", math.inf)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["disa", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return Done(int(stop.value.code or 0), printed.out, printed.err)

    return run
