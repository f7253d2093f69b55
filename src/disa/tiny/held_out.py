"""Which combinations of captioned scenes training never shows. SHA-256 decides.

- colours: 5 of the 40 pairs of colour and shape, each shape once and no colour twice;
- two objects: 2 of the 10 pairs of different shapes that may be in one picture;
- counting: every eighth triple of count (two to four), colour and shape;
- position: every eighth arrangement of two different shapes, side by side or one above the other;
- colour attribution: every eighth pair of a coloured shape and one of another colour.
"""

from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from itertools import combinations, permutations, product

from disa.tiny.captions import COLOURS, LARGEST_COUNT, SHAPES, Category, Facts, Shape, canonical


def held_out(known: Facts) -> set[Category]:
    """The categories whose combinations, among these facts, training never shows."""
    groups, found = known.groups, set[Category]()
    secret = combinations_held_out()
    if any(_key("colours", g.colour, g.shape) in secret for g in groups):
        found.add("colours")
    if len(groups) == 1:
        group = groups[0]
        return found | ({"counting"} if _key("counting", group.count, group.colour, group.shape) in secret else set())
    shapes: list[Shape] = [group.shape for group in groups]
    if _key("two objects", *sorted(shapes)) in secret:
        found.add("two objects")
    if known.relation:
        one_way = canonical(known)
        if _key("position", one_way.relation, *(group.shape for group in one_way.groups)) in secret:
            found.add("position")
    if _key("colour attribution", *sorted(f"{group.colour} {group.shape}" for group in groups)) in secret:
        found.add("colour attribution")
    return found


@cache
def combinations_held_out() -> frozenset[str]:
    """Every one of them, as a text that begins with its category."""
    coloured = _apart(product(COLOURS, SHAPES), 5)
    together = _apart(combinations(sorted(SHAPES), 2), 2)
    seen = [pair for pair in product(COLOURS, SHAPES) if pair not in coloured]
    orders = [o for o in permutations(SHAPES, 2) if tuple(sorted(o)) not in together]
    pairs = [(a, b) for a, b in combinations(seen, 2) if a[0] != b[0] and tuple(sorted((a[1], b[1]))) not in together]
    return frozenset().union(
        (_key("colours", *pair) for pair in coloured),
        (_key("two objects", *pair) for pair in together),
        _eighth(_key("counting", count, *pair) for count in range(2, LARGEST_COUNT + 1) for pair in seen),
        _eighth(_key("position", relation, *order) for relation in ("left of", "above") for order in orders),
        _eighth(_key("colour attribution", *sorted((" ".join(a), " ".join(b)))) for a, b in pairs),
    )


def _key(*parts: object) -> str:
    return ", ".join(map(str, parts))


def _rank(key: str) -> bytes:
    return sha256(key.encode()).digest()


def _eighth(keys: Iterable[str]) -> list[str]:
    ranked = sorted(keys, key=_rank)
    return ranked[: len(ranked) // 8]


def _apart(pairs: Iterable[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """The first pairs, by their hash, of which no two share a part: training misses no word more than others."""
    chosen: list[tuple[str, str]] = []
    for pair in sorted(pairs, key=lambda pair: _rank(_key(*pair))):
        if not any(set(pair) & set(other) for other in chosen):
            chosen.append(pair)
    return chosen[:count]
