"""`disa serve`: images over HTTP."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from disa.cli.bulk import places
from disa.cli.options import AsJSON, Source, path_option
from disa.cli.output import line, print_json
from disa.cli.terminal import say
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.values import counted, number

if TYPE_CHECKING:
    from socket import socket

    from disa.draw.sampler import Sampler
    from disa.serve.app import Draws
    from disa.serve.keys import Keys

UNFINISHED = 1
"""The exit code where a request that was accepted was not answered."""


@dataclass(frozen=True)
class Door:
    """Where requests come in, and from whom."""

    host: Annotated[
        str, typer.Option(help="The address to listen on; one that other machines reach needs --api-key-file.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000
    api_key_file: Annotated[
        Path | None, path_option("--api-key-file", "A file of keys, one a line: requests must send one of them.")
    ] = None

    def keys(self) -> Keys:
        """Raises DisaError."""
        from disa.serve.keys import Keys, is_loopback

        if self.api_key_file is not None:
            return Keys.read(self.api_key_file)
        if not is_loopback(self.host):
            raise DisaError(f"other machines can reach {self.host}: give --api-key-file, or leave --host out.")
        return Keys()


@dataclass(frozen=True)
class Bounds:
    """What is accepted."""

    queue: Annotated[
        int, typer.Option(min=1, help="Requests that wait or are drawn, at most; others are told to try later.")
    ] = 64
    timeout: Annotated[float, typer.Option(help="Seconds from a request to its answer, at most.")] = 300.0
    max_images: Annotated[int, typer.Option(min=1, help="Images of a request, at most.")] = 16
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of an image, at most.")] = 1 << 20
    max_steps: Annotated[int, typer.Option(min=1, help="Denoising steps of an AR step, at most.")] = 200

    @property
    def seconds(self) -> float:
        return number(self.timeout, "--timeout", 0.001, 86_400)


@dataclass(frozen=True)
class Workers:
    """Who draws."""

    ray: Annotated[
        bool, typer.Option("--ray", help="Draw in several processes with Ray Serve, as many as the queue needs.")
    ] = False
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --ray: processes at most; one per GPU or per 4 cores by default.")
    ] = None
    address: Annotated[
        str, typer.Option(help="With --ray: local starts Ray here; auto, HOST:PORT or ray://HOST:PORT.")
    ] = "local"

    def check(self) -> None:
        """Raises DisaError."""
        usual = Workers()
        if not self.ray and (self.workers, self.address) != (usual.workers, usual.address):
            raise DisaError("--workers and --address go with --ray: without it this process draws.")

    def drawer(self, source: Source, settings: Settings, sampler: Sampler, seconds: float) -> Draws:
        """What draws: this process, or those that Ray starts. Raises DisaError."""
        from disa.serve.drawer import Drawer

        if not self.ray:
            return Drawer(sampler, settings)
        from disa.bulk.job import Job
        from disa.serve.on_ray import RayDrawer

        job, together = Job(places(source), settings.given(), {}), sampler.settings(settings).batch_size
        return RayDrawer(job, source.device, together, self.workers, self.address, seconds)


def serve(
    source: Source, settings: Settings, door: Door, bounds: Bounds, workers: Workers, as_json: AsJSON = False
) -> None:
    """Answer requests for images in the form of OpenAI's API, until Ctrl-C or SIGTERM.

    Requests that fit together are drawn in one batch, which changes no image. The options of drawing hold where a
    request says nothing. What was accepted is answered before the server ends.
    """
    check_installed()
    from disa.serve.app import Service, make_app
    from disa.serve.asking import Limits, Reader
    from disa.serve.server import listen, make_server

    workers.check()
    keys, seconds = door.keys(), bounds.seconds
    # What is warned of would come with every request, and fill the log.
    warnings.simplefilter("ignore", UserWarning)
    with listen(door.host, door.port) as listening:
        # With Ray, its workers need the GPU.
        sampler = (changed(source, device="cpu") if workers.ray else source).load()
        reader = Reader(sampler, settings, Limits(bounds.max_images, bounds.max_pixels, bounds.max_steps))
        drawer = workers.drawer(source, settings, sampler, seconds)
        try:
            service = Service(reader, drawer, bounds.queue, seconds)
            server = make_server(make_app(service, keys), seconds, lambda: _tell(sampler, listening, keys, as_json))
            server.run(sockets=[listening])
        finally:
            drawer.close()
    if service.num_lost:
        say(f"disa: stopped; {counted(service.num_lost, 'request')} had no answer yet.")
        raise typer.Exit(UNFINISHED)


def check_installed() -> None:
    """Raises DisaError where the packages of the extra are missing."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise DisaError(f'serving needs {error.name}: pip install "disa[serve]".') from error


def _tell(sampler: Sampler, listening: socket, keys: Keys, as_json: bool) -> None:
    from disa.serve.server import url_of

    url = url_of(*listening.getsockname()[:2])
    if as_json:
        print_json({"model": sampler.preset.name, "url": url, "with_keys": bool(keys)})
    else:
        line(f"{sampler.preset.name} is served at {url}/v1{', to those with a key' if keys else ''}; Ctrl-C ends it")
    sys.stdout.flush()
