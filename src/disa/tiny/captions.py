"""The words for scenes: a small grammar of captions, read and written.

Captions come in GenEval's six categories (Ghosh et al. 2023): `Facts` are what a caption says, `parse` reads them,
`describe` and `phrase` put them into words, and `VOCABULARY` has every word that there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np

from disa.errors import DisaError

Shape = Literal["circle", "square", "triangle", "star", "cross"]
Colour = Literal["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
Size = Literal["small", "large"]
Relation = Literal["left of", "right of", "above", "below"]
Category = Literal["single object", "two objects", "counting", "colours", "position", "colour attribution"]
T = TypeVar("T")

SHAPES: tuple[Shape, ...] = get_args(Shape)
COLOURS: tuple[Colour, ...] = get_args(Colour)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
CATEGORIES: tuple[Category, ...] = get_args(Category)
LARGEST_COUNT = 4

_COUNTS = ("one", "two", "three", "four")
PLURALS: dict[Shape, str] = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
_SIZE_WORDS: dict[str, Size] = {"small": "small", "little": "small", "large": "large", "big": "large"}
_RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_OPPOSITE: dict[Relation, Relation] = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
_PREFIXES = ("a picture of", "an image of", "a drawing of", "there is", "there are")
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {"a", "an", "and", "is", *_COUNTS, *COLOURS, *SHAPES, *PLURALS.values(), *_SIZE_WORDS}
        | {word for phrases in (_PREFIXES, *_RELATION_WORDS.values()) for part in phrases for word in part.split()}
    )
)
"""Every word a caption may have; there is no punctuation."""


@dataclass(frozen=True)
class Group:
    """`count` equal objects, or what a caption says of them: None is left open."""

    shape: Shape
    colour: Colour | None = None
    size: Size | None = None
    count: int = 1


@dataclass(frozen=True)
class Facts:
    """One group of 1 to 4 equal objects, or two single objects; `relation` is where the first is, seen from the second.

    Raises DisaError where two objects cannot be told apart by shape or by colours that are both given.
    """

    groups: tuple[Group, ...]
    relation: Relation | None = None

    def __post_init__(self) -> None:
        counts = [group.count for group in self.groups]
        if counts not in ([1], [2], [3], [4], [1, 1]) or (self.relation and len(counts) == 1):
            raise DisaError("a scene has one to four equal objects, or two single objects that may have a relation.")
        if len(counts) == 2 and _same_kind(*self.groups):
            first, second = (_words(group) for group in self.groups)
            raise DisaError(f'"{first}" and "{second}" must differ in shape or in a colour that both have.')

    @property
    def category(self) -> Category:
        """GenEval's category. With a relation it is "position", however many colours are given."""
        if self.relation:
            return "position"
        coloured = [group.colour is not None for group in self.groups]
        if len(self.groups) == 2:
            return "colour attribution" if all(coloured) else "two objects"
        if self.groups[0].count > 1:
            return "counting"
        return "colours" if coloured[0] else "single object"


def canonical(known: Facts) -> Facts:
    """The same, from the object to the left or above where there is a relation."""
    if known.relation in ("right of", "below"):
        return Facts(known.groups[::-1], _OPPOSITE[known.relation])
    return known


def allows(stated: Facts, complete: Facts) -> bool:
    """Whether everything stated is among the complete facts, whichever of two objects comes first."""
    return in_order_of(stated, complete) is not None


def in_order_of(stated: Facts, complete: Facts) -> Facts | None:
    """The complete facts from the object that is stated first; None where something stated is not among them."""
    turned = Facts(complete.groups[::-1], complete.relation and _OPPOSITE[complete.relation])
    return next((known for known in (complete, turned) if _stands(stated, known)), None)


def _stands(stated: Facts, known: Facts) -> bool:
    return (
        len(stated.groups) == len(known.groups)
        and stated.relation in (None, known.relation)
        and all(
            a.shape == b.shape and a.count == b.count and a.colour in (None, b.colour) and a.size in (None, b.size)
            for a, b in zip(stated.groups, known.groups, strict=True)
        )
    )


def describe(known: Facts) -> str:
    """The canonical wording, the shortest with articles. `parse(describe(known)) == known`."""
    return f" {known.relation or 'and'} ".join(_words(group) for group in known.groups)


def phrase(known: Facts, random: np.random.Generator) -> str:
    """One of the many wordings. `parse(phrase(known, random)) == known`."""
    choice = random.random()
    article = choice < 0.7
    words = [_words(group, article, random) for group in known.groups]
    if choice < 0.05 and len(words) == known.groups[0].count == 1:
        words[0] = f"one {words[0].partition(' ')[2]}"
    plural = known.groups[0].count > 1
    prefixes = ("", "", "", *_PREFIXES[:3], _PREFIXES[4 if plural else 3])
    prefix = pick(random, prefixes) if article or plural else ""
    link = pick(random, _RELATION_WORDS[known.relation]) if known.relation else "and"
    if known.relation and not prefix.startswith("there") and random.random() < 0.2:
        link = f"is {link}"
    return f"{prefix} {f' {link} '.join(words)}".strip()


def _words(group: Group, article: bool = True, random: np.random.Generator | None = None) -> str:
    size = group.size
    if size and random is not None:
        size = pick(random, [word for word, meaning in _SIZE_WORDS.items() if meaning == size])
    noun = group.shape if group.count == 1 else PLURALS[group.shape]
    words = [word for word in (size, group.colour, noun) if word]
    if group.count > 1:
        words.insert(0, _COUNTS[group.count - 1])
    elif article:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    return " ".join(words)


def _same_kind(a: Group, b: Group) -> bool:
    return a.shape == b.shape and (None in (a.colour, b.colour) or a.colour == b.colour)


def parse(caption: str) -> Facts:
    """What a caption says. Upper case and a final full stop do not matter.

        [a picture of | there is] group [[is] left of | to the right of | above | under | and ... group]
        group: [a | one | two ...] [small | big ...] [red ...] circle | squares | ...

    Raises DisaError that says what was expected and what was found.
    """
    text = caption.lower().strip().removesuffix(".")
    words = text.split()
    unknown = [word for word in words if word not in VOCABULARY]
    if unknown:
        raise DisaError(f'"{unknown[0]}" is no word of a caption; the words are: {", ".join(VOCABULARY)}.')
    prefix = next((prefix.split() for prefix in _PREFIXES if text.startswith(f"{prefix} ")), [])
    first, rest = _parse_group(words[len(prefix) :], caption)
    if not rest:
        return Facts((first,))
    relation, rest = _parse_link(rest, caption)
    second, rest = _parse_group(rest, caption)
    if rest:
        raise DisaError(f'expected the end of "{caption}" after its second object, found "{" ".join(rest)}".')
    return Facts((first, second), relation)


def _parse_group(words: list[str], caption: str) -> tuple[Group, list[str]]:
    count, words = _taken(words, {"a": 1, "an": 1, **{word: i + 1 for i, word in enumerate(_COUNTS)}})
    size, words = _taken(words, _SIZE_WORDS)
    colours: dict[str, Colour] = {colour: colour for colour in COLOURS}
    colour, words = _taken(words, colours)
    nouns: dict[str, Shape] = {shape if count in (None, 1) else plural: shape for shape, plural in PLURALS.items()}
    shape, rest = _taken(words, nouns)
    if shape is None:
        raise DisaError(f'expected one of {", ".join(nouns)} in "{caption}", found {_found(words)}.')
    return Group(shape, colour, size, count or 1), rest


def _taken(words: list[str], meanings: Mapping[str, T]) -> tuple[T | None, list[str]]:
    meaning = meanings.get(words[0]) if words else None
    return meaning, words if meaning is None else words[1:]


def _parse_link(words: list[str], caption: str) -> tuple[Relation | None, list[str]]:
    if words[0] == "and":
        return None, words[1:]
    words = words[1:] if words[0] == "is" else words
    for relation, phrases in _RELATION_WORDS.items():
        for part in phrases:
            if words[: len(part.split())] == part.split():
                return relation, words[len(part.split()) :]
    raise DisaError(f'expected "and" or one of {", ".join(RELATIONS)} in "{caption}", found {_found(words)}.')


def _found(words: list[str]) -> str:
    return f'"{words[0]}"' if words else "its end"


def pick(random: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, each as likely."""
    # Only random(): its stream has never changed between versions of numpy, and it is the fastest call.
    return choices[int(random.random() * len(choices))]
