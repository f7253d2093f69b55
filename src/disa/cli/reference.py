"""docs/options.md, made from the fields of `Settings`: `python -m disa.cli.reference > docs/options.md`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from disa.draw.settings import NO_CHANGE, Settings

INTRODUCTION = """# Options of drawing

Every command that draws takes these options: `disa sample`, `bulk`, `serve`, `compare`, `evidence`, `calibrate`,
`fit-probe`, `bench`.
In Python they are keywords of `Sampler.sample` and `Sampler.settings`. What is left out is the model's own choice,
which `disa presets --json` shows. This page is made from the fields of `disa.draw.settings.Settings`, by
`python -m disa.cli.reference > docs/options.md`.
"""


def flag_of(name: str, about: Mapping[str, Any]) -> str:
    """An option's name on the command line; about: the metadata of its field."""
    flag = about["flag"] or f"--{name.replace('_', '-')}"
    return f"{flag}/--no-{flag[2:]}" if about["kind"] is bool else flag


def page(settings: type[Settings] = Settings) -> str:
    """The whole page."""
    head = ("| option | keyword | what it does |", "| --- | --- | --- |")
    return "\n".join([INTRODUCTION, *head, *_rows(settings), ""])


def _rows(settings: type[Settings]) -> Iterator[str]:
    for each in fields(settings):
        about = each.metadata
        notes = [f"Part of `{about['part_of']}`."] if about["part_of"] else []
        notes += ["It never changes an image."] if each.name in NO_CHANGE and "images" not in about["help"] else []
        text = " ".join([about["help"], *notes]).replace("|", "\\|")
        yield f"| `{flag_of(each.name, about)}` | `{each.name}` | {text} |"


if __name__ == "__main__":
    print(page(), end="")
