"""Ray within this process: what it is told to do it does at once, so that starting it costs nothing.

As much of it as `disa bulk` and `disa serve --ray` use. What goes to an actor and comes back is pickled, as Ray does.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

CORES = 2.0


class RayError(Exception):
    pass


def carried(value: Any) -> Any:
    """As it comes out at the other end."""
    return pickle.loads(pickle.dumps(value))


@dataclass(eq=False)
class Ref:
    """What an actor will answer."""

    answer: Callable[[], Any]


class Actor:
    """Each method is called by its `remote`."""

    def __init__(self, instance: Any) -> None:
        self._instance = instance

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._instance, name)
        return SimpleNamespace(remote=lambda *given: Ref(partial(method, *carried(given))))


class Serve:
    """One replica of one deployment."""

    replica: Any = None

    def deployment(self, kind: type, **options: Any) -> Any:
        return SimpleNamespace(bind=lambda *given: partial(kind, *carried(given)))

    def start(self, **options: Any) -> None: ...

    def run(self, application: Callable[[], Any], **options: Any) -> Any:
        self.replica = application()
        return self

    def options(self, method_name: str, **how: Any) -> Any:
        method = getattr(self.replica, method_name)
        return SimpleNamespace(remote=lambda *given: Answers(method(*carried(given))))

    def shutdown(self) -> None:
        if self.replica is not None:
            self.replica.close()


@dataclass
class Answers:
    """What a replica yields."""

    events: Any

    def __aiter__(self) -> Any:
        return self.events

    def cancel(self) -> None: ...


class LocalRay:
    """To be put in the place of the module."""

    exceptions = SimpleNamespace(
        RayError=RayError, RayActorError=RayError, WorkerCrashedError=RayError, ObjectLostError=RayError
    )

    def __init__(self) -> None:
        self.serve, self.begun = Serve(), list[str]()
        """begun: the address of each time that it was started or joined."""

    def init(self, address: str, **options: Any) -> None:
        self.begun.append(address)

    def shutdown(self) -> None: ...

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": CORES}}]

    def remote(self, **options: Any) -> Callable[[type], Any]:
        return lambda kind: SimpleNamespace(remote=lambda *given: Actor(kind(*carried(given))))

    def wait(self, refs: list[Ref], **how: Any) -> tuple[list[Ref], list[Ref]]:
        return refs[:1], refs[1:]

    def get(self, ref: Ref) -> Any:
        return carried(ref.answer())

    def kill(self, actor: Actor) -> None: ...
