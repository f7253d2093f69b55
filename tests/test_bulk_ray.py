"""The crew of Ray's actors, with a stand-in for Ray: what is done about workers that fail or die."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

import stub_crew
from disa.bulk.crew import Died
from disa.bulk.on_ray import RayCrew
from disa.bulk.worker import Chunk, Drawn, Failed, Ready, chunk_of
from disa.errors import DisaError

READY = Ready(stub_crew.ABOUT, "of the stub", {"torch": "0"}, stub_crew.MACHINE, 1, "here")
INPUTS = stub_crew.record(100).job.inputs


class ActorDied(Exception):
    pass


@dataclass
class Actor:
    """Answers when it is asked; dies by raising."""

    number: int
    answer: Callable[[int, Chunk], Drawn | Failed]
    ready: Ready | Failed = READY

    @property
    def begin(self) -> Any:
        return types.SimpleNamespace(remote=lambda sample: Ref(lambda: self.ready))

    @property
    def draw(self) -> Any:
        return types.SimpleNamespace(remote=lambda chunk: Ref(partial(self.answer, self.number, chunk)))


@dataclass(eq=False)
class Ref:
    result: Callable[[], Any]


@dataclass
class FakeRay:
    """As much of Ray as the crew uses. answer: of the actor with this number, to a chunk."""

    answer: Callable[[int, Chunk], Drawn | Failed]
    resources: dict[str, float] = field(default_factory=lambda: {"CPU": 8.0})
    ready: Ready | Failed = READY
    """What each actor says at its begin."""
    begun: int = 0
    killed: list[int] = field(default_factory=list)
    exceptions: Any = field(default_factory=lambda: types.SimpleNamespace(RayError=ActorDied))

    def init(self, **options: Any) -> None: ...

    def shutdown(self) -> None: ...

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.resources}]

    def remote(self, **options: Any) -> Callable[[type], Any]:
        return lambda worker: types.SimpleNamespace(remote=self._begin)

    def _begin(self, *_: object) -> Actor:
        self.begun += 1
        return Actor(self.begun, self.answer, self.ready)

    def wait(self, refs: list[Ref], **_: object) -> tuple[list[Ref], list[Ref]]:
        return refs[:1], refs[1:]

    def get(self, ref: Ref) -> Any:
        return ref.result()

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor.number)


def crew(monkeypatch: pytest.MonkeyPatch, ray: FakeRay, workers: int | None, device: str | None = None) -> RayCrew:
    monkeypatch.setitem(sys.modules, "ray", ray)
    return RayCrew(stub_crew.record(100).job, INPUTS.part([0]), READY, workers, "local", device)


def results(crew: RayCrew, chunks: int) -> list[Drawn | Failed | Died]:
    """What becomes of so many chunks, each of one image."""
    given, found = 0, []
    while len(found) < chunks:
        while crew.has_free and given < chunks and crew.began:
            crew.hand_out(chunk_of([given], INPUTS))
            given += 1
        if (outcome := crew.wait()) is not None:
            found.append(outcome.result)
    return found


def failing(first: int, refused: bool = False) -> Callable[[int, Chunk], Drawn | Failed]:
    """The first actor fails every chunk from this id on, and others none."""

    def answer(number: int, chunk: Chunk) -> Drawn | Failed:
        fails = number == 1 and chunk.ids[0] >= first
        return Failed("RuntimeError: an illegal access", refused) if fails else stub_crew.drawn(chunk)

    return answer


def test_a_worker_that_fails_whatever_it_gets_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a GPU stays with its process: every chunk would end there, at once, and be given up."""
    ray = FakeRay(failing(3))
    of = crew(monkeypatch, ray, 1)
    kinds = [type(result) for result in results(of, 20)]
    assert kinds == [Drawn] * 3 + [Failed] * 2 + [Drawn] * 15
    assert (ray.killed, ray.begun, of.members[0].deaths) == ([1], 2, 1)


def test_a_worker_is_kept_where_it_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    """disa refuses what is asked; or nobody has drawn anything, and another worker would not either."""
    for ray in (FakeRay(failing(3, refused=True)), FakeRay(failing(0))):
        of = crew(monkeypatch, ray, 1)
        assert [type(result) for result in results(of, 9)].count(Failed) >= 6
        assert (ray.killed, of.members[0].deaths) == ([], 0)


def test_a_worker_that_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(number: int, chunk: Chunk) -> Drawn:
        if number == 1 and chunk.ids == [2]:
            raise ActorDied("the machine is gone\nand more lines")
        return stub_crew.drawn(chunk)

    ray = FakeRay(answer)
    found = results(crew(monkeypatch, ray, 1), 4)
    assert [result for result in found if not isinstance(result, Drawn)] == [
        Died("its worker died: the machine is gone")
    ]
    assert (ray.killed, ray.begun) == ([1], 2)


def test_workers_that_cannot_begin_end_the_run_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DisaError, match=r"worker 1 cannot load the model: no file\. Every machine needs the files"):
        crew(monkeypatch, FakeRay(failing(0), ready=Failed("no file.")), 1).wait()
    other = Ready(stub_crew.ABOUT, "of the stub", {"torch": "9"}, stub_crew.MACHINE, 1, "there")
    with pytest.raises(DisaError, match="worker 1 on there has torch 9, and this process 0"):
        crew(monkeypatch, FakeRay(failing(0), ready=other), 1).wait()


def test_a_worker_that_would_evaluate_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(READY, looks="inception:of another file")
    with pytest.raises(DisaError, match="worker 1 on here has other weights for --evaluate than this process"):
        crew(monkeypatch, FakeRay(failing(0), ready=other), 1).wait()


def test_gpus_are_given_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(failing(0), {"CPU": 8.0, "GPU": 4.0})
    assert len(crew(monkeypatch, ray, None).members) == 4
    with pytest.raises(DisaError, match="5 workers need a GPU each, and there are 4: take fewer"):
        crew(monkeypatch, ray, 5)
    with pytest.raises(DisaError, match="Ray gives each worker a GPU of its own: say --device cuda, not cuda:1"):
        crew(monkeypatch, ray, 2, "cuda:1")
    assert len(crew(monkeypatch, ray, None, "cpu").members) == 2
