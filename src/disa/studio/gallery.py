"""The pictures of a visit: seen together, and saved together."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from zipfile import ZIP_STORED, ZipFile

from disa.errors import DisaError
from disa.studio import shown
from disa.studio.visitors import MOST_PICTURES, Picture


def html(found: Sequence[Picture]) -> str:
    """The last one first."""
    if not found:
        return shown.nothing_yet("Pictures that you draw are kept here, as long as this page is open.")
    figures = (shown.figure(each.content, each.caption, each.name) for each in reversed(found))
    cut = f" The last {MOST_PICTURES} are kept." if len(found) == MOST_PICTURES else ""
    return f'<p class="note">{shown.many(len(found))}.{cut}</p>{shown.pictures(figures, "small")}'


def zipped(found: Sequence[Picture]) -> str:
    """A zip file of all of them, as base64; equal names are numbered. Raises DisaError where there are none."""
    if not found:
        raise DisaError("there are no pictures to save yet: draw some.")
    buffer, taken = BytesIO(), dict[str, int]()
    with ZipFile(buffer, "w", ZIP_STORED) as file:
        for each in found:
            stem = each.name.removesuffix(".png")
            taken[stem] = taken.get(stem, 0) + 1
            file.writestr(f"{stem}{'' if taken[stem] == 1 else f'_{taken[stem]}'}.png", each.content)
    return b64encode(buffer.getvalue()).decode()
