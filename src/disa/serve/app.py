"""The endpoints, as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from disa.serve import replies
from disa.serve.asking import Asked, Reader
from disa.serve.keys import Keys
from disa.serve.metrics import Metrics
from disa.serve.orders import Drawn, Event, Failed, Order, Preview
from disa.serve.refusals import Refused
from disa.values import shown

MOST_BODY = 1 << 20
BODY_SECONDS = 20.0
SENDING = 30.0
"""Seconds that a client may take to read a stream, beyond the time that its images may take."""
LONGEST_WAIT = 60
"""Seconds that a client is told to wait, at most."""
LEFT = 499
"""The status of a request whose client left, for the metrics: nobody gets it."""
GENERATIONS = "/v1/images/generations"
BROKEN = Refused("the server failed: its log says why.", 500)
LOG = logging.getLogger("disa.serve")

T = TypeVar("T")


class Draws(Protocol):
    """What draws orders: `Drawer` in this process, `RayDrawer` in others."""

    def draw(self, order: Order) -> AsyncGenerator[Event, None]: ...

    def close(self) -> None: ...


class Service:
    """Accepts requests for images as long as there is room for them, and has them drawn."""

    def __init__(self, reader: Reader, drawer: Draws, most_open: int, seconds: float) -> None:
        """most_open: requests that wait or are drawn, at most. seconds: from a request to its answer, at most."""
        self.reader, self.drawer, self.most_open, self.seconds = reader, drawer, most_open, seconds
        self.model, self.num_open, self._last = reader.sampler.preset.name, 0, 1.0
        self.num_lost = 0
        """Requests that were accepted, and cut off by the end of the server."""
        self.metrics = Metrics(self.model, lambda: self.num_open)

    def enter(self) -> None:
        """Take one of the places of open requests, which `leave` gives back. Raises Refused where all are taken."""
        if self.num_open >= self.most_open:
            # While the last answer was waited for, about as many were answered as are open.
            after = min(LONGEST_WAIT, max(1, math.ceil(self._last / self.most_open)))
            raise Refused(f"{self.num_open} requests are waiting already: try again later.", 429, retry_after=after)
        self.num_open += 1

    def leave(self) -> None:
        self.num_open -= 1

    async def events(self, order: Order) -> AsyncGenerator[Preview | Drawn, None]:
        """Of an order, until it is drawn. Raises Refused where it is not, or not in time."""
        started = time.monotonic()
        async with aclosing(self.drawer.draw(order)) as events:
            while True:
                try:
                    async with asyncio.timeout(started + self.seconds - time.monotonic()):
                        event = await anext(events)
                except TimeoutError as error:
                    raise Refused(f"it was not drawn within {self.seconds:g} seconds.", 504) from error
                if isinstance(event, Failed):
                    raise Refused(event.reason, event.status)
                if isinstance(event, Drawn):
                    self._last = time.monotonic() - started
                    self.metrics.drew(event, self._last)
                yield event
                if isinstance(event, Drawn):
                    return

    async def drawn(self, order: Order) -> Drawn:
        """The same to its end."""
        async with aclosing(self.events(order)) as events:
            async for event in events:
                if isinstance(event, Drawn):
                    return event
        raise Refused("it was not drawn.", 500)

    async def streamed(self, asked: Asked) -> AsyncGenerator[bytes, None]:
        """The same as events of a stream. Its errors are events, too: the status has been sent already."""
        status = LEFT
        try:
            async with aclosing(self.events(asked.order)) as events:
                async for event in events:
                    for told in replies.events(asked, event, self.model):
                        yield told
            status = 200
        except Refused as refused:
            status = refused.status
            yield replies.failed(refused)
        except Exception:
            LOG.exception("a stream failed")
            status = BROKEN.status
            yield replies.failed(BROKEN)
        finally:
            self.count(status)

    def count(self, status: int) -> None:
        """One more request for images is answered."""
        self.metrics.answers.labels(status).inc()
        if status == LEFT:
            self.metrics.left.inc()


def make_app(service: Service, keys: Keys) -> FastAPI:
    """The application of a service."""
    app = FastAPI(title="disa", docs_url=None, redoc_url=None, openapi_url=None)
    _tell_errors(app, service)

    @app.get("/healthz")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": service.model, "open_requests": service.num_open}

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        _check(keys, request)
        return Response(service.metrics.page(), media_type=service.metrics.media_type)

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        _check(keys, request)
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> dict[str, Any]:
        _check(keys, request)
        if name != service.model:
            raise Refused(f"there is no model of that name here: expected {service.model}.", 404)
        return _model(service)

    @app.post(GENERATIONS)
    async def generate(request: Request) -> Response:
        _check(keys, request)
        return await _generate(service, request)

    return app


def _tell_errors(app: FastAPI, service: Service) -> None:
    """Every error in the form of OpenAI's API."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        if request.url.path == GENERATIONS:
            service.count(error.status)
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(404)
    async def unknown(request: Request, error: Exception) -> Response:
        told = "there is no such page: expected POST /v1/images/generations, GET /v1/models, /healthz or /metrics."
        return JSONResponse(Refused(told, 404).body, 404)

    @app.exception_handler(405)
    async def other_method(request: Request, error: Exception) -> Response:
        told = f"{request.method} is not for this page: images are asked for with POST, all else with GET."
        return JSONResponse(Refused(told, 405).body, 405, getattr(error, "headers", None))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return await refused(request, BROKEN)


def _check(keys: Keys, request: Request) -> None:
    keys.check(request.headers.get("authorization"), request.headers.get("host"))


def _model(service: Service) -> dict[str, Any]:
    preset = service.reader.sampler.preset
    return {
        "id": service.model,
        "object": "model",
        "created": 0,
        "owned_by": "disa",
        "takes": "prompts" if preset.prompts else "labels",
        "about": preset.about,
    }


# -- one request for images ----------------------------------------------------------------------------------------


async def _generate(service: Service, request: Request) -> Response:
    body, is_stream = await _body(request), False
    service.enter()
    try:
        # Tokenizing, and hashes of weights the first time, are work: other requests are answered meanwhile.
        asked = await asyncio.to_thread(service.reader.read, body)
        is_stream = asked.stream
        if is_stream:
            return _Stream(service, asked)
        drawn = await _unless_left(request, service.drawn(asked.order))
    except asyncio.CancelledError:
        service.num_lost += 1
        raise
    finally:
        if not is_stream:
            service.leave()
    if drawn is None:
        raise Refused("the client left.", LEFT)
    service.count(200)
    return JSONResponse(replies.images(asked, drawn, service.model))


class _Stream(StreamingResponse):
    """Events of a request, which gives its place back however it ends."""

    def __init__(self, service: Service, asked: Asked) -> None:
        self._service, self._events = service, service.streamed(asked)
        super().__init__(self._events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def __call__(self, *connection: Any) -> None:
        try:
            async with asyncio.timeout(self._service.seconds + SENDING):
                await super().__call__(*connection)
        except TimeoutError:  # nobody reads it: the server closes a connection whose answer is not whole
            pass
        except asyncio.CancelledError:
            self._service.num_lost += 1
            raise
        finally:
            self._service.leave()
            await self._events.aclose()


async def _body(request: Request) -> bytes:
    """Raises Refused where it is too long or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(f"the body must be of the type application/json, found {shown(kind)}.", 415)
    parts, size = list[bytes](), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Refused("the client left.", LEFT)
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > MOST_BODY:
                    raise Refused(f"the body is longer than {MOST_BODY} bytes.", 413)
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError as error:
        raise Refused(f"the body did not come within {BODY_SECONDS:g} seconds.", 408) from error


async def _unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work gives; None, and the work is given up, where the client leaves before."""
    left, task = asyncio.create_task(_leaving(request)), asyncio.create_task(work)
    try:
        await asyncio.wait((left, task), return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for each in (left, task):
            each.cancel()
        await asyncio.gather(left, task, return_exceptions=True)


async def _leaving(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
