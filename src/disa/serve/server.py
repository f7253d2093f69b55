"""The server around the application: its socket, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from disa.errors import DisaError

HEAD_SECONDS = 20.0
"""From a connection to the end of its first request's headers."""
GRACE = 5.0
"""Seconds that answers may take to be sent once all is drawn."""


class _Protocol(H11Protocol):
    """HTTP that does not wait for ever for a first request: a connection that says nothing is closed."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._patience = asyncio.get_running_loop().call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """After Ctrl-C or SIGTERM it accepts nothing more and answers what it has accepted; after a second one it ends at
    once."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            # What is cut off would be logged with a traceback each.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()


def url_of(host: str, port: int) -> str:
    """As a URL has it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """Raises DisaError where that is not possible."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DisaError(f"cannot listen on {host}, port {port}: {reason}. Give another --host or --port.") from error


def make_server(app: FastAPI, seconds: float, on_start: Callable[[], None]) -> uvicorn.Server:
    """seconds: of a request, at most. on_start: called once requests are taken."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(seconds + GRACE),
    )
    return _Server(config, on_start)
