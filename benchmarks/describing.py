"""What Harmon says of scenes and captions: `python benchmarks/describing.py [MODEL] [--result FILE]`.

Scenes that training held out are drawn and described greedily. A description is right if its shapes, colours, counts,
sizes and relation are those of the scene; each of these is also scored alone. As many held-out captions are rewritten,
one a seed; that is right if it says everything, and of it what the caption says, which is also scored by category. The
last line is JSON, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import machine, note, publish

from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.study.metrics import Spread, bootstrap
from disa.tiny import shapes
from disa.tiny.captions import CATEGORIES, Facts, allows, canonical, describe, parse
from disa.tiny.scenes import facts, held_out_captions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="harmon-shapes", help="a name, or a folder that disa wrote")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path)
    given = parser.parse_args()
    sampler = Sampler.load(given.model)
    scenes = shapes.scenes(given.scenes, "test", torch.Generator().manual_seed(given.seed))
    right, wrong = described(sampler, scenes)
    kept, changed = rewritten(sampler, held_out_captions(given.scenes, given.seed))
    for title, scores in (("described", right), ("rewritten", kept)):
        for name, spread in scores.items():
            print(f"{title:<12}{name:<20}{spread}")
    publish(
        {
            "benchmark": "describing",
            "model": given.model,
            "scenes": given.scenes,
            "seed": given.seed,
            "right": {name: asdict(spread) for name, spread in right.items()},
            "wrong": wrong[:20],
            "rewritten": {name: asdict(spread) for name, spread in kept.items()},
            "changed": changed[:20],
            "machine": machine(),
        },
        given.result,
    )


def described(sampler: Sampler, scenes: Sequence[shapes.Captioned]) -> tuple[dict[str, Spread], list[str]]:
    """How often each kind of fact is right, and what was said where not all of them are."""
    answers = list[str]()
    for begin in range(0, len(scenes), 50):
        answers += sampler.describe((shapes.pictures(scenes[begin : begin + 50]) + 1) / 2, max_tokens=32)
        note(f"{len(answers)} of {len(scenes)} described")
    wanted = [facts(scene) for scene, _ in scenes]
    rows = [agreement(answer, known) for answer, known in zip(answers, wanted, strict=True)]
    wrong = [
        f"{describe(known)}: {answer}"
        for known, answer, row in zip(wanted, answers, rows, strict=True)
        if not row["everything"]
    ]
    return {name: _share([row[name] for row in rows]) for name in rows[0]}, wrong


def rewritten(sampler: Sampler, captions: Sequence[str]) -> tuple[dict[str, Spread], list[str]]:
    """How often a rewritten caption says everything, the caption's own facts among it; and those that do not."""
    written = sampler.rewrite(captions, range(len(captions)))
    kept = [completes(caption, words) for caption, words in zip(captions, written, strict=True)]
    scores = {"everything": _share(kept)}
    for category in CATEGORIES:
        marks = [good for caption, good in zip(captions, kept, strict=True) if parse(caption).category == category]
        scores |= {category: _share(marks)} if marks else {}
    changed = [f"{caption}: {words}" for caption, words, good in zip(captions, written, kept, strict=True) if not good]
    return scores, changed


def _share(marks: Sequence[bool]) -> Spread:
    return bootstrap(lambda marks: marks.mean().item(), torch.tensor(marks).double())


def completes(caption: str, words: str) -> bool:
    """Whether words say everything that there is to say, and all that the caption says."""
    try:
        known = parse(words)
    except DisaError:
        return False
    told = all(group.colour and group.size for group in known.groups)
    placed = len(known.groups) == 1 or known.relation is not None
    return told and placed and allows(parse(caption), known)


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
