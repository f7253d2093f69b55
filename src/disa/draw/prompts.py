"""Prompts as users give them: files of them, and names of files made from them."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from disa.errors import DisaError

LONGEST_SLUG = 40


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """What a file asks for, objects with a "prompt" each.

    The file is a JSON list of such objects or of texts, or has one such object a line, as GenEval's list of prompts.
    Raises DisaError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DisaError(f"cannot read the prompts in {path}: {reason}.") from error
    whole = _parsed(text)
    entries = whole if isinstance(whole, list) else [_parsed(line) for line in text.splitlines() if line.strip()]
    entries = [{"prompt": entry} if isinstance(whole, list) and isinstance(entry, str) else entry for entry in entries]
    asked = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
            raise DisaError(
                f"entry {number} of {path} is not a prompt: expected a JSON list of texts, or JSON objects "
                'with a text as "prompt" in a list or one a line; no text empty.'
            )
        asked.append(entry)
    if not asked:
        raise DisaError(f"{path} holds no prompt: expected at least one.")
    return asked


def _parsed(text: str) -> Any:
    """None where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def slug(prompt: str) -> str:
    """A short name that any file system takes; where it does not say all of the prompt, a hash of that follows."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    short = words[:LONGEST_SLUG].rstrip("-")
    told = short.replace("-", " ") == prompt
    return short if told else "-".join(part for part in (short, sha256(prompt.encode()).hexdigest()[:8]) if part)
