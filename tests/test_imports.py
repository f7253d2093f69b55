"""Imports go one way, and the heavy ones wait until they are needed."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "disa"

# Lowest first. A place is a module or a package right under disa; the package's own __init__ is "disa".
# A place may import itself and the places of the lines above it here; places of one line know nothing of each other,
# so that nothing but `python -m disa` imports the ways in.
PLACES = (
    "errors stopping",
    "values",
    "reading",
    "files layout progress",
    "core",
    "runtime",
    "codecs",
    "models",
    "weights",
    "policies",
    "draw",
    "study",
    "bulk",
    "tiny",
    "evaluate",
    "pipeline serve",
    "studio",
    "disa",
    "cli",
    "__main__",
)
# What a place may import if that is less. A model states the problem and does not solve it: no step counts, solvers or
# sampling noise.
NARROWER = {
    "core": "core errors values reading",
    "models": "models errors values layout runtime codecs "
    "core.request core.problem core.fields core.constants core.capabilities core.diffusion core.flow core.orders "
    "core.places core.reuse core.work",
}

RANK = {place: rank for rank, line in enumerate(PLACES) for place in line.split()}
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def place(module: str) -> str:
    """The place of a module: disa.models.mar.model -> models, disa -> disa."""
    return module.split(".")[1] if "." in module else module


def may_import(importer: str, imported: str) -> bool:
    """Whether a module may import another one, both by their full names."""
    here, there = place(importer), place(imported)
    allowed = NARROWER.get(here)
    within = allowed is None or any(f"{imported}.".startswith(f"disa.{name}.") for name in allowed.split())
    return within and (here == there or RANK[there] < RANK[here])


def all_imports(source: str, package: str, modules: set[str]) -> Iterator[str]:
    """Modules that `source`, a file of `package`, imports anywhere: in functions and for types too."""
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
        yield from names


def imported_modules(source: str, package: str, modules: set[str]) -> Iterator[str]:
    """Those of them that are disa's."""
    return (name for name in all_imports(source, package, modules) if name.split(".")[0] == "disa")


def imports_of(module: str) -> set[str]:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return set(imported_modules(path.read_text(encoding="utf-8"), package, set(MODULES)))


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    assert place(module) in RANK, f"give the new module a place: add {place(module)} to PLACES"
    wrong = {name for name in imports_of(module) if not may_import(module, name)}
    assert not wrong, f"{module} may not import {', '.join(sorted(wrong))}"


def test_no_import_cycles() -> None:
    TopologicalSorter({module: imports_of(module) - {module} for module in MODULES}).prepare()


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("core.steps", "from disa.files import write_json"),
        ("core.generate", "from disa.runtime import clock"),
        ("core.problem", "def late():\n    from ..models.mar import model"),
        ("codecs.small", "import disa.models.layers as layers"),
        ("models.guided", "from disa.core import steps"),
        ("models.mar.model", "from disa.core.solvers import make_solver"),
        ("models.mar.model", "from ...core.noise import SeededNoise"),
        ("models.registry", "from disa.weights.checkpoints import load_model"),
        ("draw.sampler", "from disa.study import compare"),
        ("draw.samples", "import disa"),
        ("tiny.train", "if TYPE_CHECKING:\n    from disa.cli.output import table"),
        ("serve.app", "from disa import studio"),
        ("pipeline", "from disa import serve"),
        ("serve.app", "from disa.cli import main"),
    ],
)
def test_an_import_that_goes_the_other_way_is_seen(importer: str, source: str) -> None:
    modules = {*MODULES, "disa.studio"}
    found = list(imported_modules(source, f"disa.{importer}".rpartition(".")[0], modules))
    assert len(found) == 1
    assert not may_import(f"disa.{importer}", found[0])


@pytest.mark.parametrize(
    "source",
    [
        "import disa.core.problem as problem",
        "from disa.core import problem",
        "from disa.core.problem import Process",
        "from ..core.problem import Process",
        "from ..core import problem",
        "def late():\n    from disa.core import problem",
    ],
)
def test_every_form_of_import_is_seen(source: str) -> None:
    assert set(imported_modules(source, "disa.models", set(MODULES))) == {"disa.core.problem"}
    assert may_import("disa.models.layers", "disa.core.problem")


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    used = ("diffusers", "harmon", "bulk", "serve", "studio", "kernels", "evaluate")
    wanted = [*project["dependencies"], *(line for extra in used for line in extras[extra])]
    declared = {re.split(r"[^\w-]", line)[0].replace("_", "-").lower() for line in wanted}
    sources = (path.read_text(encoding="utf-8") for path in MODULES.values())
    libraries = {name.split(".")[0] for source in sources for name in all_imports(source, "disa", set())}
    homes = packages_distributions()
    imported = {
        homes.get(name, [name])[0].replace("_", "-").lower() for name in libraries - {"disa"} - sys.stdlib_module_names
    }
    assert imported == declared


# --- what is imported before it is needed ---------------------------------------------------------------------------

HELP = """
import contextlib, disa.cli
sys.argv = ["disa", "--help"]
with contextlib.suppress(SystemExit):
    disa.cli.main()
"""
DRAW = """
from disa.draw.sampler import Sampler
Sampler.load("mar-digits", device="cpu").sample(3, 0, steps="constant:1", num_ar_steps=2, output_type="pt")
"""
SERVING = "fastapi uvicorn prometheus_client gradio "
FOR_ALL = SERVING + "ray torch numpy safetensors huggingface_hub diffusers transformers PIL matplotlib sklearn scipy"
FOR_SOME = SERVING + "ray typer rich PIL matplotlib sklearn scipy huggingface_hub diffusers transformers"


@pytest.mark.parametrize(
    ("program", "heavy"),
    [("import disa", FOR_ALL + " typer rich"), ("import disa.cli", FOR_ALL), (HELP, FOR_ALL), (DRAW, FOR_SOME)],
    ids=["disa", "disa.cli", "disa --help", "drawing"],
)
def test_heavy_imports_wait(program: str, heavy: str) -> None:
    report = f"import sys\n{program}\nprint(sorted({set(heavy.split())} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_schedule_needs_nothing_but_python() -> None:
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in sys.stdlib_module_names | {"disa"}:
            raise ImportError(f"{name} is imported")
sys.meta_path.insert(0, Refuse())
import disa
for text in ("linear:50-5", "cosine:50-5", "two-stage:50-5", "constant:50"):
    assert disa.parse(text).at(0, 64) == 50
print(disa.linear(50, 5).counts(4))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[50, 35, 20, 5]\n"
