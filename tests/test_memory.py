"""What does not fit in memory is refused at once, with what does."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import small
from disa.core.problem import DenoisingProblem
from disa.draw.inputs import Inputs
from disa.draw.room import needed, told
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.runtime import memory
from disa.runtime.surroundings import undisturbed

CPU, MIB = torch.device("cpu"), 1 << 20
pytestmark = pytest.mark.usefixtures("one_thread")


def free(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    monkeypatch.setattr(memory, "free", lambda device: count)


# -- how much there is -------------------------------------------------------------------------------------------------


def machine(root: Path, **files: str) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for name in ("max", "current"):
        for found in list(root.rglob(f"memory_{name}")):
            found.rename(found.with_name(f"memory.{name}"))
    return root


MEMINFO = "MemTotal:  8000 kB\nMemFree:  10 kB\nMemAvailable:  4000 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc__meminfo": MEMINFO}, 4000 * 1024),
        ({"proc__meminfo": "nothing to see"}, None),
        ({"proc__meminfo": MEMINFO, "sys__fs__cgroup__memory_max": "max"}, 4000 * 1024),
        (
            {
                "proc__meminfo": MEMINFO,
                "sys__fs__cgroup__memory_max": "3000",
                "sys__fs__cgroup__memory_current": "2500",
                "sys__fs__cgroup__memory.stat": "inactive_file 100\nanon 5\n",
            },
            600,
        ),
        (
            {
                "sys__fs__cgroup__memory__memory.limit_in_bytes": "900",
                "sys__fs__cgroup__memory__memory.usage_in_bytes": "950",
                "sys__fs__cgroup__memory__memory.stat": "cache 3\n",
            },
            0,
        ),
        ({"sys__fs__cgroup__memory__memory.limit_in_bytes": "9223372036854771712"}, None),
        (
            {
                "proc__meminfo": MEMINFO,
                "proc__self__cgroup": "0::/job.slice/step/task\n",
                "sys__fs__cgroup__job.slice__step__memory_max": "3000",
                "sys__fs__cgroup__job.slice__step__memory_current": "2500",
                "sys__fs__cgroup__job.slice__step__memory.stat": "inactive_file 100\n",
                "sys__fs__cgroup__job.slice__step__task__memory_max": "max",
                "sys__fs__cgroup__other__memory_max": "1",
                "sys__fs__cgroup__other__memory_current": "0",
                "sys__fs__cgroup__other__memory.stat": "inactive_file 0\n",
            },
            600,
        ),
        (
            {
                "proc__self__cgroup": "5:cpu,cpuacct:/\n4:memory:/slurm/job\n",
                "sys__fs__cgroup__memory__memory.limit_in_bytes": "9223372036854771712",
                "sys__fs__cgroup__memory__slurm__job__memory.limit_in_bytes": "900",
                "sys__fs__cgroup__memory__slurm__job__memory.usage_in_bytes": "300",
                "sys__fs__cgroup__memory__slurm__job__memory.stat": "total_inactive_file 50\n",
            },
            650,
        ),
    ],
)
def test_the_least_of_what_machine_and_container_have(
    files: dict[str, str], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "ROOT", machine(tmp_path, **files))
    assert memory.free(CPU) == expected


def test_this_machine_has_some() -> None:
    assert memory.free(CPU) is None or memory.free(CPU) > MIB  # pyright: ignore[reportOptionalOperand]


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0 MiB"), (3 * MIB // 2, "1.5 MiB"), (1 << 30, "1 GiB"), (5 << 41, "10 TiB"), (1 << 80, "1.07e+09 PiB")],
)
def test_bytes_are_told_for_people(size: int, expected: str) -> None:
    assert told(size) == expected


# -- batches and sizes -------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, inputs = small.sampler(), Inputs.paired(range(1000), 3)
    free(monkeypatch, 8 * MIB)
    with pytest.raises(DisaError, match=r"^a batch of 1000 images takes about .*, and 8 MiB") as caught:
        sampler.start(inputs, batch_size=10**8)
    found = re.search(r"a batch size of (\d+) or less\.$", str(caught.value))
    assert found
    assert sampler.start(inputs, batch_size=int(found[1])).batches_of


def test_the_batch_that_is_drawn_counts_not_the_one_that_is_allowed() -> None:
    assert small.sampler().sample(3, 0, batch_size=10**8).images.shape[0] == 1


def test_more_images_than_can_be_kept_are_refused_with_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, inputs = small.sampler(), Inputs.paired(range(4000), 3)
    free(monkeypatch, MIB)
    with pytest.raises(DisaError, match=r"^4000 images take about .* together, and 1 MiB .*sample_into"):
        sampler.start(inputs, batch_size=1).result()
    assert next(sampler.start(inputs, batch_size=1).batches()).images.shape[0] == 1


def test_an_image_that_does_not_fit_is_refused_with_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = small.sampler()
    free(monkeypatch, MIB)
    with pytest.raises(DisaError, match=r"^an image of 512x256 takes about .* are free: (.*) would fit") as caught:
        sampler.sample(3, 0, height=512, width=256)
    found = re.search(r": (\d+)x(\d+) would fit", str(caught.value))
    assert found
    sampler.start(Inputs.paired(0, 3), size=(int(found[1]), int(found[2])))


def test_where_nobody_says_how_much_there_is_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, None)
    assert small.sampler().start(Inputs.paired(range(10**5), 3), batch_size=10**5)


SIZES = ["1000000x1000000", "1000000x8", "8x1000000", (10**12, 10**12), "8192x8192"]


@pytest.mark.parametrize("name", ["mar-digits", "harmon-shapes"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_size_that_runs_away_is_refused_with_the_largest(name: str, size: Any) -> None:
    sampler = Sampler.load(name, device="cpu")
    with pytest.raises(DisaError, match=r"this \w+ draws at most \d+: the largest of this shape is") as caught:
        sampler.settings(size=size)
    found = re.search(r"is (\d+)x(\d+)\.$", str(caught.value))
    assert found
    height, width = int(found[1]), int(found[2])
    assert height % sampler.stride == width % sampler.stride == 0
    assert sampler.settings(size=(height, width)).size == (height, width)


@pytest.mark.parametrize("name", ["mar-digits", "xar-digits", "flowar-digits"])
def test_ar_steps_that_run_away_are_refused(name: str) -> None:
    with pytest.raises(DisaError, match=r"the number of AR steps must be .* found 1000000000"):
        Sampler.load(name, device="cpu").settings(num_ar_steps=10**9)


@pytest.mark.parametrize("name", ["mar-digits", "xar-digits", "flowar-digits"])
def test_what_is_needed_grows_with_guidance_and_halves_in_bf16(name: str) -> None:
    sampler = Sampler.load(name, device="cpu")
    sizes = {
        scale: needed(sampler, sampler.settings(solver="ddim" if name[0] == "m" else "euler", guidance=scale), (32, 32))
        for scale in (1.0, 2.0)
    }
    assert sizes[1.0][0] == sizes[2.0][0]
    assert sizes[1.0][1] < sizes[2.0][1] < 2 * sizes[1.0][1]


# -- where it runs out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. CPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        MemoryError(),
        MemoryError("Unable to allocate 7.45 GiB for an array"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: not enough memory: you tried"),
    ],
    ids=lambda error: str(error)[:20],
)
@pytest.mark.filterwarnings("ignore:.*known to this program alone")
def test_what_an_allocator_says_is_one_line(error: Exception) -> None:
    def fails(problem: DenoisingProblem) -> int:
        raise error

    with pytest.raises(DisaError, match=r"^there is not enough memory .*: draw fewer images at a time") as caught:
        small.sampler().sample(3, 0, steps=fails)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 320


def test_a_real_allocation_that_fails_is_one_line() -> None:
    with pytest.raises(DisaError, match="there is not enough memory"), undisturbed():
        torch.zeros(1 << 55, dtype=torch.uint8)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"), undisturbed():
        raise RuntimeError("wrong shape")
