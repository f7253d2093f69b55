"""The hub: offline, unknown, closed, failing, half got. Nothing here leaves this machine."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors

import small
from disa.errors import DisaError
from disa.models.registry import find_preset
from disa.models.spec import HubFile
from disa.weights import hub
from disa.weights.hub import Repository, download_folder, locate
from disa.weights.tokenizers import find_tokenizer

PAGE = "https://example.org/small"


class Hub:
    """Stands in for huggingface_hub: what it has, and what it fails with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self.online: Exception | None = None
        self.failure: Exception | None = None
        self.cached, self.cache, self.asked = False, cache, list[tuple[str, str | None, bool]]()
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", self.info)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", self.file)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot)

    def info(self, *_args: Any, **_how: Any) -> None:
        if self.online:
            raise self.online

    def file(self, repo: str, name: str, *, revision: str | None, local_files_only: bool) -> str:
        return str(Path(self.get(repo, revision, local_files_only)) / name)

    def snapshot(self, repo: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        return self.get(repo, revision, local_files_only)

    def get(self, repo: str, revision: str | None, local: bool) -> str:
        self.asked.append((repo, revision, local))
        if local and not self.cached:
            raise errors.LocalEntryNotFoundError("not in the cache")
        if self.failure and not local:
            raise self.failure
        return str(self.cache)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    return Hub(monkeypatch, small.folder(tmp_path / "snapshot"))


def answer(kind: type[Exception], status: int) -> Exception:
    """An error of the hub's as an answer with that status makes it."""

    class Response:
        status_code, headers, request = status, dict[str, str](), None

    try:
        return kind("Repository Not Found for url: https://x.\nPlease make sure", response=Response())  # type: ignore[call-arg]
    except TypeError:
        return kind("not found")


def refusal(name: str) -> str:
    with pytest.raises(DisaError) as caught:
        download_folder(name)
    message = str(caught.value)
    assert "\n" not in message
    assert "..." not in message
    assert len(message) < 300
    return message


UNREACHABLE = {
    "no names": OSError("[Errno -2] Name or service not known"),
    "switched off": errors.OfflineModeIsEnabled("offline mode is enabled"),
    "no answer": TimeoutError("timed out"),
}
ANSWERS = {
    "unknown": (answer(errors.RepositoryNotFoundError, 401), "the hub knows no some/model, or it is private"),
    "gated": (answer(errors.GatedRepoError, 403), "accept its terms on https://huggingface.co/some/model and log in"),
    "no revision": (answer(errors.RevisionNotFoundError, 404), "some/model has no revision"),
    "no file": (answer(errors.RemoteEntryNotFoundError, 404), "some/model has no such file"),
    "failing": (answer(errors.HfHubHTTPError, 503), "the hub answered with status 503"),
    "disk": (OSError(28, "No space left on device"), "(No space left on device)"),
}


@pytest.mark.parametrize("why", UNREACHABLE)
def test_without_the_hub_what_was_got_before_is_used(stand_in: Hub, why: str) -> None:
    stand_in.online = UNREACHABLE[why]
    assert "there is no folder some/model, and no hub repository could be got (the hub " in refusal("some/model")
    assert not [asked for asked in stand_in.asked if not asked[2]], "a download was tried"
    stand_in.cached = True
    assert download_folder("some/model") == stand_in.cache
    hub_file = HubFile("some/repo", "model.safetensors")
    assert locate(None, hub_file, PAGE, "") == ("hub:some/repo/model.safetensors", stand_in.cache / "model.safetensors")
    assert locate(None, HubFile("some/repo", "*.safetensors"), PAGE, "") == ("hub:some/repo", stand_in.cache)


@pytest.mark.parametrize("place", ["online", "failure"])
@pytest.mark.parametrize("why", ANSWERS)
def test_every_answer_is_one_line(stand_in: Hub, why: str, place: str) -> None:
    error, words = ANSWERS[why]
    setattr(stand_in, place, error)
    message = refusal("some/model")
    assert words in message or (why == "disk" and "No space left on device" in message)
    with pytest.raises(
        DisaError, match=r"could not get x.bin from the hub repository some/model \(.*\)\. Give a local file"
    ):
        locate(None, HubFile("some/model", "x.bin"), PAGE, "")
    stand_in.cached = True
    assert download_folder("some/model") == stand_in.cache


def test_a_revision_is_asked_for(stand_in: Hub) -> None:
    for revision in ("v1.0", "refs/pr/1", "a" * 40, "my-branch"):
        download_folder(f"some/model@{revision}")
        assert stand_in.asked[-1] == ("some/model", revision, False)


@pytest.mark.parametrize(
    "name",
    ["a b/c", "a/b c", "a--b/c", "a/..", "../a", "a/b.git", "a/b@", "a/b@x y", "a/b@../x", "ä/b", "a/b?x", "-a/b"],
)
def test_names_that_cannot_be_are_refused_before_the_hub_is_asked(stand_in: Hub, name: str) -> None:
    stand_in.online = AssertionError("the hub was asked")
    assert "is no name of a hub repository" in refusal(name)


def test_what_is_no_model_of_ours_is_not_downloaded(stand_in: Hub) -> None:
    for said, words in (({"model_type": "llama"}, "is a model of transformers ('llama')"), ({}, "cannot be used")):
        (stand_in.cache / "config.json").write_text(json.dumps(said))
        stand_in.asked.clear()
        assert words in refusal("some/model")
        assert len(stand_in.asked) == 1


def test_what_was_half_got_is_told(stand_in: Hub) -> None:
    stand_in.online, stand_in.cached = OSError("no network"), True
    (stand_in.cache / "model.safetensors").unlink()
    assert "some/model was not got whole: model.safetensors is missing" in refusal("some/model")


def test_a_tokenizer_comes_through_the_same_door(stand_in: Hub) -> None:
    preset = find_preset("harmon-0.5b")
    assert find_tokenizer(None, preset) == find_tokenizer("some/words", preset) == stand_in.cache
    assert [asked[0] for asked in stand_in.asked] == [preset.assets.tokenizer, "some/words"]
    stand_in.online = UNREACHABLE["no names"]
    with pytest.raises(DisaError, match="no tokenizer could be got from the hub"):
        find_tokenizer("some/words", preset)


def test_a_hub_that_does_not_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up of a name cannot be given a time."""
    stop = threading.Event()
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_args, **_how: stop.wait(60))
    monkeypatch.setattr(hub, "PATIENCE", -0.9)
    began = time.monotonic()
    assert "no answer within" in refusal("some/model")
    assert time.monotonic() - began < 5
    stop.set()


def test_retries_are_one_warning(stand_in: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    library, log = logging.getLogger("huggingface_hub"), logging.getLogger("huggingface_hub.utils._http")
    lines = list[str]()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(record.getMessage()))
    monkeypatch.setattr(library, "handlers", [handler])

    def slowly(*_args: Any) -> str:
        for number in range(5):
            log.warning("HTTP Error 503 thrown while requesting HEAD https://x")
            log.warning(f"Retrying in {number}s [Retry {number}/5].")
        return str(stand_in.cache)

    monkeypatch.setattr(stand_in, "get", slowly)
    with pytest.warns(UserWarning, match="the hub fails to answer; trying again") as told:
        hub._snapshot(Repository("some/model"), ["*"])
    assert len(told) == 1
    assert lines == []
    log.warning("as before")
    assert lines == ["as before"]


# -- a server on this machine --------------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """A hub that knows nothing, and one that asks for a login."""

    def do_GET(self) -> None:
        closed = "/closed/" in self.path
        self.send_response(403 if closed else 404)
        self.send_header("X-Error-Code", "GatedRepo" if closed else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_real_library_is_quick_and_says_one_line(address: str, tmp_path: Path) -> None:
    """Unknown, closed, a port that nobody listens at, and switched off: all in seconds."""
    program = (
        "import sys, time; from disa.errors import DisaError; from disa.weights.hub import download_folder\n"
        "for name in sys.argv[1:]:\n"
        "    began = time.monotonic()\n"
        "    try: download_folder(name)\n"
        "    except DisaError as error: print(f'{time.monotonic() - began:.1f}|{error}')"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    for more, names, words in (
        ({"HF_ENDPOINT": address}, ["no/such", "closed/model"], ["the hub knows no no/such", "accept its terms"]),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, ["no/such"], ["the hub cannot be reached"]),
        ({"HF_HUB_OFFLINE": "1"}, ["no/such"], ["the hub is switched off by HF_HUB_OFFLINE"]),
    ):
        done = subprocess.run([sys.executable, "-c", program, *names], env=environment | more, capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert done.stderr == ""
        lines = [line.split("|") for line in done.stdout.splitlines()]
        assert len(lines) == len(names)
        for (seconds, said), expected in zip(lines, words, strict=True):
            assert float(seconds) < 8
            assert expected in said


def test_a_warning_free_load(stand_in: Hub) -> None:
    with warnings.catch_warnings(action="error"):
        assert small.Sampler.load("some/model", device="cpu").preset.spec.architecture == small.CONFIG
