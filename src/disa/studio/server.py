"""The studio as a server of this machine: the page first, then the model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disa.serve.keys import Keys, is_loopback
from disa.serve.refusals import Refused
from disa.serve.server import listen, url_of
from disa.studio.imports import import_gradio
from disa.studio.visitors import MOST_VISITORS

if TYPE_CHECKING:
    from disa.draw.sampler import Sampler
    from disa.studio.page import Page

HERE = Path(__file__).parent
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; frame-src 'self'; object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)
"""What a browser may load for the page: nothing from anywhere else."""
FRAME = (
    ".gradio-container, .gradio-container > * { width: 100% !important; } "
    ".gradio-container { max-width: 1280px !important; margin: 0 auto !important; padding: 4px 8px !important; } "
    ".gradio-container .app { padding: 12px 24px !important; } "
    "@media (max-width: 600px) { .gradio-container .app { padding: 8px !important; } }"
)
"""Styles of what is around the page; gradio has those of style.css hold within it alone."""
LARGEST_UPLOAD = "100mb"


class Guard:
    """Answers requests that are meant for this machine, and has browsers ask nobody else."""

    def __init__(self, app: Any, only_here: bool) -> None:
        self.app, self.only_here = app, only_here

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), None)
        try:
            if self.only_here:
                Keys().check(None, host)
        except Refused as refused:
            await send({"type": "http.response.start", "status": refused.status, "headers": []})
            await send({"type": "http.response.body", "body": str(refused).encode()})
            return

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [each for each in message["headers"] if each[0].lower() != b"content-security-policy"]
                message = message | {"headers": [*headers, (b"content-security-policy", POLICY.encode())]}
            await send(message)

        from starlette.requests import ClientDisconnect

        with suppress(ClientDisconnect):  # whoever left while a picture was sent hears no answer
            await self.app(scope, receive, with_policy)


@dataclass(frozen=True)
class Open:
    """A studio whose page is there, without a model yet."""

    url: str
    page: Page
    files: bool
    """Whether visitors may name files of this machine."""

    def prepare(self, load: Callable[[], Sampler]) -> Sampler:
        """Load the model; from then on there is an answer to everything. Raises DisaError."""
        from disa.studio.handlers import Handlers
        from disa.studio.machine import Machine
        from disa.studio.models import Models

        machine = Machine()
        models = Models(machine, load)
        self.page.studio.handlers.set_result(Handlers(machine, models, self.files))
        return models.first


@contextmanager
def opened(host: str, port: int) -> Iterator[Open]:
    """A studio, to the end of the context. Raises DisaError."""
    import_gradio()
    from disa.studio.page import Page

    here = is_loopback(host)
    with tempfile.TemporaryDirectory(prefix="disa-studio-") as folder, listen(host, port) as listening:
        os.environ["GRADIO_TEMP_DIR"] = folder  # what is uploaded ends with the studio
        port = listening.getsockname()[1]
        listening.close()  # gradio opens it anew
        page = Page()
        try:
            url = _launch(page, host, port, here)
            yield Open(url, page, here)
        finally:
            page.blocks.close(verbose=False)


def _launch(page: Page, host: str, port: int, here: bool) -> str:
    """Open the port; returns the address."""
    from fastapi.middleware import Middleware
    from gradio.themes import Default

    fonts = ("ui-sans-serif", "system-ui", "sans-serif"), ("ui-monospace", "monospace")
    theme = Default(primary_hue="indigo", neutral_hue="slate", font=fonts[0], font_mono=fonts[1])
    page.blocks.queue(max_size=64, api_open=False)
    page.blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=LARGEST_UPLOAD,
        state_session_capacity=MOST_VISITORS,
        app_kwargs={"middleware": [Middleware(Guard, only_here=here)], "docs_url": None, "redoc_url": None},
        theme=theme,
        css=_own("style.css"),
        head=f"<style>{FRAME}</style><script>{_own('script.js')}</script>",
    )
    return url_of(host, port)


def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
