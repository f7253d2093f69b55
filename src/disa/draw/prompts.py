"""Prompts as users give them: files of them, and names of files made from them.

| a file of prompts | its prompts |
|---|---|
| plain text | one a line, as it stands; lines end with LF, CRLF or CR |
| JSON list | texts, or objects with a text |
| JSON object | the list under "annotations", "prompts", "captions" or "data", or its values, if they are such objects |
| JSON Lines | an object with a text, or a text, in each line; lines end with LF or CRLF and with nothing else |
| CSV, TSV | the column with the text; separated by comma, semicolon or tab |

The text of an object or of a row stands under "prompt", else "prompts", "caption" or "text", in small or capital
letters. A file is read as its ending says (.json, .jsonl, .ndjson, .csv, .tsv); one of another ending is JSON if it
begins with a bracket, a table if its first line is a header with tabs, and else plain text. GenEval, PartiPrompts,
DrawBench, COCO's captions, MJHQ and T2I-CompBench have such files.

Files are UTF-8, or UTF-16 or UTF-32 with their mark at the beginning; they may be packed by gzip. `-` is standard
input. Blank lines say nothing, and what stands twice is drawn twice. Refused: other encodings, more than 32 MiB or
200 000 prompts, folders, pipes and devices, texts that are empty, too long, or hold NUL or half of a surrogate pair; in
JSON also what `disa.reading.parse_json` refuses, as NaN and a key twice in one object.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

from disa.errors import DisaError
from disa.reading import parse_json, read_bounded
from disa.values import counted, either, shown, text

LARGEST_FILE = 32 << 20
MOST_PROMPTS = 200_000
LONGEST_PROMPT = 100_000
"""Characters: more is a file that was taken for a prompt."""
LONGEST_SLUG = 40
STANDARD_INPUT = "-"

KEYS = ("prompt", "prompts", "caption", "text")
LISTS = ("annotations", "prompts", "captions", "data")
SEPARATORS = (",", "\t", ";")
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8-sig",
}  # fmt: skip
"""What a file begins with; UTF-32 before UTF-16, whose mark its own begins with."""
OTHERS = {"<!doctype": "a page of HTML", "<html": "a page of HTML", "version https://git-lfs": "a Git LFS pointer"}
NOT_PROMPTS = (".yaml", ".yml", ".xml", ".html", ".htm")
PACKED = b"\x1f\x8b"


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """What a file asks for, objects with a "prompt" each and what else is said of it. Raises DisaError."""
    where = "standard input" if str(path) == STANDARD_INPUT else str(path)
    endings = [suffix.lower() for suffix in path.suffixes]
    ending = next((suffix for suffix in reversed(endings) if suffix != ".gz"), "")
    words = _decoded(_content(path), where)
    begins = words[:64].lstrip().lower()
    other = next((what for start, what in OTHERS.items() if begins.startswith(start)), "")
    if other or ending in NOT_PROMPTS:
        raise DisaError(f"{where} is {other or f'a {ending} file'}: expected plain text, JSON, JSON Lines, CSV or TSV.")
    values = islice(_values(words, ending, where), MOST_PROMPTS + 1)
    asked = [_entry(value, f"{place} of {where}") for place, value in values]
    if len(asked) > MOST_PROMPTS:
        raise DisaError(f"{where} holds more than {MOST_PROMPTS} prompts: split it.")
    if not asked:
        raise DisaError(f"{where} holds no prompt: expected at least one.")
    return asked


def _content(path: Path) -> bytes:
    if str(path) == STANDARD_INPUT:
        content = sys.stdin.buffer.read(LARGEST_FILE + 1)
    else:
        content = read_bounded(path, LARGEST_FILE)
    if content.startswith(PACKED):
        try:
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(LARGEST_FILE + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DisaError(f"{path} is not a whole file of gzip: pack it again.") from error
    if len(content) > LARGEST_FILE:
        raise DisaError(f"the prompts in {path} are larger than {LARGEST_FILE >> 20} MiB: split them.")
    return content


def _decoded(content: bytes, where: str) -> str:
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise DisaError(
            f"{where} is not {name} text (byte {error.start + 1} is 0x{content[error.start]:02x}): save it as UTF-8."
        ) from error


# -- the kinds of files: each gives places, as messages name them, and values --------------------------------------

Values = Iterator[tuple[str, Any]]


def _values(words: str, ending: str, where: str) -> Values:
    first = _first_line(words)
    if ending in (".csv", ".tsv") or (_column(first, "\t") and "\t" in first):
        return _rows(words, where)
    if ending in (".jsonl", ".ndjson"):
        return _json_lines(words, where)
    begins = words.lstrip()[:1]
    if ending == ".json" or begins == "{":
        return _json(words, where)
    if begins == "[":
        return _json(words, where) if ending != ".txt" or _is_json(words) else _lines(words)
    return _lines(words)


def _first_line(words: str) -> str:
    return next((found.group() for found in re.finditer(r"[^\r\n]+", words) if found.group().strip()), "")


def _lines(words: str) -> Values:
    for number, line in _numbered(words, r"\r\n|\n|\r"):
        yield f"line {number}", line.strip()


def _json_lines(words: str, where: str) -> Values:
    for number, line in _numbered(words):
        yield f"line {number}", _parsed(line, f"line {number} of {where}")


def _numbered(words: str, ends: str = "\n") -> Iterator[tuple[int, str]]:
    """Lines that say something, and their numbers; one at a time, as there may be millions."""
    start = 0
    for number, end in enumerate(chain(re.finditer(ends, words), [None]), 1):
        line = words[start : end.start() if end else None]
        if line.strip():
            yield number, line
        start = end.end() if end else 0


def _json(words: str, where: str) -> Values:
    """One value, or a value in each line: the first line that says something is whole, or more lines begin anew."""
    first = [line.lstrip()[0] for _, line in islice(_numbered(words), 2)]
    if first == ["{", "{"]:
        yield from _json_lines(words, where)
        return
    whole = _parsed(words, where)
    if isinstance(whole, dict) and not _key(whole):
        lists = [value for name in LISTS if isinstance(value := whole.get(name), list)]
        objects = all(isinstance(value, dict) for value in whole.values())
        whole = lists[0] if lists else list(whole.values()) if objects else [whole]
    elif isinstance(whole, dict):
        whole = whole[_key(whole)] if isinstance(whole[_key(whole)], list) else [whole]
    if not isinstance(whole, list):
        raise DisaError(f"{where} holds {shown(whole)}: expected a JSON list of prompts.")
    yield from ((f"entry {number}", value) for number, value in enumerate(whole, 1))


def _rows(words: str, where: str) -> Values:
    first = _first_line(words)
    separator = next((each for each in SEPARATORS if _column(first, each)), None)
    if separator is None:
        raise DisaError(f"{where} has no column {either(KEYS)}: expected one in its first line, found {shown(first)}.")
    rows = csv.reader(io.StringIO(words, newline=""), delimiter=separator, strict=True)
    try:
        header = [name.strip() for name in next(row for row in rows if any(cell.strip() for cell in row))]
        for row in rows:
            place = f"line {rows.line_num}"
            if any(cell.strip() for cell in row[len(header) :]):
                wanted, found = counted(len(header), "column"), counted(len(row), "cell")
                raise DisaError(
                    f"{place} of {where} has {found}, its header has {wanted}: put a text with separators in quotes."
                )
            if any(cell.strip() for cell in row):
                yield place, dict(zip(header, row, strict=False))
    except csv.Error as error:
        raise DisaError(f"line {rows.line_num} of {where} is no row of a table: {error}.") from error


def _column(line: str, separator: str) -> str:
    """The column of the text in a header; nothing where there is none."""
    try:
        return _key(dict.fromkeys(cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])))
    except csv.Error:
        return ""


# -- one prompt ----------------------------------------------------------------------------------------------------


def _entry(value: Any, place: str) -> dict[str, Any]:
    """What is asked for, from a text or an object with one. place: where it stands, for messages."""
    key = _key(value) if isinstance(value, dict) else ""
    words = value[key] if key else value
    if not isinstance(words, str):
        named = f"its {key} is {shown(words)}" if key else f"found {shown(value)}"
        raise DisaError(f'{place} is not a prompt, {named}: expected a text, or an object with one as "prompt".')
    words = text(words, place)
    if not words.strip():
        raise DisaError(f"{place} is empty: expected words.")
    if len(words) > LONGEST_PROMPT:
        raise DisaError(f"{place} has {counted(len(words), 'character')}: expected at most {LONGEST_PROMPT}.")
    return {"prompt": words} if not key else {**value, "prompt": words}


def _key(value: dict[str, Any]) -> str:
    """Under which key the text of an object stands; nothing where there is none."""
    names = {str(name).casefold(): name for name in reversed(value)}
    return next((names[key] for key in KEYS if key in names), "")


def _parsed(words: str, place: str) -> Any:
    try:
        return parse_json(words)
    except ValueError as error:
        # place says which line of a file it is, where that counts.
        if isinstance(reason := error.__cause__, json.JSONDecodeError):
            at = f" at line {reason.lineno}" if reason.lineno > 1 else ""
            raise DisaError(f"{place} is not JSON: {reason.msg}{at}, column {reason.colno}.") from error
        raise DisaError(f"{place} is not JSON that can be read: {error}.") from error


def _is_json(words: str) -> bool:
    """Whether it is meant as JSON, which may still be refused."""
    try:
        parse_json(words)
    except ValueError as error:
        return not isinstance(error.__cause__, json.JSONDecodeError | RecursionError)
    return True


def slug(prompt: str) -> str:
    """A short name that any file system takes; where it does not say all of the prompt, a hash of that follows."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    short = words[:LONGEST_SLUG].rstrip("-")
    told = short.replace("-", " ") == prompt
    return short if told else "-".join(part for part in (short, sha256(prompt.encode()).hexdigest()[:8]) if part)
