"""How far a run is, for another terminal; and `report.html`, one file that needs no network."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import fields
from html import escape
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from disa.bulk.driver import PROGRESS, Progress
from disa.bulk.store import Shards
from disa.draw.pictures import grid, png
from disa.files import is_written, write_text
from disa.reading import json_in

REPORT = "report.html"
SHOWN, MOST_FAILURES = 48, 100
LONGEST_PROGRESS = 1 << 28
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}"
    "img{max-width:100%;image-rendering:pixelated}"
)


def status(run: Shards) -> dict[str, Any]:
    """What is there, what the last driver said, and whether one is drawing now."""
    there = int(run.there().sum())
    told = {"num_images": run.record.num_images, "there": there, "shards": len(run.whole())}
    return told | {"running": is_written(run.folder), "last": last(run.folder)}


def last(folder: Path) -> dict[str, Any] | None:
    """What the last driver said of its progress; None where none has said anything yet."""
    try:
        found = json_in(folder / PROGRESS, LONGEST_PROGRESS)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.keys() == {each.name for each in fields(Progress)} else None


def write_report(run: Shards, progress: Progress) -> Path:
    """The samples shown are the first images that are there. Raises DisaError."""
    return write_text(run.folder / REPORT, page(run, progress))


def page(run: Shards, progress: Progress) -> str:
    """The whole page."""
    record = run.record
    title = f"{record.settings['model']}: {progress.num_there} of {record.num_images} images"
    rate = {
        "images drawn by this driver": progress.drawn,
        "seconds": f"{progress.seconds:.1f}",
        "images per second": f"{progress.images_per_second:.2f}",
        "evaluations": progress.evaluations,
        "workers that died": progress.deaths,
    }
    workers = [
        [each["name"], each["machine"], each["images"], f"{each['seconds']:.1f}", each["deaths"]]
        for each in progress.workers
    ]
    failures = sorted(progress.failures.items())[:MOST_FAILURES]
    parts = [
        f"<h1>{escape(title)}</h1>",
        _picture(run),
        "<h2>Speed</h2>",
        _pairs(rate),
        _table(["worker", "machine", "images", "seconds of drawing", "deaths"], workers),
        f"<h2>Failures</h2><p>{len(progress.failures)} images could not be drawn.</p>",
        _table(["id", "why"], [list(pair) for pair in failures]) if failures else "",
        "<h2>Settings</h2>",
        _pairs(record.settings | {"digest": record.digest}),
    ]
    head = f"<meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _picture(run: Shards) -> str:
    shown = [Image.open(BytesIO(content)) for _, content in islice(run.images(), SHOWN)]
    if not shown:
        return "<p>No image is drawn yet.</p>"
    data = b64encode(png(grid(shown))).decode()
    return f'<img alt="the first {len(shown)} images" src="data:image/png;base64,{data}">'


def _pairs(values: Mapping[str, Any]) -> str:
    rows = ((name, value if isinstance(value, str | int) else json.dumps(value)) for name, value in values.items())
    return _table(["", ""], [list(row) for row in rows])


def _table(headers: list[str], rows: list[list[Any]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in headers)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
