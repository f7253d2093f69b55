"""Write the README's tables from the committed result files: `python benchmarks/tables.py` (`--check` only compares).

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; NAME is a result file under benchmarks/results.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] + ["---:"] * (len(headers) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(value: dict[str, float]) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def quality(result: dict[str, Any]) -> str:
    """What `disa compare` found, without the times."""
    rows = [
        [
            f"`{p['steps']}`",
            f"{p['evaluations_per_row']:.1f}",
            spread(p["quality"]["frechet"]),
            spread(p["difference"]) if p["difference"] else "",
            f"{p['quality']['accuracy']['value']:.1%}",
            f"{p['quality']['precision']:.2f}",
            f"{p['quality']['recall']:.2f}",
        ]
        for p in result["policies"]
    ]
    headers = ["steps", "evaluations per row", "Fréchet distance", "difference", "labels read", "precision", "recall"]
    return table(headers, rows)


def scores(result: dict[str, Any]) -> str:
    """What `disa compare` found of a model that draws scenes: GenEval's categories, and time."""
    categories = list(result["policies"][0]["quality"]["categories"])
    rows = [
        [
            f"`{p['steps']}`",
            f"{p['evaluations_per_row']:.1f}",
            f"{p['speedup']:.2f}x",
            spread(p["quality"]["overall"]),
            spread(p["difference"]) if p["difference"] else "",
            *(f"{p['quality']['categories'][name]['value']:.0%}" for name in categories),
        ]
        for p in result["policies"]
    ]
    return table(["steps", "evaluations per row", "speed-up", "score", "difference", *categories], rows)


def times(result: dict[str, Any]) -> str:
    """What `disa compare` or `disa demo` found of time."""
    rows = [
        [
            f"`{p['steps']}`",
            f"{p['evaluations_per_row']:.1f}",
            f"{p['seconds']:.1f}",
            f"{p['speedup']:.2f}x",
            f"{p['seconds_head'] / p['seconds']:.0%}",
            spread(p["difference"]) if p["difference"] else "",
        ]
        for p in result["policies"]
    ]
    headers = ["steps", "evaluations per row", "seconds", "speed-up", "head", "difference in Fréchet distance"]
    return table(headers, rows)


def architectures(result: dict[str, Any]) -> str:
    """The result of `benchmarks/mar.py`."""
    rows = [
        [
            f"{row['variant']} {row['dtype']}, batch {row['batch']}",
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['seconds_backbone']:.1f}",
            f"{row['seconds_head']:.1f}",
            f"{row['seconds_ratio']:.2f}x" if "seconds_ratio" in row else "",
            f"{row['share_of_ceiling']:.0%}",
            f"{row['memory']:.0f}",
        ]
        for row in result["rows"]
    ]
    headers = ["variant", "wall s", "CPU s", "backbone s", "head s", "faster", "of the machine's peak", "peak MiB"]
    return table(headers, rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "digits": quality, "demo": times, "flowar-digits": quality, "flowar-digits-times": times,
    "xar-digits": quality, "xar-digits-times": times, "harmon-shapes": scores,
    "mar-cpu": architectures,
}  # fmt: skip


def filled(text: str) -> str:
    """The text with every table made anew."""
    for name, render in TABLES.items():
        path = RESULTS / f"{name}.json"
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if path.exists() and pattern.search(text):
            content = render(json.loads(path.read_text()))
            text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


def main(arguments: list[str]) -> int:
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = filled(text)
    if arguments == ["--check"]:
        return 0 if new == text else 1
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
