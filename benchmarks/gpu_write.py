"""What `gpu.py`, `work.py` and `precision.py` measured -> the tables of docs/gpu.md.

python benchmarks/gpu_write.py                 # from benchmarks/results, between the page's marks
python benchmarks/gpu_write.py FILE...         # print those of files of gpu.py
python benchmarks/gpu_write.py --check         # whether the page has them
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any

import work
from tables import ROOT, table

PAGE = ROOT / "docs" / "gpu.md"
RESULTS = ROOT / "benchmarks" / "results"
FORMS = "plain", "fused", "graphs"
PRECISION = {"rounded to bf16": "models", "autoencoder": "autoencoders"}
NOTHING = "No GPU has been measured yet."
HEADERS = [
    "model",
    "steps",
    "batch",
    "eager: s/image",
    "fused: s/image",
    "graphs: s/image",
    "graphs are faster",
    "images/s",
    "launches, plain, fused",
    "share of peak",
    "MiB",
]


def page(result: dict[str, Any]) -> str:
    """A paragraph and a table of one device."""
    ceilings, lines = result["ceilings"], list[str]()
    lines.append(
        f"{result['processor']}, PyTorch {result['versions']['torch']}: matrix products at {ceilings['bf16']:.3g} "
        f"TFLOP/s in bf16 and {ceilings['fp32']:.3g} in fp32 without TF32, copies at {ceilings['copy']:.2g} TB/s. "
        "Random weights, images not decoded, medians; images per second, share of peak and memory of the faster form."
    )
    if tests := result.get("tests"):
        lines.append(f"Tests: {tests['said']}.")
    if result.get("refused"):
        lines.append(f"Not fused, since their kernels failed or differ: {', '.join(result['refused'])}.")
    if result["missing"]:
        lines.append(f"Missing here: {', '.join(result['missing'])}.")
    return "\n".join([*lines, "", table(HEADERS, rows(result))])


def rows(result: dict[str, Any]) -> list[list[str]]:
    """A line for a model, a dtype, settings and a batch size: all forms side by side."""
    pairs, counts = dict[tuple[str, str, str, int], dict[str, Any]](), work.read()
    for name, cell in result["cells"].items():
        model, dtype, settings, batch, form = name.split(" ")
        pairs.setdefault((model, dtype, settings, int(batch)), {})[form] = cell
    return [_row(key, pairs[key], counts, result["ceilings"]) for key in sorted(pairs, key=_place)]


def _place(key: tuple[str, str, str, int]) -> Any:
    """Families together, bf16 and annealed settings first."""
    model, *others = key
    return model.partition("-")[0], work.MODELS.index(model) if model in work.MODELS else 0, *others


def _row(
    key: tuple[str, str, str, int], forms: dict[str, Any], counts: dict[str, dict[str, int]], ceilings: dict[str, float]
) -> list[str]:
    model, dtype, settings, batch = key
    done = {form: statistics.median(cell["seconds"]) for form, cell in forms.items() if "seconds" in cell}
    first = [f"{model}, {dtype}", "", str(batch)]
    if not done:
        return [*first, *(_told(forms.get(form)) for form in FORMS), "", "", "", "", ""]
    best = min(done, key=lambda form: done[form])
    cell, counted = forms[best], counts.get(f"{model} {settings}", {})
    first[1] = steps_cell(cell["num_ar_steps"], cell["steps"], settings)
    flops = batch * counted.get("flops", 0)
    return [
        *first,
        *(f"{done[form] / batch:.3g}" if form in done else _told(forms.get(form)) for form in FORMS),
        f"{done['plain'] / done['graphs']:.2f}x" if {"plain", "graphs"} <= done.keys() else "",
        f"{batch / done[best]:.3g}",
        f"{counted['plain']}, {counted['fused']}" if batch == 1 and counted else "",
        f"{flops / done[best] / (1e12 * ceilings[dtype]):.1%}" if flops else "",
        f"{cell['memory']:.0f}" if cell["memory"] else "",
    ]


def _told(cell: dict[str, Any] | None) -> str:
    """Why there is no number."""
    return "" if cell is None else "does not fit" if "full" in cell else "failed"


def precision(result: dict[str, Any]) -> str:
    """The tables of `precision.py`: errors of latents, and of images of autoencoders."""
    return "\n\n".join(_columns(title, result[part]) for title, part in PRECISION.items())


def _columns(title: str, found: dict[str, dict[str, float]]) -> str:
    kinds = next(iter(found.values()))
    return table([title, *found], [[kind, *(f"{each[kind]:.1e}" for each in found.values())] for kind in kinds])


def launches(counts: dict[str, dict[str, int]]) -> str:
    """What an image launches and multiplies, of the models that `work.py` has counted."""
    lines = list[list[str]]()
    for name, settings in product(work.MODELS, work.SETTINGS):
        if counted := counts.get(f"{name} {settings}"):
            asked = work.Asked.of(work.PRESETS[name], settings)
            forms = (f"{counted[form]:,}".replace(",", " ") for form in work.FORMS)
            steps = steps_cell(asked.num_ar_steps, asked.steps, settings)
            lines.append([name, steps, *forms, f"{counted['flops'] / 1e12:.3g}"])
    return table(["model", "steps", "in plain form", "with fused operators", "TFLOP"], lines)


def steps_cell(num_ar_steps: int, steps: str, settings: str) -> str:
    return f"{num_ar_steps} x `{steps}`{', fast recipe' if settings == 'fast' else ''}"


def filled(text: str) -> str:
    """The page with the tables of all results."""
    measured = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("gpu-*.json"))]
    rounded = json.loads((RESULTS / "precision.json").read_text(encoding="utf-8"))
    contents = {
        "gpu": "\n\n".join(map(page, measured)) or NOTHING,
        "launches": launches(work.read()),
        "precision": precision(rounded),
    }
    for mark, content in contents.items():
        pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
        text = pattern.sub(lambda marks, content=content: f"{marks[1]}{content}\n{marks[2]}", text)
    return text


def main(given: list[str]) -> int:
    if given and given != ["--check"]:
        print("\n\n".join(page(json.loads(Path(path).read_text(encoding="utf-8"))) for path in given))
        return 0
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if given:
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
