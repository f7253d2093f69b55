"""The drawer on Ray Serve, with a stand-in for Ray: what is done about replicas that die. See also serve_ray.py."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from command import Command, complaint
from disa.bulk.job import Job
from disa.draw.inputs import Inputs
from disa.errors import DisaError
from disa.serve import on_ray
from disa.serve.orders import Drawn, Event, Failed, Order, Preview

pytest.importorskip("ray")

ORDER = Order(Inputs.paired(0, 3), {}, "")
PREVIEW, DRAWN = Preview({0: b"p"}, 0), Drawn([b"d"], 1, 0.1, 1)
END: Any = object()
"""Where the events of a replica end too early."""
JOB = Job({"model": "small"}, {}, {})


class ActorDied(Exception):
    pass


class Answers:
    """Of one replica: events, and then its death where they do not end the order."""

    def __init__(self, events: list[Event]) -> None:
        self.events, self.cancelled = iter(events), False

    def __aiter__(self) -> Answers:
        return self

    async def __anext__(self) -> Event:
        found = next(self.events, None)
        if found is None:
            raise ActorDied("killed")
        if found is END:
            raise StopAsyncIteration
        return found

    def cancel(self) -> None:
        self.cancelled = True


class FakeServe:
    """As much of Ray Serve as the drawer uses. replicas: what each of them answers, in the order of trials."""

    def __init__(self, replicas: list[list[Event]]) -> None:
        self.answers = [Answers(events) for events in replicas]
        self.trials, self.asked, self.ended = iter(self.answers), {}, 0

    def deployment(self, kind: type, **options: Any) -> Any:
        self.asked = options
        return SimpleNamespace(bind=lambda *given: given)

    def start(self, **options: Any) -> None: ...

    def run(self, application: Any, **options: Any) -> Any:
        return SimpleNamespace(options=lambda **how: SimpleNamespace(remote=lambda order: next(self.trials)))

    def shutdown(self) -> None:
        self.ended += 1


Begin = Callable[..., tuple[on_ray.RayDrawer, FakeServe]]


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Begin:
    def make(*replicas: list[Event], resources: dict[str, float] | None = None, workers: int | None = None) -> Any:
        serve = FakeServe(list(replicas))
        lost = SimpleNamespace(RayActorError=ActorDied, WorkerCrashedError=ActorDied, ObjectLostError=ActorDied)
        nodes = [{"Alive": True, "Resources": resources or {"CPU": 8.0}}]
        ray = SimpleNamespace(exceptions=lost, nodes=lambda: nodes, shutdown=lambda: None)
        monkeypatch.setattr(on_ray, "connect", lambda address: ray)
        monkeypatch.setitem(sys.modules, "ray.serve", serve)  # pyright: ignore[reportArgumentType]
        monkeypatch.setattr("ray.serve", serve, raising=False)
        return on_ray.RayDrawer(JOB, None, 16, workers, "local", 60.0), serve

    return make


def events_of(drawer: on_ray.RayDrawer) -> list[Event]:
    async def read() -> list[Event]:
        return [event async for event in drawer.draw(ORDER)]

    return asyncio.run(read())


def test_another_replica_draws_what_one_died_of(begin: Begin) -> None:
    drawer, serve = begin([PREVIEW], [], [PREVIEW, DRAWN], [Failed("not reached")])
    assert events_of(drawer) == [PREVIEW, PREVIEW, DRAWN]
    assert not any(each.cancelled for each in serve.answers)


def test_what_kills_every_replica_is_given_up(begin: Begin) -> None:
    drawer, serve = begin(*[[]] * 9)
    assert events_of(drawer) == [Failed("5 processes died of it: killed.")]
    assert len(list(serve.trials)) == 4


def test_replicas_that_say_no_more_of_an_order_are_replaced_and_then_it_is_given_up(begin: Begin) -> None:
    drawer, serve = begin([PREVIEW, END], [END], [], [PREVIEW, DRAWN])
    assert events_of(drawer) == [PREVIEW, PREVIEW, DRAWN]
    assert not any(each.cancelled for each in serve.answers)
    drawer, serve = begin([PREVIEW, END], *[[END]] * 8)
    assert events_of(drawer) == [PREVIEW, Failed("5 processes said no more of it before it was drawn.")]
    assert len(list(serve.trials)) == 4


def test_an_order_that_nobody_waits_for_is_cancelled(begin: Begin) -> None:
    drawer, serve = begin([PREVIEW, PREVIEW, DRAWN])

    async def leave() -> None:
        events: AsyncGenerator[Event, None] = drawer.draw(ORDER)
        async with aclosing(events):
            await anext(events)

    asyncio.run(leave())
    assert serve.answers[0].cancelled


def test_what_each_replica_gets(begin: Begin) -> None:
    for resources, workers, options, most in (
        ({"CPU": 8.0}, None, {"num_cpus": 4, "num_gpus": 0}, 2),
        ({"CPU": 8.0}, 8, {"num_cpus": 1, "num_gpus": 0}, 8),
        ({"CPU": 8.0, "GPU": 4.0}, None, {"num_cpus": 0, "num_gpus": 1}, 4),
    ):
        drawer, serve = begin(resources=resources, workers=workers)
        assert serve.asked["ray_actor_options"] == options
        assert serve.asked["autoscaling_config"]["max_replicas"] == most
        assert serve.asked["autoscaling_config"]["target_ongoing_requests"] == 16
        drawer.close()
        assert serve.ended == 1


def test_a_model_that_cannot_be_started_is_one_line(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Deploying failed\nwith many lines")

    monkeypatch.setattr(FakeServe, "run", fail)
    with pytest.raises(DisaError, match=r"^Ray Serve cannot start the model: Deploying failed\.$"):
        begin()


def test_without_ray_serve_one_line_says_how_to_get_it(disa: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    monkeypatch.delattr("ray.serve", raising=False)
    told = complaint(disa("serve", "--port", 0, "--ray"))
    assert told == 'disa: --ray needs Ray Serve, which misses ray.serve: pip install "ray[serve]".\n'
