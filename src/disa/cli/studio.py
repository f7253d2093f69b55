"""`disa studio`: drawing, comparing and editing in a browser."""

from __future__ import annotations

import sys
import time
import warnings
import webbrowser
from typing import Annotated

import typer

from disa.cli.options import AsJSON, Source
from disa.cli.output import line, print_json
from disa.cli.terminal import say
from disa.serve.keys import is_loopback


def studio(
    source: Source,
    host: Annotated[
        str, typer.Option(help="The address to listen on; whoever reaches it may draw. By default, this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 7860,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Draw, compare and edit pictures in a browser, until Ctrl-C.

    The page is there first, then the model is loaded. It asks for nothing outside of this machine.
    """
    from disa.studio.server import opened

    # What is warned of would come with every drawing.
    warnings.simplefilter("ignore", UserWarning)
    with opened(host, port) as place:
        if not is_loopback(host):
            say(f"warning: whoever reaches {host} may draw here, without a password.")
        if as_json:
            print_json({"model": source.model, "url": place.url})
        else:
            line(f"the studio is at {place.url}; Ctrl-C ends it")
        sys.stdout.flush()
        if browser:
            webbrowser.open(place.url)
        place.prepare(source.load)
        while True:
            time.sleep(1)  # a signal that comes just before a wait without an end is not heard
