"""Which of the things that a checkpoint holds are the weights.

Trainers keep weights and their moving average under names of their own, in containers in containers, and wrappers put
prefixes before the names of tensors. What is taken where the average is asked for:

| the checkpoint has | taken |
|---|---|
| tensors by name, and nothing else | these |
| one container of them, however it is called | it, which is said |
| weights and an average: `model_ema`, `ema`, `state_dict_ema`, `params_ema`, `ema_0.9999`, `swa_model` | the average |
| no average, an empty one, or None in its place | the weights, which is said |
| an average that is a list without names | none: the user says which entry |
| several that would do, none of which is called as the official ones are | none: the user says which entry |
| `module.`, `_orig_mod.`, `model.` and such before all names, or before those of each set | what follows it, and said |

Where the names that a model has are known, what has other names is passed over: an autoencoder or a discriminator
beside the model, or a prefix that nobody has heard of.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from shlex import quote
from typing import Any

from disa.errors import DisaError
from disa.values import counted, did_you_mean, either, shown
from disa.weights.pickled import Inert
from disa.weights.stored import Stored

OFFICIAL = ("model_ema", "model", "state_dict")
"""What the weights are called where other entries would do too."""
WRAPPERS = {
    "module", "model", "net", "network", "ema", "ema_model", "model_ema", "ema_module", "online_model",
    "averaged_model",
}  # fmt: skip
"""What is before the names of all tensors where a model was wrapped."""
INNER = re.compile(r"(?<![^.])(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.)+")
"""What no model calls its parts: it is left out wherever it stands."""
WORD = re.compile(r"[A-Z]*[a-z]*\d*")
AVERAGE = re.compile(r"ema\d*|swa|shadow|average[ds]?|avg|polyak")
NOT_WEIGHTS = {"optimizer", "optimizers", "optimiser", "optim", "opt", "scheduler", "schedulers", "scaler", "rng"}
DEEPEST, MOST_SHOWN, MOST_PREFIXES = 6, 8, 50
MOST_WALKED, LONGEST_NAME = 1_000_000, 200
"""Entries that are looked at, more than any checkpoint has; and letters of the name of a tensor or a container."""


@dataclass(frozen=True)
class Entry:
    """One set of weights in a checkpoint."""

    key: str
    """Where it is: the names of containers with dots between; empty where a checkpoint is nothing else."""
    state: Mapping[Any, Any]
    prefix: str = ""
    """What was before all its names."""
    part: bool = False
    """Whether it is some of the tensors of a container, told by their prefix."""
    beside: int = 0
    """How many tensors are in the same container, but not in it."""

    @property
    def average(self) -> bool:
        """Whether it is called an average."""
        return _is_average(self.key) or _is_average(self.prefix)


@dataclass(frozen=True)
class Found:
    """The weights; what to say of the choice, after the name of the file; other entries that would fit as well."""

    state: Mapping[Any, Any]
    note: str = ""
    others: tuple[str, ...] = ()
    key: str = ""


def find_weights(content: Mapping[Any, Any], average: bool, key: str | None, known: Collection[str]) -> Found:
    """The weights among what a checkpoint holds.

    average: prefer a moving average. key: the entry to take, as `Entry.key` has it. known: names that the tensors of a
    model may have. Raises DisaError: the rest of a sentence that begins with the file.
    """
    if key is not None:
        return _named(content, average, key, known)
    likely = _likely(_entries(content, any_prefix=bool(known)), known)
    return _chosen(content, likely, average, bool(known)) if likely else Found(_not_a_module(content))


def _chosen(content: Any, likely: list[Entry], average: bool, said: bool) -> Found:
    """said: whether it is of interest that there is no average."""
    averages = [entry for entry in likely if entry.average]
    others = [entry for entry in likely if not entry.average]
    missing = _missing_average(content, others) if average and not averages else ""
    entry = _only((averages or others) if average else (others or averages))
    keys = tuple(each.key for each in likely if each.key not in ("", entry.key))
    return Found(entry.state, _note(entry, average and (said or bool(missing)), missing), keys, entry.key)


def _likely(entries: list[Entry], known: Collection[str]) -> list[Entry]:
    """Those that are like the model, of which one may be without some names; without a model, those as large."""
    like = [len(entry.state.keys() & known) for entry in entries]
    if not any(like):
        entries = [entry for entry in entries if not (known and entry.part)]
        like = [len(entry.state) for entry in entries]
    return [entry for entry, count in zip(entries, like, strict=True) if 2 * count > max(like)]


def _only(entries: list[Entry]) -> Entry:
    """The one that is meant. Raises DisaError where several would do."""
    first = next((entry for name in OFFICIAL for entry in entries if entry.key == name), entries[0])
    if first.key not in OFFICIAL and any(_tensors(entry) != _tensors(first) for entry in entries):
        keys = [entry.key for entry in entries][:MOST_SHOWN]
        raise DisaError(f"holds several sets of weights, {' and '.join(keys)}: say which with {option(keys[0])}.")
    return first


def _tensors(entry: Entry) -> dict[Any, Stored]:
    return {name: value for name, value in entry.state.items() if isinstance(value, Stored)}


def _missing_average(content: Any, others: list[Entry]) -> str:
    """What is in the place of an average. Raises DisaError where it is one without names."""
    gone, known = "", dict[int, int]()
    for key, value in _walk(content):
        if not _is_average(key.rpartition(".")[2]):
            continue
        tensors = _num_tensors(value, known) if isinstance(value, list | tuple) else 0
        if 2 * tensors > len(others[0].state):
            raise DisaError(
                f"holds its average as a list of tensors without names ({key}): save it by name, or take the weights "
                f"that are not averaged with {option(others[0].key)}."
            )
        if _is_module(value) or value is None or (isinstance(value, Mapping | list) and not value):
            gone = gone or f", as its {key} is {'a whole module' if _is_module(value) else 'empty'}"
    return gone


def _note(entry: Entry, average: bool, missing: str = "") -> str:
    """What was chosen where there was a choice, and what was left out."""
    said = []
    if entry.key and average and not entry.average:
        said.append(f"it holds no average{missing}, so {entry.key} is taken")
    elif entry.key and entry.average and not average:
        said.append(f"it holds nothing but an average, so {entry.key} is taken")
    elif entry.key and entry.key not in OFFICIAL:
        said.append(f"{entry.key} is taken")
    if entry.prefix and not entry.part:
        said.append(f"the prefix {entry.prefix} of its names is left out")
    if entry.beside:
        said.append(f"{counted(entry.beside, 'tensor')} beside it {'is' if entry.beside == 1 else 'are'} left out")
    return "; ".join(said)


def _named(content: Any, average: bool, key: str, known: Collection[str]) -> Found:
    """The entry of that name, or the only one inside of what has that name."""
    entries = _entries(content, any_prefix=True)
    for entry in entries:
        if entry.key == key:
            return Found(entry.state, _note(replace(entry, key="", beside=0), average), (), key)
    inside = [entry for entry in entries if entry.key.startswith(f"{key}.")]
    if inside:
        return _chosen(content, _likely(inside, known), average, said=False)
    values = dict(_walk(content))
    if key in values:
        raise DisaError(f"has no weights in its entry {key}: {_about(values[key])}.")
    keys = [entry.key for entry in _entries(content, any_prefix=False) if entry.key]
    keys += [name for name in values if "." not in name and name not in keys]
    there = f"it has {either(keys[:MOST_SHOWN])}" if keys else "it is nothing but tensors, so leave it out"
    raise DisaError(f"has no entry {shown(key)}: {there}.{did_you_mean(key, keys)}")


def _about(value: Any) -> str:
    """Why a value is no set of weights."""
    if isinstance(value, list | tuple) and any(isinstance(each, Stored) for each in value):
        return "it is a list of tensors without names"
    if isinstance(value, Inert) and _is_module(value):
        return f"it is a whole module ({value.named}), which is code: save its state_dict() by torch.save"
    if value is None or (isinstance(value, Mapping | list | tuple) and not value):
        return "it is empty"
    return f"it is {shown(value) if isinstance(value, str | int | float) else 'something else'}"


def _not_a_module(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    for _, value in [("", content), *_walk(content)]:
        if _is_module(value):
            raise DisaError(f"holds no weights by name: {_about(value)}.")
    return content


def _is_module(value: Any) -> bool:
    return isinstance(value, Inert) and "_modules" in value


def option(key: str) -> str:
    """How a user asks for an entry."""
    return f"--weights-key {quote(key)} (in Python weights_key={key!r})"


# -- what there is -------------------------------------------------------------------------------------------------


def _entries(content: Any, any_prefix: bool) -> list[Entry]:
    """Every set of weights. any_prefix: also the parts of one whose names begin alike, whatever they begin with."""
    return [entry for key, state in _states(content) for entry in _expanded(key, state, any_prefix)]


def _states(content: Any) -> list[tuple[str, Mapping[Any, Any]]]:
    """Mappings with tensors. Numbers that are tensors, beside a larger set of weights, are none."""
    counts, known = dict[str, int](), dict[int, int]()
    states: dict[str, Mapping[Any, Any]] = {}
    for key, value in [("", content), *_walk(content)]:
        tensors = _num_tensors(value, known) if isinstance(value, Mapping) else 0
        if tensors and not NOT_WEIGHTS & set(_words(key)):
            states[key], counts[key] = value, tensors
    largest_inside: dict[str, int] = {}
    for key, count in counts.items():
        for outer in _outer(key):
            largest_inside[outer] = max(count, largest_inside.get(outer, 0))
    kept = {key: state for key, state in states.items() if counts[key] > largest_inside.get(key, 0)}
    return [(key, state) for key, state in kept.items() if not any(outer in kept for outer in _outer(key))]


def _num_tensors(value: Any, known: dict[int, int]) -> int:
    """Tensors in a container; known: those counted before, as one may stand in many places."""
    if id(value) not in known:
        parts = value.values() if isinstance(value, Mapping) else value
        known[id(value)] = sum(isinstance(each, Stored) for each in parts)
    return known[id(value)]


def _outer(key: str) -> list[str]:
    """The keys of everything that an entry is in."""
    parts = key.split(".") if key else []
    return [".".join(parts[:count]) for count in range(len(parts))]


def _expanded(key: str, state: Mapping[Any, Any], any_prefix: bool) -> list[Entry]:
    prefix, plain = _stripped(state)
    if prefix:
        return [Entry(key, plain, prefix)]
    parts: dict[str, dict[Any, Any]] = {}
    alone = 0
    for name, value in plain.items():
        word, dot, rest = str(name).partition(".")
        if dot:
            parts.setdefault(word, {})[rest] = value
        alone += not dot and not _is_counter(name, value)
    wrapped = len(parts) > 1 and parts.keys() <= WRAPPERS and not alone
    if not (wrapped or any_prefix) or len(parts) > MOST_PREFIXES:
        return [Entry(key, plain)]
    if {"model", "model_ema"} <= set(parts):
        parts["model_ema"] = _with_dots(parts["model_ema"], parts["model"])
    found = [] if wrapped else [Entry(key, plain)]
    for word, part in parts.items():
        inner, names = _stripped(part)
        where = f"{key}.{word}" if key else word
        others = 0 if wrapped else len(plain) - len(part)
        found.append(Entry(where, names, f"{word}.{inner}", part=True, beside=others))
    return found


def _stripped(state: Mapping[Any, Any]) -> tuple[str, dict[Any, Any]]:
    """The prefix of wrappers before all names, and the state without it; counters of a wrapper have none."""
    plain = {INNER.sub("", name) if isinstance(name, str) else name: value for name, value in state.items()}
    if len(plain) < len(state):
        return "", dict(state)
    prefix = "" if plain.keys() == state.keys() else "_orig_mod."
    while True:
        words = {str(name).partition(".")[0] for name, value in plain.items() if not _is_counter(name, value)}
        if len(words) != 1 or not words <= WRAPPERS or words <= plain.keys():
            break
        start = f"{words.pop()}."
        plain = {name.removeprefix(start): value for name, value in plain.items() if str(name).startswith(start)}
        prefix = start
    if prefix:
        last = f".{next(reversed(plain))}"
        prefix = next((name[: 1 - len(last)] for name in reversed(state) if str(name).endswith(last)), prefix)
    return prefix, plain


def _is_counter(name: Any, value: Any) -> bool:
    return "." not in str(name) and isinstance(value, Stored) and value.shape in ((), (1,))


def _with_dots(average: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """An average whose names have lost their dots, under the names that the weights have; buffers are not averaged."""
    names = {name.replace(".", ""): name for name in raw}
    found = {names[name]: value for name, value in average.items() if name in names}
    return {**raw, **found} if found and not any("." in name for name in average) else dict(average)


def _walk(content: Any) -> list[tuple[str, Any]]:
    """Containers and what is empty, with the names of the containers around them; at the top everything but tensors.

    Only so much is looked at: containers may hold each other.
    """
    return [entry for entry in islice(_inside(content, "", DEEPEST), MOST_WALKED) if entry is not None]


def _inside(value: Any, key: str, depth: int) -> Iterator[tuple[str, Any] | None]:
    """What `_walk` tells, and None for each entry that it passes over."""
    if not depth or _is_module(value):
        return
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, each in parts:
        told = each is None or isinstance(each, Mapping | list | tuple) or (not key and not isinstance(each, Stored))
        if not told or (isinstance(name, str | bytes) and len(name) > LONGEST_NAME):
            yield None
            continue
        where = f"{key}.{name}" if key else str(name)
        yield where, each
        yield from _inside(each, where, depth - 1)


def _is_average(name: str) -> bool:
    return any(AVERAGE.fullmatch(word) for word in _words(name))


def _words(name: str) -> list[str]:
    """`stateDict_EMA0.9` -> state, dict, ema0, 9."""
    return [word.lower() for word in WORD.findall(name) if word]
