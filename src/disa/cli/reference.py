"""docs/options.md, made from the fields of `Settings`: `python -m disa.cli.reference > docs/options.md`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from disa.draw.settings import NO_CHANGE, Settings

INTRODUCTION = """# Options of drawing

Every command that draws takes these options: `disa sample`, `compare`, `evidence`, `calibrate`, `fit-probe`, `bench`.
In Python they are keywords of `Sampler.sample` and `Sampler.settings`. What is left out is the model's own choice,
which `disa presets --json` shows. This page is made from the fields of `disa.draw.settings.Settings`, by
`python -m disa.cli.reference > docs/options.md`.
"""


def flag_of(name: str) -> str:
    """An option's name on the command line."""
    about = Settings.__dataclass_fields__[name].metadata
    flag = about["flag"] or f"--{name.replace('_', '-')}"
    return f"{flag}/--no-{flag[2:]}" if about["kind"] is bool else flag


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, "| option | keyword | what it does |", "| --- | --- | --- |", *_rows(), ""])


def _rows() -> Iterator[str]:
    for each in fields(Settings):
        about = each.metadata
        notes = [f"Part of `{about['part_of']}`."] if about["part_of"] else []
        notes += ["It never changes an image."] if each.name in NO_CHANGE and "images" not in about["help"] else []
        text = " ".join([about["help"], *notes]).replace("|", "\\|")
        yield f"| `{flag_of(each.name)}` | `{each.name}` | {text} |"


if __name__ == "__main__":
    print(page(), end="")
