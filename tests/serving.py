"""A server as its clients see it, in a thread of this process."""

from __future__ import annotations

import json
import socket
import threading
import time
from base64 import b64decode
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import uvicorn

import small
from disa.draw.run import Run, Turn
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.serve import server as serving
from disa.serve.app import Draws, Service, make_app
from disa.serve.asking import Limits, Reader
from disa.serve.drawer import Drawer
from disa.serve.keys import Keys
from disa.serve.orders import Event, Order

PATH = "/v1/images/generations"
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """What one request was answered with."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def pictures(self) -> list[bytes]:
        assert self.status == 200, self.body
        return [b64decode(each["b64_json"]) for each in self.json["data"]]

    @property
    def error(self) -> dict[str, Any]:
        """In the form of OpenAI's API."""
        (told,) = self.json.values()
        assert set(told) == {"message", "type", "param", "code"}
        assert 0 < len(told["message"]) < 500
        assert "\n" not in told["message"]
        return told


@dataclass(frozen=True)
class Client:
    """Asks one server."""

    port: int

    def open(self, body: Any, headers: dict[str, str] | None = None) -> HTTPConnection:
        """A request for images whose answer is not read yet."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", PATH, content, JSON | (headers or {}))
        return connection

    def ask(self, body: Any, headers: dict[str, str] | None = None) -> Answer:
        """A request for images."""
        return answer(self.open(body, headers))

    def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, headers=headers or {})
        return answer(connection)

    def events(self, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Of a stream, to its end."""
        found = self.ask(body | {"stream": True})
        assert found.headers["content-type"].startswith("text/event-stream")
        parts = [part.split("\n") for part in found.body.decode().split("\n\n") if part]
        return [(first.removeprefix("event: "), json.loads(second.removeprefix("data: "))) for first, second in parts]

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


def answer(connection: HTTPConnection) -> Answer:
    """Read it to its end."""
    found: HTTPResponse = connection.getresponse()
    body = found.read()
    connection.close()
    return Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, body)


@contextmanager
def served(service: Service, keys: Keys | None = None) -> Iterator[Client]:
    """A server of this service, as long as it is needed."""
    started = threading.Event()
    server: list[uvicorn.Server] = []
    with serving.listen("127.0.0.1", 0) as listening:
        made = serving.make_server(make_app(service, keys or Keys()), 60, started.set)
        server.append(made)
        thread = threading.Thread(target=made.run, args=([listening],))
        thread.start()
        try:
            assert started.wait(30)
            yield Client(listening.getsockname()[1])
        finally:
            made.should_exit = True
            thread.join(30)
            service.drawer.close()
    assert not thread.is_alive()


def service_of(
    sampler: Sampler | None = None, drawer: Draws | None = None, most_open: int = 64, seconds: float = 60.0
) -> Service:
    """Of the small model."""
    sampler = sampler or small.sampler()
    reader = Reader(sampler, Settings(), Limits(images=8, pixels=4096, steps=50))
    return Service(reader, drawer or Drawer(sampler), most_open, seconds)


class Gate:
    """Lets a sampler's runs make one turn for each time that it is opened; wide open, as many as they like."""

    def __init__(self, sampler: Sampler) -> None:
        self.turns, self.waiting = 0, threading.Event()
        self._free, self._wide, self._start = threading.Semaphore(0), False, sampler.start
        sampler.start = self._begin  # pyright: ignore[reportAttributeAccessIssue]

    def open(self, count: int = 1) -> None:
        self._free.release(count)

    def close(self) -> None:
        self._wide = False
        while self._free.acquire(blocking=False):
            pass

    def open_wide(self) -> None:
        self._wide = True
        self._free.release()

    def _begin(self, *arguments: Any, **options: Any) -> Run:
        run = self._start(*arguments, **options)
        run.__class__ = type("GatedRun", (Run,), {"__next__": lambda itself: self._next(itself)})
        return run

    def _next(self, run: Run) -> Turn:
        self.waiting.set()
        if not self._wide:
            self._free.acquire()
        self.turns += 1
        return Run.__next__(run)


class Never:
    """Draws nothing; tells how many orders wait for it."""

    def __init__(self) -> None:
        self.open = 0

    async def draw(self, order: Order) -> AsyncGenerator[Event, None]:
        import asyncio

        self.open += 1
        try:
            await asyncio.sleep(3600)
            yield  # pyright: ignore[reportReturnType]
        finally:
            self.open -= 1

    def close(self) -> None: ...


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
