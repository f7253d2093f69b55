"""Build the wheel and the source archive, and see that they work: `make dist`.

    python .ci/dist.py FOLDER

The wheel is built from the source archive, as those who package disa do. Both are checked for what they hold; the wheel
is installed into a bare environment of its own, where `disa demo --quick` must draw. Versions are those of
constraints.txt. Packages alone are downloaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 20_000_000
"""Bytes of a wheel."""
IN_SOURCE = (
    *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md"),
    *("Makefile", "constraints.txt", "mkdocs.yml", ".gitignore", ".ci/run", ".ci/dist.py", "docs/site.py"),
    *("tests/conftest.py", "tests/unchanged.json", "examples/minimal.py", "benchmarks/tables.py"),
)
"""Among what it must hold: all that the tests read."""


def main() -> None:
    """Build, check, install and draw; whatever is wrong ends it."""
    out = Path(sys.argv[1]).resolve()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for old in out.glob("disa-*"):
        old.unlink()
    pins = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PIP_BUILD_CONSTRAINT": str(ROOT / "constraints.txt")}
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, quiet=True, **pins)
    source, wheel = out / f"disa-{version}.tar.gz", out / f"disa-{version}-py3-none-any.whl"
    check_source(source, f"disa-{version}")
    check_wheel(wheel)
    with tempfile.TemporaryDirectory() as temporary:
        draw(wheel, Path(temporary), version, pins)
    for made in (source, wheel):
        print(
            f"{made.relative_to(Path.cwd()) if made.is_relative_to(Path.cwd()) else made}: {made.stat().st_size} bytes"
        )


def run(*command: object, quiet: bool = False, where: Path = ROOT, **more: str) -> None:
    """A command, in an environment that knows nothing of this checkout; it ends this program where it fails."""
    known = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    output = subprocess.PIPE if quiet else None
    done = subprocess.run(
        list(map(str, command)), cwd=where, env=known | more, stdout=output, stderr=output, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed ({done.returncode}).\n{(done.stderr or '')[-3000:]}")


def check_source(path: Path, top: str) -> None:
    """Everything that the tests need is there."""
    with tarfile.open(path) as archive:
        names = {name.removeprefix(f"{top}/") for name in archive.getnames()}
    if missing := [name for name in IN_SOURCE if name not in names]:
        sys.exit(f"{path.name} lacks {', '.join(missing)}.")


def check_wheel(path: Path) -> None:
    """The package with its weights, and nothing beside it."""
    if (size := path.stat().st_size) > LARGEST:
        sys.exit(f"{path.name} has {size} bytes: expected at most {LARGEST}.")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    if others := [top for top in tops if top != "disa" and not top.endswith(".dist-info")]:
        sys.exit(f"{path.name} also holds {', '.join(others)}.")
    sources = {str(file.relative_to(ROOT / "src")) for file in (ROOT / "src").rglob("*") if file.is_file()}
    own = {name for name in sources if "__pycache__" not in name and ".egg-info" not in name}
    if missing := sorted(own - set(names)):
        sys.exit(f"{path.name} lacks {', '.join(missing)}.")


def draw(wheel: Path, folder: Path, version: str, pins: dict[str, str]) -> None:
    """In a bare environment, from a folder that is not the checkout."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "--disable-pip-version-check", "install", wheel, quiet=True, where=folder, **pins)
    run(python, "-m", "disa", "demo", "--quick", "--out", folder / "demo", where=folder)
    if not list((folder / "demo").glob("*.png")):
        sys.exit("the demo drew no picture.")
    told = subprocess.run([python, "-m", "disa", "--version"], capture_output=True, text=True, cwd=folder, check=True)
    if told.stdout.strip() != f"disa {version}":
        sys.exit(f"disa --version says {told.stdout.strip()!r}: expected disa {version}.")


if __name__ == "__main__":
    main()
