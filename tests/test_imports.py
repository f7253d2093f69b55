"""Imports go one way, and the heavy ones wait until they are needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "disa"

# Lowest first. A place is a module or a package right under disa; the package's own __init__ is "disa".
# A place may import the places of its own line and of the lines above it here.
LAYERS = (
    "errors files layout",
    "core",
    "runtime",
    "codecs",
    "models",
    "weights",
    "policies",
    "draw",
    "study",
    "tiny",
    "disa",
    "bulk cli studio pipeline",
    "__main__",
)
# A model states the problem and does not solve it: no step counts, solvers or sampling noise.
NARROWER = {"models": {"models", "errors", "problem", "diffusion", "flow"}}
# The ways in: only `python -m disa` imports them.
IMPORTED_ONLY_BY = {way_in: {way_in, "__main__"} for way_in in ("bulk", "cli", "studio")}

RANK = {place: rank for rank, line in enumerate(LAYERS) for place in line.split()}
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def place(module: str) -> str:
    """The line of the table that a module belongs to: disa.models.mar.model -> models, disa -> disa."""
    return module.split(".")[1] if "." in module else module


def may_import(importer: str, imported: str) -> bool:
    return (
        RANK[imported] <= RANK[importer]
        and imported in NARROWER.get(importer, RANK)
        and importer in IMPORTED_ONLY_BY.get(imported, RANK)
    )


def imported_modules(source: str, package: str, modules: set[str]) -> Iterator[str]:
    """Modules of disa that `source`, a file of `package`, imports anywhere: in functions and for types too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules else base for name in submodules]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "disa")


def imports_of(module: str) -> set[str]:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return set(imported_modules(path.read_text(encoding="utf-8"), package, set(MODULES)))


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    assert place(module) in RANK, f"give the new module a place: add {place(module)} to LAYERS"
    wrong = {name for name in imports_of(module) if not may_import(place(module), place(name))}
    assert not wrong, f"{module} may not import {', '.join(sorted(wrong))}"


def test_no_import_cycles() -> None:
    TopologicalSorter({module: imports_of(module) - {module} for module in MODULES}).prepare()


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("generate", "models"),
        ("models", "steps"),
        ("models", "noise"),
        ("models", "solvers"),
        ("models", "generate"),
        ("steps", "sampler"),
        ("sampler", "disa"),
        ("tiny", "cli"),
        ("cli", "studio"),
    ],
)
def test_the_table_forbids(importer: str, imported: str) -> None:
    assert not may_import(importer, imported)


@pytest.mark.parametrize(
    "source",
    [
        "import disa.models.mar.model as mar",
        "from disa.models import mar",
        "from disa.models.mar.model import MAR",
        "from .models.mar import MAR",
        "from .models import mar",
        "def late():\n    from disa.models import mar",
    ],
)
def test_every_form_of_import_is_seen(source: str) -> None:
    assert set(imported_modules(source, "disa", {"disa.models", "disa.models.mar.model"})) == {"disa.models.mar.model"}


HELP = """
import contextlib, disa.cli
sys.argv = ["disa", "--help"]
with contextlib.suppress(SystemExit):
    disa.cli.main()
"""


@pytest.mark.parametrize("program", ["import disa", "import disa.cli", HELP], ids=["disa", "disa.cli", "disa --help"])
def test_heavy_imports_wait(program: str) -> None:
    heavy = {"torch", "diffusers", "transformers", "matplotlib", "sklearn", "scipy"}
    report = f"import sys\n{program}\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
