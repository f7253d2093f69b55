"""What the documentation site has beside the pages of this folder; mkdocs calls it (`hooks` of mkdocs.yml).

The README is the first page, and other files of the repository that pages link to are pages, too, so that a link leads
to the same thing here and in the repository. Commands and Python names are made from the code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CITATION.cff": "CITATION.cff",
    **{f"examples/{name}.py": f"examples/{name}.md" for name in ("minimal", "policy", "own_model")},
}
"""Of the repository, and what they are called here."""
OTHERS = {"examples/": "examples/minimal.md"}
LINK = re.compile(r"\]\(((?!\w+:|#)[^)\s]+)\)")

ORDINARY = {
    "Drawing": ["Sampler", "Samples", "Inputs", "Settings", "Pipeline"],
    "Schedules": ["constant", "linear", "cosine", "two_stage", "table", "parse"],
    "Errors": ["DisaError"],
}
"""Names of `disa` itself."""
DEEPER = {
    "For models and policies of your own": [
        *("core.generate.generate_steps", "core.request.Request", "core.request.Guidance", "core.noise.SeededNoise"),
        *(f"core.problem.{name}" for name in ("ARModel", "DenoisingProblem", "Field", "Bound", "Process", "Noise")),
        *(f"core.problem.{name}" for name in ("TimeGrid", "Prediction", "ARStep", "Look", "Plan")),
        "core.steps.Remembering",
    ],
}
"""Names that are stable, by their module."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files of this folder."""
    made = {
        **{target: _of_repository(source) for source, target in PAGES.items()},
        "commands.md": commands(),
        "api.md": api(),
    }
    for target, content in made.items():
        files.append(File.generated(config, target, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links of a page of this folder to a file outside of it."""
    if page.file.src_uri in PAGES.values():
        return markdown
    return linked(markdown, "docs/" + page.file.src_uri, page.file.src_uri)


def linked(markdown: str, source: str, target: str) -> str:
    """The links of a file of the repository as the page `target` of the site needs them."""

    def there(found: re.Match[str]) -> str:
        path, mark, anchor = found[1].partition("#")
        wanted = (ROOT / source).parent.joinpath(path).resolve()
        name = wanted.relative_to(ROOT).as_posix() + ("/" if path.endswith("/") else "")
        here = PAGES.get(name) or OTHERS.get(name) or name.removeprefix("docs/")
        up = "../" * target.count("/")
        return f"]({up}{here}{mark}{anchor})"

    return LINK.sub(there, markdown)


def _of_repository(name: str) -> str:
    """A file of the repository as a page."""
    content = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".py"):
        title = (ast.get_docstring(ast.parse(content)) or name).splitlines()[0]
        return f"# {title.rstrip('.')}\n\n`{name}`\n\n```python\n{content}```\n"
    return linked(content, name, PAGES[name]) if name.endswith(".md") else content


# -- the reference -------------------------------------------------------------------------------------------------


def api() -> str:
    """Every public name, from its docstring."""
    import disa

    named = {name for names in ORDINARY.values() for name in names} | {"PRESETS", "__version__"}
    if missing := set(disa.__all__) ^ named:
        raise ValueError(f"give {', '.join(sorted(missing))} a place in docs/site.py")
    return "\n".join(_api())


def _api() -> Iterator[str]:
    yield "# Python\n\nMade from the code. [What is stable](stability.md) says which names stay.\n"
    for title, names in (ORDINARY | DEEPER).items():
        yield f"## {title}\n"
        yield from (f"::: disa.{name}\n" for name in names)


def commands() -> str:
    """Every command with its options, as `disa COMMAND --help` has them."""
    from typer.main import get_command

    from disa.cli import app

    group: Any = get_command(app)
    parts = ["# Commands\n", "Made from the code; `disa COMMAND --help` prints the same."]
    for name, command in group.commands.items():
        parts += [f"\n## disa {name}\n", _plain(command.help), "", *_parameters(command)]
        parts += ["", f"`{command.epilog.removeprefix('Example: ')}`"]
    return "\n".join(parts) + "\n"


def _parameters(command: Any) -> Iterator[str]:
    yield from ("| option | what it does |", "| --- | --- |")
    for each in command.params:
        if each.name in ("help", "install_completion", "show_completion"):
            continue
        flags = "/".join([*each.opts, *each.secondary_opts]) if each.param_type_name == "option" else each.name.upper()
        default = (
            "" if each.default in (None, False, ()) or callable(each.default) else f" By default `{each.default}`."
        )
        yield f"| `{flags}` | {_plain(getattr(each, 'help', None) or '').replace('|', chr(92) + '|')}{default} |"


def _plain(text: str) -> str:
    """Help as Markdown: what looks like HTML is none."""
    return re.sub(r"\s*\n\s*", " ", text).replace("<", "&lt;").strip()
