"""What is written for readers stays true: links lead somewhere, tables are those of the result files."""

import re
import runpy
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import disa

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of one."""
    found = []
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if re.match(r"\w+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path):
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# A title, here\n[a](#a-title-here) [b](#missing) [c](missing.md) [d](https://example.org)\n")
    assert broken(page) == ["#missing", "missing.md"]


def test_tables_are_those_of_the_result_files(monkeypatch: pytest.MonkeyPatch):
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    for page in tables["PAGES"]:
        text = page.read_text()
        assert tables["filled"](text) == text, f"{page.name} is out of date: python benchmarks/tables.py"


def test_the_study_of_policies_is_that_of_the_result_files(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    text = import_module("policies_write").page()
    assert text == (ROOT / "docs" / "policies.md").read_text(), "out of date: python benchmarks/policies.py write"


def test_every_entry_of_the_log_is_in_its_index():
    text = (ROOT / "docs" / "LOG.md").read_text()
    index, _, _ = text.partition("\n## 2")
    listed = re.findall(r"^- \[(.*)\]\(#.*\)$", index, re.MULTILINE)
    assert sorted(listed) == sorted(re.findall(r"^### (.*)$", text, re.MULTILINE))


def test_the_readme_is_a_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_every_file_names_this_version_and_its_day():
    citation = dict(re.findall(r"^(version|date-released): (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    latest = re.findall(r"^## \[(.*)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert citation["version"] == project["version"] == disa.__version__
    assert latest == (disa.__version__, citation["date-released"])


def test_public_names_are_in_the_statement_of_stability():
    text = (ROOT / "docs" / "stability.md").read_text()
    assert [name for name in disa.__all__ if f"`disa.{name}`" not in text] == []
