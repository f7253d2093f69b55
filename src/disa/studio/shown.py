"""What a page shows, as HTML."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from disa.values import counted


@dataclass(frozen=True)
class Shown:
    """What has changed on a page. None leaves a part of it as it is."""

    stage: str | None = None
    """Pictures, as HTML."""
    said: str = ""
    """A sentence in plain text."""
    wrong: bool = False
    """Whether the sentence is of something that went wrong."""
    busy: bool = True
    """Whether there is more to come."""
    gallery: str | None = None


@dataclass(frozen=True)
class Spent:
    """What drawing took so far."""

    seconds: float = 0.0
    evaluations: int = 0
    seconds_head: float = 0.0
    seconds_backbone: float = 0.0
    ar_step: int = 0
    """AR steps that are done."""
    num_ar_steps: int = 0


def sentence(said: str, wrong: bool = False) -> str:
    """For those who look, and for those who are read to."""
    kind, role = ("wrong", "alert") if wrong else ("said", "status")
    return f'<p class="{kind}" role="{role}">{escape(said)}</p>' if said else ""


def image(content: bytes, told: str, kind: str = "") -> str:
    """A picture of PNG bytes. told: in words, for those who cannot see it."""
    data = b64encode(content).decode()
    return f'<img class="{kind}" src="data:image/png;base64,{data}" alt="{escape(told)}">'


def figure(content: bytes, caption: str, name: str = "") -> str:
    """A picture with a caption. name: of the file that it can be saved as; none while it is drawn."""
    save = f'<button class="save" data-name="{escape(name)}" aria-label="Save {escape(name)}">Save</button>'
    return (
        f"<figure>{image(content, caption)}<figcaption><span>{escape(caption)}</span>"
        f"{save if name else ''}</figcaption></figure>"
    )


def pictures(figures: Iterable[str], kind: str = "") -> str:
    """Figures in rows; `kind` says how large they are."""
    found = list(figures)
    return f'<div class="pictures {kind} n{min(len(found), 5)}">{"".join(found)}</div>'


def numbers(spent: Spent) -> str:
    """What drawing took, in large figures, and how the time is shared."""
    told = [
        (f"{spent.seconds:.2f} s", "drawing time"),
        (f"{spent.evaluations:,}", "evaluations"),
        (f"{spent.ar_step} / {spent.num_ar_steps}", "AR steps"),
    ]
    cells = "".join(f"<div><strong>{value}</strong><span>{name}</span></div>" for value, name in told)
    return f'<div class="numbers">{cells}</div>{shares(spent)}'


def shares(spent: Spent) -> str:
    """How much of the time is of the head, and of the backbone."""
    whole = max(spent.seconds, spent.seconds_head + spent.seconds_backbone)
    if not whole:
        return ""
    head, backbone = (100 * part / whole for part in (spent.seconds_head, spent.seconds_backbone))
    told = f"head {head:.0f} %, backbone {backbone:.0f} % of the time"
    return (
        f'<div class="shares" role="img" aria-label="{told}"><i class="head" style="width:{head:.1f}%"></i>'
        f'<i class="backbone" style="width:{backbone:.1f}%"></i></div><p class="key">'
        f'<span><b class="head"></b>head {head:.0f} %</span> <span><b class="backbone"></b>backbone {backbone:.0f} %'
        "</span></p>"
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Texts in rows; the first of each row is its title."""
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def nothing_yet(told: str) -> str:
    """What is shown where there are no pictures yet."""
    return f'<div class="empty">{escape(told)}</div>'


def progress(done: int, whole: int, told: str) -> str:
    """A bar."""
    return (
        f'<div class="progress"><progress value="{done}" max="{max(1, whole)}" aria-label="{escape(told)}"></progress>'
        f"<span>{escape(told)}</span></div>"
    )


def many(count: int) -> str:
    """A title of so many pictures."""
    return counted(count, "picture")
