"""The documentation site: it builds, what is wrong in it fails the build, and it asks nobody for anything."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from disa import __all__ as public
from disa.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Elements whose address a browser fetches by itself."""
NOT_FETCHED = {"canonical", "next", "prev"}
"""Kinds of `link` that only name a page."""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """mkdocs warns of its own future, and adds a handler to the log of whoever calls it."""
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    log = logging.getLogger("mkdocs")
    before = list(log.handlers)
    yield
    log.handlers[:] = before


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


class Fetched(HTMLParser):
    """The addresses that a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in FETCHED and given.get("rel") not in NOT_FETCHED:
            self.found.append(given.get(FETCHED[tag]) or "")


def from_elsewhere(html: str) -> list[str]:
    """The addresses on other machines among them, also those in styles."""
    page = Fetched()
    page.feed(html)
    addresses = page.found + re.findall(r"url\(\s*['\"]?([^'\")]*)", html)
    return [address for address in addresses if re.match(r"(\w+:)?//", address)]


def test_the_site_builds_and_fetches_nothing(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in [*pages, *site.rglob("*.css")]:
        assert from_elsewhere(page.read_text()) == [], page.name
    # The theme fetches its library for diagrams where a page has one.
    assert not [page.name for page in pages if 'class="mermaid"' in page.read_text()]


def test_the_reference_has_every_command_and_every_name(site: Path) -> None:
    commands, api = ((site / name).read_text() for name in ("commands.html", "api.html"))
    names = [command.__name__.replace("_", "-") for command in COMMANDS]
    assert re.findall(r'<h2 id="disa-([\w-]+)"', commands) == names
    assert "--num-ar-steps" in commands
    missing = [name for name in public if name not in ("PRESETS", "__version__") and f'id="disa.{name}"' not in api]
    assert missing == []
    assert 'id="disa.Sampler.sample"' in api


def test_links_out_of_the_folder_lead_to_pages(site: Path) -> None:
    using = (site / "using.html").read_text()
    assert 'href="examples/own_model.html"' in using
    assert 'href="changelog.html"' in (site / "stability.html").read_text()
    assert 'href="results.html"' in (site / "index.html").read_text()
    assert "class LineModel" in re.sub(r"<[^>]*>", "", (site / "examples" / "own_model.html").read_text())


@pytest.mark.parametrize(
    ("pages", "nav"),
    [
        ({"index.md": "# A\n\n[b](missing.md)"}, ["index.md"]),
        ({"index.md": "# A\n\n[b](b.md#missing)", "b.md": "# B"}, ["index.md", "b.md"]),
        ({"index.md": "# A", "b.md": "# B"}, ["index.md"]),
        ({"index.md": "# A\n\n![b](missing.png)"}, ["index.md"]),
        ({"index.md": "# A\n\n::: disa.missing"}, ["index.md"]),
    ],
    ids=["link", "anchor", "not in the navigation", "picture", "name"],
)
def test_what_is_wrong_fails_the_build(tmp_path: Path, pages: dict[str, str], nav: list[str]) -> None:
    whole: Any = load_config(str(ROOT / "mkdocs.yml"))
    (tmp_path / "docs").mkdir()
    for name, text in pages.items():
        (tmp_path / "docs" / name).write_text(text)
    found: Any = load_config(
        str(ROOT / "mkdocs.yml"), docs_dir=str(tmp_path / "docs"), site_dir=str(tmp_path / "site"), nav=nav, hooks=[]
    )
    assert (found.strict, found.validation) == (True, whole.validation)
    with pytest.raises(Abort):
        build(found)


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<script src="https://cdn.example/a.js"></script>', ["https://cdn.example/a.js"]),
        ('<link rel="stylesheet" href="//fonts.example/a.css">', ["//fonts.example/a.css"]),
        ("<style>@font-face { src: url('https://fonts.example/a.woff') }</style>", ["https://fonts.example/a.woff"]),
        ('<a href="https://example.org">a</a><img src="a.png"><link rel="canonical" href="https://example.org">', []),
    ],
)
def test_what_would_be_fetched_is_seen(html: str, expected: list[str]) -> None:
    assert from_elsewhere(html) == expected
