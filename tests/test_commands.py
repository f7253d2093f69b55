"""Every command of the README and of docs/ works, in a temporary folder.

Each command of `disa` in a block of such a page is one of three:

- **Run**: `RUN` lists pages whose commands are run from the first to the last. They are made small by one rule: what
  draws gets `--num-ar-steps 2`, and numbers and seeds of images are those of `FEWER`.
- **Tried**, all others: everything happens up to the first AR step, so that every option, file, label and model has
  been checked. Weights that cannot be had are replaced by small random ones of the same family, classes and defaults.
- **Parsed**: `PARSED` lists those of which only the names and forms of options are checked, each with the reason.

Blocks also have commands of other programs: `OTHERS` has the reason why each is left out. In the text, `disa COMMAND`
may name only commands and options that there are.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

from command import Command
from disa import cli
from disa.draw.loaded import PixelCodec
from disa.draw.run import Run
from disa.draw.sampler import Sampler
from disa.files import write_json
from disa.models.registry import PRESETS
from disa.models.spec import Preset
from disa.serve import server
from disa.weights.package import in_package
from small import changed, randomised

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^```sh\n(.*?)^```|((?:^    (?:disa|python) [^\n]*\n(?:^     [^\n]*\n)*)+)", re.MULTILINE | re.DOTALL
)
INLINE = re.compile(r"`disa ([a-z-]+)((?:\s+[^`]*)?)`")

RUN = {"start.md", "bulk.md"}
"""Pages whose commands are run; those of them that other tables name are not."""
FEWER = {"--per-label": "2", "--seeds": "0-1"}

GPUS = "wants several GPUs or a cluster: tests/test_bulk_ray.py and tests/test_serve_ray.py draw with Ray"
WORDS = "wants the published language model and its tokenizer"
READS = "reads a published checkpoint: tests/test_checkpoints.py reads files of that form"
PAGE = "serves a page until it is stopped: tests/test_studio_browser.py opens it"
MEASURED = "reads what others have measured: tests/test_evaluate.py and tests/test_geneval.py have such files"
SAME = "goes on with what was drawn before: such commands are run in bulk.md"
PARSED = {
    r".* bulk .*(--workers (8|32|44|\"?\$workers)|--address|--out \$run)": GPUS,
    r".* bulk (--model \./mar-base|\$what|--\w+ \"\$run\")": GPUS,
    r".* serve .*--ray": GPUS,
    r".* (sample|describe) .*--model (harmon-[01]|nextstep|unipic)": WORDS,
    r".* convert": READS,
    r".* studio": PAGE,
    r".* evaluate (results\.jsonl|score_lists\.json|run --against VIRTUAL)": MEASURED,
    r"(README|using|evaluate|guide-measure|guide-many).md (evaluate|bulk|sample .*--resume)": SAME,
}
"""Pages and the beginnings of commands, without `disa`, of which only the options are checked; and why."""

OTHERS = {
    "pip": "installs packages",
    "python": "runs a script of this repository, which must be there, or another project's",
    ".": "enters an environment",
    "make": "CI runs `make test`, and tests/test_site.py builds the site",
    "curl": "tests/test_serve.py posts the bodies to a server",
    "openssl": "is no part of disa",
    "export": "sets the environment",
    "ray": "starts a cluster",
    "aws": "copies to a store of files",
    "rm": "removes what was copied",
    "srun": "is Slurm's", "sleep": "waits for Slurm", "if": "is the shell's",
    "fi": "is the shell's", "for": "is the shell's", "done": "is the shell's", "exit": "is the shell's",
}  # fmt: skip
ASSIGNED = re.compile(r"\w+=")


@dataclass(frozen=True)
class Line:
    """A command of a page."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """As the shell would hand them over, with variables as they are written."""
        return shlex.split(self.text)

    @property
    def first(self) -> str:
        return self.text.split()[0]

    @property
    def of_disa(self) -> str:
        """What follows `disa`; nothing for other programs."""
        return self.text.removeprefix("disa ") if self.text.startswith("disa ") else ""


def lines_of(page: Path) -> Iterator[Line]:
    """The commands of the blocks of a page."""
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        whole = (block[1] or block[2]).replace("\\\n", " ")
        for line in whole.splitlines():
            bare = re.sub(r"(^|\s+)#.*$", "", line).strip()
            for part in re.split(r"\s(?:&&|\|\||;)\s|;\s", bare):
                text = re.sub(r"\s+", " ", part).strip(" &;")
                text = re.sub(r"^(then|else|do)( |$)", "", text)
                if text:
                    yield Line(page.name, text)


LINES = [line for page in PAGES if page.name != "LOG.md" for line in lines_of(page)]
OURS = [line for line in LINES if line.of_disa]


def reason(line: Line) -> str | None:
    """Why a command is only parsed."""
    return next((why for pattern, why in PARSED.items() if re.match(pattern, f"{line.page} {line.of_disa}")), None)


def variables(words: list[str]) -> list[str]:
    """With something in place of what only a shell knows."""
    known = {"$what": ["--resume", "run"], "$run": ["run"], "$workers": ["8"]}
    found = [part for word in words for part in known.get(word, [word])]
    return [re.sub(r"\$\w+|\$\(.*?\)", "x", word) for word in found]


# -- run -----------------------------------------------------------------------------------------------------------


def made_small(words: list[str]) -> list[str]:
    """A command as it is run: the rule of this file's first lines."""
    small = [FEWER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    draws = words[0] in ("sample", "compare", "bulk") and not {"--resume", "--status", "--verify", "--export"} & {
        *words
    }
    if draws and "--num-ar-steps" not in words:
        small += ["--num-ar-steps", "2"]
    return [("2" if before == "--num-ar-steps" else word) for before, word in zip(["", *small], small, strict=False)]


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(RUN))
def test_commands_are_run(page: str, disa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    for line in OURS:
        if line.page == page and not reason(line):
            done = disa(*made_small(line.words[1:]))
            assert done.code == 0, (line.text, done.err)
            ran += 1
    assert ran >= 3


# -- tried ---------------------------------------------------------------------------------------------------------


class Drawing(BaseException):
    """A command has come to its first AR step, or to its first request."""


@cache
def stand_in(name: str) -> Sampler:
    """A published model with few and random weights. The name is a preset's, or of a folder with such weights."""
    own = PRESETS.get(name.rpartition("/")[2]) or PRESETS["mar-base"]
    config: Any = own.spec.architecture
    widths = {each: 32 for each in vars(config) if each.endswith("width") or each == "width"}
    depths = {each: 1 for each in vars(config) if each.endswith("depth")}
    heads = {each: 2 for each in vars(config) if each.endswith("heads") or each == "num_heads"}
    modulations = {"head_modulations": 1} if hasattr(config, "head_modulations") else {}
    preset: Preset = changed(own, architecture=replace(config, **widths | depths | heads | modulations))
    return Sampler(preset, randomised(preset.build()), PixelCodec())


def loads(real: Callable[..., Sampler]) -> Callable[..., Sampler]:
    """In place of `Sampler.load`: what ships is read once, all else is a stand-in."""
    kept = cache(real)

    def load(name: str, checkpoint: Any, vae: Any, *how: Any, **more: Any) -> Sampler:
        preset = PRESETS.get(name)
        if preset is not None and preset.embedded:
            return kept(name, checkpoint, vae, *how, **more)
        return stand_in(name)._drawn_by(more.get("recipe"))

    return load


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds the files that commands name: those that other commands write, and pictures."""
    monkeypatch.chdir(tmp_path)
    for name in ("picture.png", "barn.png"):
        Image.new("RGB", (48, 48), "red").save(tmp_path / name)
    for name in ("calibration", "tuned"):
        (tmp_path / name).mkdir()
    shutil.copy(in_package("mar-digits-plan.json"), tmp_path / "calibration" / "plan.json")
    shutil.copy(in_package("mar-digits-probe.safetensors"), tmp_path / "probe.safetensors")
    write_json(tmp_path / "calibration" / "table.json", [9, 5, 1])
    write_json(tmp_path / "tuned" / "recipe.json", {"format": 1, "settings": {"steps": "linear:9-2"}})
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "keys").write_text("k" * 20)
    return tmp_path


@pytest.mark.slow
def test_commands_are_tried(folder: Path, disa: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise Drawing

    monkeypatch.setattr(Sampler, "load", loads(Sampler.load))
    monkeypatch.setattr(Run, "__next__", stop)
    monkeypatch.setattr(Sampler, "describe_steps", stop)
    monkeypatch.setattr(server, "make_server", stop)
    wrong, before = [], sorted(folder.rglob("*"))
    for line in OURS:
        if line.page in RUN or reason(line):
            continue
        try:
            done = disa(*line.words[1:])
        except Drawing:
            continue
        if done.code:
            wrong.append((line.page, line.text, done.err))
    assert not wrong, "\n".join(map(str, wrong))
    assert [path for path in before if not path.exists()] == []


# -- parsed --------------------------------------------------------------------------------------------------------


@cache
def group() -> Any:
    return get_command(cli.app)


def parsed(words: list[str]) -> None:
    """Raises a TyperException where there is no such command or option, or a value is missing or of another form."""
    if words != ["--version"]:
        group().commands[words[0]].make_context(words[0], words[1:])


@pytest.mark.parametrize("page", sorted({line.page for line in OURS}))
def test_commands_are_parsed(page: str) -> None:
    for line in OURS:
        if line.page == page:
            parsed(variables(line.words[1:]))


def test_commands_in_the_text_have_options_that_there_are() -> None:
    wrong = []
    for page in PAGES:
        if page.name == "LOG.md":
            continue
        for name, rest in INLINE.findall(page.read_text(encoding="utf-8")):
            command = group().commands.get(name) or (group() if name.startswith("-") else None)
            if command is None:
                wrong.append(f"{page.name}: disa {name}")
                continue
            known = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)} | {"--help"}
            flags = re.findall(r"--[a-z-]+", f"{name} {rest}")
            wrong += [f"{page.name}: {flag}" for flag in flags if flag not in known]
    assert not wrong


# -- that nothing is left out --------------------------------------------------------------------------------------


def test_every_other_program_has_its_reason() -> None:
    wrong = []
    for line in LINES:
        if not (line.of_disa or line.first in OTHERS or ASSIGNED.match(line.first)):
            wrong.append((line.page, line.text))
        if line.first == "python" and line.words[1].startswith(("benchmarks", "tests", "examples")):
            assert (ROOT / line.words[1]).is_file(), line.text
    assert not wrong


def test_every_reason_is_needed() -> None:
    assert [
        pattern for pattern in PARSED if not any(re.match(pattern, f"{line.page} {line.of_disa}") for line in OURS)
    ] == []
    firsts = {line.first for line in LINES}
    assert [name for name in OTHERS if name not in firsts] == []
    assert {line.page for line in OURS} >= RUN


def test_blocks_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\npip install .  # all\ndisa sample --out a \\\n    --labels 3   # one\ndisa bulk --verify a && rm -r a\n"
        "```\n\ntext\n\n    disa compare --seeds 0-1 \\\n        --out b\n    python x.py\n"
        "\ntext\n\n    other\n\n```py\nx\n```\n"
    )
    assert [line.text for line in lines_of(page)] == [
        "pip install .", "disa sample --out a --labels 3", "disa bulk --verify a", "rm -r a",
        "disa compare --seeds 0-1 --out b", "python x.py",
    ]  # fmt: skip
