"""How commands print: tables, and one line of JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

WIDEST_TABLE = 200


def print_json(report: dict[str, Any]) -> None:
    """One object on one line."""
    print(json.dumps(report))


def line(text: str) -> None:
    """A text of a command, without what a terminal would obey."""
    print(readable(text))


def readable(text: str) -> str:
    """A text of a model for a terminal, which would obey what is no character to read."""
    return "".join(c for c in text if c.isprintable() or c == "\n")


def table(title: str, headers: list[str], rows: list[list[str]]) -> None:
    """The first column to the left, the others to the right."""
    from rich.console import Console
    from rich.table import Table

    sheet = Table(title=title, title_justify="left")
    for i, header in enumerate(headers):
        sheet.add_column(header, justify="left" if i == 0 else "right")
    for row in rows:
        sheet.add_row(*row)
    # What is given is text, not markup; a file or a pipe has no width that rows must be cut to.
    width = None if sys.stdout.isatty() else WIDEST_TABLE
    Console(highlight=False, markup=False, emoji=False, width=width).print(sheet)


def print_summary(summary: dict[str, Any], out: object, as_json: bool) -> None:
    """What a training ended with."""
    if as_json:
        print_json(summary | {"out": str(out)})
        return
    table(summary["name"], ["", ""], [[name.replace("_", " "), f"{value}"] for name, value in summary.items()])
    line(f"the results are in {out}")
