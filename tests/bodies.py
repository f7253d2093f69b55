"""Bodies of requests for images, made by hypothesis, and what the server answers to them.

    python tests/fuzz.py serve --bodies 10000

posts new ones to the application of a small model, in this process and without a socket, and ends with the number of
answers of each status. In the test suite a few run, always the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from disa.serve.app import make_app
from disa.serve.asking import FIELDS, FIXED
from disa.serve.keys import Keys
from fuzz import COMMON, JSON, NUMBERS, TEXTS, WHOLE, bytes_near, json_near, texts_near
from serving import PATH, service_of

EXPECTED = (200, 400, 404)
"""Drawn; refused; another model than the one that is served."""
GOOD: list[dict[str, Any]] = [
    {"prompt": "3", "steps": "constant:1", "seed": 5},
    {"prompt": "3, 4", "n": 2, "size": "8x8", "response_format": "url", "user": "somebody", "steps": "linear:2-1"},
    {"labels": [3, 4], "seed": [1, 2], "steps": 1, "settings": {"interval": "0-0.9", "order": "halton"}},
    {"prompt": "none", "stream": True, "partial_images": 2, "steps": "constant:1", "model": "small"},
    {"labels": 3, "settings": {"steps": "two-stage:2-1", "solver": "ddim@uniform:eta=0.5", "num_ar_steps": 3}},
    {"prompt": "3", "quality": "auto", "background": "opaque", "output_format": "png", "steps": "cosine:3-1/drawn"},
]  # fmt: skip
WORDS = st.sampled_from(["3", "auto", "8x8", "constant:1", "linear:2-1", "plan@2", "mlp", "ddim", "url", *FIXED])
VALUES = st.recursive(
    JSON | WORDS | WHOLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=6,
)
FROM_FIELDS = st.dictionaries(st.sampled_from(FIELDS) | TEXTS, VALUES, max_size=5)
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "guidance": st.floats(-2, 9) | NUMBERS,
    "num_ar_steps": st.integers(0, 17),
    "interval": texts_near("0-0.9", "0.2-1"),
    "solver": texts_near("ddim:eta=0.5", "ddpm@uniform", "dpm-solver++-2@logsnr"),
    "temperature": st.floats(0, 2),
    "order": st.sampled_from(["halton", "raster", "checkerboard:2"]),
}
LIKELY = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["3", "none", "1, 7"])},
    optional={
        "n": st.integers(1, 3),
        "seed": st.integers(0, 2**64) | st.lists(st.integers(0, 9), min_size=1, max_size=2),
        "steps": texts_near("constant:1", "linear:3-1", "cosine:2-1/drawn"),
        "stream": st.booleans(),
        "partial_images": st.integers(0, 5),
        "response_format": st.sampled_from(["b64_json", "url"]),
        "size": st.sampled_from(["auto", "8x8"]),
        "settings": st.fixed_dictionaries({}, optional=SETTINGS),
    },
)
BODIES: st.SearchStrategy[bytes] = st.one_of(
    st.sampled_from(GOOD).flatmap(lambda good: json_near(good, 2)).map(lambda value: as_bytes(value)),
    LIKELY.map(lambda value: as_bytes(value)),
    FROM_FIELDS.map(lambda value: as_bytes(value)),
    st.builds(lambda good, more: as_bytes(good | more), st.sampled_from(GOOD), FROM_FIELDS),
    bytes_near(*(json.dumps(good).encode() for good in GOOD)),
)


def as_bytes(content: Any) -> bytes:
    """As JSON, also what is none: numbers that are not finite, halves of characters."""
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")


class Application:
    """An application in an event loop of its own thread, asked without a socket."""

    def __init__(self, app: FastAPI) -> None:
        self._app, self._loop = app, asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def post(self, body: bytes) -> tuple[int, bytes]:
        """The status and the content that a request for images is answered with; what is raised is raised here."""
        return asyncio.run_coroutine_threadsafe(self._post(body), self._loop).result(60)

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        parts: list[MutableMapping[str, Any]] = []
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> MutableMapping[str, Any]:
            if not given:
                await asyncio.Event().wait()  # the client stays
            return given.pop()

        async def send(message: MutableMapping[str, Any]) -> None:
            parts.append(message)

        await self._app(scope(), receive, send)
        return parts[0]["status"], b"".join(part.get("body", b"") for part in parts[1:])

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def scope() -> dict[str, Any]:
    """Of a request as a server hands it over."""
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    where = {"path": PATH, "raw_path": PATH.encode(), "root_path": "", "query_string": b"", "scheme": "http"}
    return {
        "type": "http",
        "method": "POST",
        "http_version": "1.1",
        "asgi": {"version": "3.0"},
        "headers": headers,
    } | where


@contextmanager
def application() -> Iterator[Application]:
    """Of the small model."""
    service = service_of()
    found = Application(make_app(service, Keys()))
    try:
        yield found
    finally:
        found.close()
        service.drawer.close()


def check(app: Application, body: bytes) -> int:
    """Post a body: it is drawn, or refused in words. Returns the status."""
    status, content = app.post(body)
    assert status in EXPECTED, (status, content[:500])
    if status != 200:
        message = json.loads(content)["error"]["message"]
        assert 0 < len(message) < 600
        assert "\n" not in message
    elif content.startswith(b"event: "):
        assert b'"type": "server_error"' not in content, content[:500]
    return status


def main(arguments: list[str]) -> int:
    """Post so many bodies; 0 where all were answered as they should be."""
    parser = argparse.ArgumentParser(prog="fuzz.py serve", description=main.__doc__)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args(arguments)
    answers = Counter[int]()
    with application() as app:

        @seed(asked.seed)
        @settings(max_examples=asked.bodies, database=None, **COMMON)
        @given(BODIES)
        def post(body: bytes) -> None:
            answers[check(app, body)] += 1

        post()
    print(f"seed {asked.seed}: {sum(answers.values())} bodies; answers by status: {dict(sorted(answers.items()))}")
    return 0
