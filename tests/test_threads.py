"""How many threads compute, and how they wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from disa.errors import DisaError
from disa.runtime import threads


def grant(root: Path, groups: str, **files: str) -> Path:
    """A root of a file system whose control groups say so."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"sys/fs/cgroup/a/cpu.max": "300000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 3),
        ("4:memory:/x\n1:cpu,cpuacct:/x\n", {
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
        }, 4),
        ("1:cpu:/\n", {
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        }, 8),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "many"}, 8),
        ("", {}, 8),
    ],
)  # fmt: skip
def test_no_more_cores_than_are_granted(tmp_path: Path, groups: str, files: dict[str, str], cores: int) -> None:
    assert threads.granted_cores(grant(tmp_path, groups, **files)) == cores


def environment_after_set_up(**given: str) -> list[str]:
    """How the command line has OpenMP wait, whatever the environment of the tests says."""
    env = {name: value for name, value in os.environ.items() if name not in (*threads.WAITING, "OMP_NUM_THREADS")}
    code = "import os; from disa.runtime import threads; threads.set_up(); print(os.environ.get('OMP_WAIT_POLICY'))"
    done = subprocess.run([sys.executable, "-c", code], env=env | given, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_threads_sleep_while_they_wait_unless_the_user_says_how() -> None:
    assert environment_after_set_up() == ["passive"]
    assert environment_after_set_up(OMP_WAIT_POLICY="active") == ["active"]
    assert environment_after_set_up(GOMP_SPINCOUNT="100") == ["None"]


def test_the_environment_stays_where_pytorch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads.WAITING:
        monkeypatch.delenv(name, raising=False)
    threads.set_up()
    assert not any(name in os.environ for name in threads.WAITING)


def test_the_number_is_taken_or_refused() -> None:
    before = torch.get_num_threads()
    try:
        threads.use(None)
        assert torch.get_num_threads() == before
        threads.use(1)
        assert torch.get_num_threads() == 1
        for wrong in (0, -1, 10**9, 1.5):
            with pytest.raises(DisaError, match="the number of threads must be a whole number from 1 to"):
                threads.use(wrong)  # pyright: ignore[reportArgumentType]
    finally:
        torch.set_num_threads(before)
