"""How much of what a drawn scene shows Harmon says: `python benchmarks/describing.py [MODEL] [--result FILE]`.

Scenes that training held out are drawn and described greedily. A description is right if its shapes, colours, counts,
sizes and relation are those of the scene; each of these is also scored alone. The last line is JSON, with 95 %
bootstrap intervals.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import machine, note, publish

from disa.errors import DisaError
from disa.metrics import bootstrap
from disa.sampler import Sampler
from disa.tiny import shapes
from disa.tiny.captions import Facts, canonical, describe, parse
from disa.tiny.scenes import facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="harmon-shapes", help="a name, or a folder that disa wrote")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path)
    given = parser.parse_args()
    scenes = shapes.scenes(given.scenes, "test", torch.Generator().manual_seed(given.seed))
    sampler, answers = Sampler.load(given.model), list[str]()
    for begin in range(0, len(scenes), 50):
        answers += sampler.describe((shapes.pictures(scenes[begin : begin + 50]) + 1) / 2, max_tokens=32)
        note(f"{len(answers)} of {len(scenes)} described")
    rows, wrong = list[dict[str, bool]](), list[str]()
    for (scene, _), answer in zip(scenes, answers, strict=True):
        wanted = facts(scene)
        rows.append(agreement(answer, wanted))
        if not rows[-1]["everything"]:
            wrong.append(f"{describe(wanted)}: {answer}")
    right = {name: torch.tensor([row[name] for row in rows]).double() for name in rows[0]}
    scores = {name: bootstrap(lambda marks: marks.mean().item(), marks) for name, marks in right.items()}
    for name, spread in scores.items():
        print(f"{name:<12}{spread}")
    publish({
        "benchmark": "describing", "model": given.model, "scenes": given.scenes, "seed": given.seed,
        "right": {name: asdict(spread) for name, spread in scores.items()}, "wrong": wrong[:20], "machine": machine(),
    }, given.result)  # fmt: skip


def agreement(answer: str, wanted: Facts) -> dict[str, bool]:
    """Which facts of a scene an answer states as they are; none if it is no caption."""
    right = parts(wanted)
    try:
        found = canonical(parse(answer))
    except DisaError:
        return dict.fromkeys([*right, "everything"], False)
    return {name: value == right[name] for name, value in parts(found).items()} | {"everything": found == wanted}


def parts(known: Facts) -> dict[str, Any]:
    """Each kind of fact by itself."""
    return {
        "shapes": Counter(group.shape for group in known.groups),
        "colours": Counter(group.colour for group in known.groups),
        "sizes": Counter(group.size for group in known.groups),
        "counts": [group.count for group in known.groups],
        "relation": known.relation,
    }


if __name__ == "__main__":
    main()
