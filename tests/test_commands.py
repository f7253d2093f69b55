"""Every command of the README and of docs/ is run, in a temporary folder, page by page from the first to the last.

`serve` and `studio` are run until they have answered a request. Everything is made small by one rule, `made_small`:

- Models draw in few AR steps and few denoising steps. Those that are published have few and random weights, in files as
  their authors write them, and from a hub that is a folder here (tests/published.py). So has mar-digits, but on the
  pages of `WITH_WHAT_SHIPS`.
- Numbers of images, seeds, workers and measurements are those of `FEWER`; `ADDED` gives commands that say none such
  numbers. `CONSTANTS` are numbers of the library that no option says.
- Paths are within the temporary folder, and variables are what `VARIABLES` says. A page that shows several ways to
  draw into one folder finds it empty each time; one that goes on with what was drawn finds that something is missing.
- The networks that see photographs are a random one. Ray is tests/local_ray.py, within this process: each command would
  start real workers anew. tests/test_bulk_command.py draws with those.

A page whose commands need what other pages draw has that drawn first: `BEFORE`. Blocks also have commands of other
programs: `OTHERS` has the reason why each is left out. In the text, `disa COMMAND` may name only commands and options
that there are.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

import published
from command import Command, Done
from disa import cli
from disa.draw.sampler import Sampler
from disa.models.registry import PRESETS
from disa.models.spec import Preset
from disa.studio.server import Open
from disa.study.tuned import Tuned
from local_ray import LocalRay
from serving import Answer, Client

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^```sh\n(.*?)^```|((?:^    (?:disa|python) [^\n]*\n(?:^     [^\n]*\n)*)+)", re.MULTILINE | re.DOTALL
)
INLINE = re.compile(r"`disa ([a-z-]+)((?:\s+[^`]*)?)`")

FEWER = {
    r"--steps ((?:constant|linear):\d+)\d\b": r"--steps \1",
    r"--num-ar-steps \d+": f"--num-ar-steps {published.AR_STEPS}",
    r"--per-label \d+": "--per-label 2",
    r"--labels 0-999": "--labels 0-9",
    r"--labels 0-7": "--labels 0-1",
    r"--seeds 0-7": "--seeds 0-1",
    r"--seeds (\d*)\d-\d\d+": r"--seeds \g<1>0-\g<1>1",
    r"--minutes \d+": "--minutes 1",
    r"--varied \d+": "--varied 2",
    r"--draws \d+": "--draws 2",
    r"--draw-steps \d+": "--draw-steps 2",
    r"--path-steps \d+": "--path-steps 3",
    r"--fit-images \d+": "--fit-images 8",
    r"--workers [1-9]\d*": "--workers 2",
    r"--device cuda": "--device cpu",
    r"--port \d+": "--port FREE",
    r"(?<= )/(\w+/)*": "./",
}
"""In the text of a command: what is small instead."""
ADDED = {
    r"compare": "--seeds 0-9",
    r"calibrate": "--seeds 0-3 --most 5",
    r"calibrate .*--counts-only": "--reference 16",
    r"evidence": "--seeds 0-1 --varied 2 --draws 2 --draw-steps 2 --path-steps 3",
    r"evidence .*(mar|harmon)-": "--fit-images 8",
    r"tune": "--labels 0-1",
    r"fit-probe": "--seeds 0-7",
    r"bench": "--repeats 1 --batch-size 1",
    r"describe": "--max-tokens 4",
    r"evaluate": "--resamples 20",
    r"bulk --verify": "--sample 1",
    r"serve": "--port FREE",
    r"studio": "--port FREE --device cpu",
}
"""Options of the commands that begin so, where they do not say them."""
CONSTANTS: dict[str, Any] = {
    "disa.study.times.NUM_TIMES": 8,
    "disa.study.planning.NUM_TIMES": 8,
    "disa.study.fit.ITERATIONS": 5,
    "disa.study.planning.SCALES": (1.0, 0.7),
    "disa.study.planning.VARIED": 2,
    "disa.study.tuning.FIRST": 4,
    "disa.study.tuning.ALONE": 4,
    "disa.study.tuning.MOST_IMAGES": 8,
    "disa.study.tuning.TRIED_TOGETHER": 3,
    "disa.cli.tuning.MOST_TOGETHER": 2,
}
VARIABLES = {
    '"$run"': "run", "$what": "--resume run", '"$HOME/mar-base"': "./mar-base", '"$head:6379"': "FIRST:6379",
    '"$workers"': "2",
}  # fmt: skip
CONVERT = "disa convert checkpoint-last.pth --model mar-base --vae kl16.ckpt --out mar-base"
RUN = "disa bulk --model {} --labels 0-9 --per-label 2 --workers 0 --out {}"
BEFORE = {
    **{page: [CONVERT] for page in ("bulk.md", "cluster.md", "guide-many.md", "serve.md", "studio.md")},
    "evaluate.md": [
        CONVERT, RUN.format("./mar-base", "run"), RUN.format("mar-digits", "out"), RUN.format("mar-digits", "a"),
        RUN.format("mar-digits", "b --steps constant:2"),
    ],
}  # fmt: skip
"""What pages take for granted."""
WITH_WHAT_SHIPS = {"start.md", "bulk.md", "adaptive.md"}
"""Pages on which mar-digits is what ships; it has probes, which fit no other weights."""
OPTION, KEY = re.compile(r"(--\S+) (\S+)"), "k" * 20
STOPPED = 128 + signal.SIGTERM
SENT = {"Authorization": f"Bearer {KEY}"}

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


# -- the rule ------------------------------------------------------------------------------------------------------


def made_small(text: str, port: int, address: str) -> list[str]:
    """The words of a command as it is run. port: a free one. address: where somebody listens, as Ray would."""
    for written, meant in VARIABLES.items():
        text = text.replace(written, meant)
    for written, small in FEWER.items():
        text = re.sub(written, small, text)
    said = {*text.split()}
    for beginning, options in ADDED.items():
        if re.match(f"disa {beginning}", text):
            text += "".join(f" {name} {value}" for name, value in OPTION.findall(options) if name not in said)
    return shlex.split(text.replace("FREE", str(port)).replace("FIRST:6379", address))[1:]


def make_way(words: list[str]) -> None:
    """What is drawn anew is not there yet; of what is gone on with something is missing."""
    options = dict(pairwise(words))
    if words[0] not in ("sample", "bulk") or {"--status", "--verify", "--export"} & {*words}:
        return
    out = Path(options.get("--out", "out"))
    if "--resume" not in words:
        shutil.rmtree(out, ignore_errors=True)
    elif words[0] == "sample":
        next((out / "samples").iterdir()).unlink()
    else:
        next((Path(options["--resume"]) / "shards").glob("*.tar")).unlink()


# -- run -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shelf:
    """What every page finds: files in a folder, and presets, of which the published ones are small."""

    folder: Path
    presets: dict[str, Preset]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    for name in ("diffusers", "transformers"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("shelf")
    presets = published.small_presets()
    published.write_files(folder, presets)
    published.write_measured(folder)
    for name in ("picture.png", "barn.png"):
        Image.new("RGB", (64, 64), "red").save(folder / name)
    (folder / "keys").write_text(KEY)
    return Shelf(folder, presets)


@pytest.fixture
def load() -> Callable[..., Sampler]:
    """`Sampler.load`, which reads what ships once."""
    real, kept = Sampler.load, cache(Sampler.load)

    def load(name: str, *how: Any, **more: Any) -> Sampler:
        preset = PRESETS.get(name)
        return (real if preset is None or not preset.embedded else kept)(name, *how, **more)

    return load


@pytest.fixture
def ray(
    shelf: Shelf, load: Callable[..., Sampler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> LocalRay:
    """A page's folder, where all is small; returns what stands in for Ray."""
    for name, preset in shelf.presets.items():
        monkeypatch.setitem(PRESETS, name, preset)
    for name, value in CONSTANTS.items():
        monkeypatch.setattr(name, value)
    monkeypatch.setattr(Tuned, "best", property(lambda tuned: tuned.front[0]))  # so few images show nothing
    monkeypatch.setattr(Sampler, "load", load)
    monkeypatch.setattr("webbrowser.open", lambda url: True)
    published.answer_from(shelf.folder / "hub", monkeypatch)
    published.random_features(monkeypatch)
    shutil.copytree(shelf.folder, tmp_path / "page", ignore=shutil.ignore_patterns("hub", "cache"))
    monkeypatch.setenv("DISA_CACHE", str(shelf.folder / "cache"))
    (tmp_path / "page" / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path / "page")
    local = LocalRay()
    monkeypatch.setitem(sys.modules, "ray", local)  # pyright: ignore[reportArgumentType]
    return local


def visited(disa: Command, words: list[str], port: int) -> Done:
    """Run a server until it has answered a request, and end it once its model is there."""
    client, loaded, over = Client(port), threading.Event(), threading.Event()
    answers, prepare = list[Answer](), Open.prepare

    def visit() -> None:
        while not answers and not over.wait(0.05):
            with suppress(OSError):
                answers.append(client.ask({"prompt": "3"}, SENT) if words[0] == "serve" else client.get("/"))
        loaded.wait()
        if not over.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def prepared(opened: Open, load: Callable[[], Sampler]) -> Sampler:
        found = prepare(opened, load)
        loaded.set()
        return found

    visitor = threading.Thread(target=visit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Open, "prepare", prepared)
        patch.setenv("GRADIO_TEMP_DIR", "")  # which the studio sets
        if words[0] == "serve":
            loaded.set()  # it answers no earlier
        visitor.start()
        done = disa(*words)
        over.set()
        loaded.set()
        visitor.join()
    assert [answer.status for answer in answers] == [200], done.err
    return replace(done, code=0) if words[0] == "studio" and done.code == STOPPED else done


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({line.page for line in OURS}))
def test_commands_are_run(page: str, disa: Command, ray: LocalRay, monkeypatch: pytest.MonkeyPatch) -> None:
    if page not in WITH_WHAT_SHIPS:
        published.shrink("mar-digits", monkeypatch)
    wrong = list[tuple[str, str]]()
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        address = "{}:{}".format(*somebody.getsockname())
        for text in [*BEFORE.get(page, []), *(line.text for line in OURS if line.page == page)]:
            words = made_small(text, port := free_port(), address)
            make_way(words)
            done = visited(disa, words, port) if words[0] in ("serve", "studio") else disa(*words)
            if done.code or "Traceback" in done.err:
                wrong.append((text, done.err))
            out = dict(pairwise(words)).get("--out")
            assert done.code or out is None or Path(out).exists()
            assert ray.begun or not {"--ray", "--address"} & {*words}
    assert not wrong, "\n".join(": ".join(each) for each in wrong)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as place:
        return place.getsockname()[1]


# -- in the text ---------------------------------------------------------------------------------------------------


@cache
def group() -> Any:
    return get_command(cli.app)


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
        if line.first == "python" and line.text.split()[1].startswith(("benchmarks", "tests", "examples")):
            assert (ROOT / line.text.split()[1]).is_file(), line.text
    assert not wrong


def test_every_entry_is_needed() -> None:
    firsts, texts = {line.first for line in LINES}, [line.text for line in OURS]
    assert [name for name in OTHERS if name not in firsts] == []
    assert [pattern for pattern in FEWER if not any(re.search(pattern, text) for text in texts)] == []
    assert [pattern for pattern in ADDED if not any(re.match(f"disa {pattern}", text) for text in texts)] == []
    assert [name for name in VARIABLES if not any(name in text for text in texts)] == []
    assert {line.page for line in OURS} >= {*BEFORE}


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
