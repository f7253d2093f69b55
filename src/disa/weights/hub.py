"""Files of the Hugging Face hub; where it does not answer, those that were got before.

| the hub | what happens |
|---|---|
| answers | what is new there is got |
| HF_HUB_OFFLINE is set, no network, no answer within seconds | what was got before is used, else one line |
| has no such repository, revision or file; wants a login | the same: one line that says which |
| fails for a while | tried again for up to half a minute, as one warning says |

Only files that are used are got, and of a model only after its `config.json` was understood.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

from disa.errors import DisaError, warn
from disa.models.spec import HubFile
from disa.values import first_line
from disa.weights.config import read_config
from disa.weights.shards import CONFIG, WEIGHTS
from disa.weights.trust import key_of

PATIENCE = 5
"""Seconds within which the hub must have answered a first question."""
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)
"""owner/name, or owner/name@revision: a branch, a tag or a commit."""
OF_A_MODEL = [CONFIG, WEIGHTS, "vae/*", "tokenizer/*"]
OF_A_TOKENIZER = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]


class Repository(NamedTuple):
    """A repository of models at a revision."""

    name: str
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> Repository:
        """From owner/name@revision. Raises DisaError."""
        if not REPOSITORY.fullmatch(text) or re.search(r"--|\.\.|\.git$|//", text):
            raise DisaError(f"{text} is no name of a hub repository: expected owner/name or owner/name@revision.")
        name, _, revision = text.partition("@")
        return cls(name, revision or None)


def locate(path: Path | None, hub: HubFile | None, page: str, missing: str) -> tuple[str, Path]:
    """The key of a file's hash, and the file: the given one, or the hub's.

    page: where upstream's links are; missing: what to say where there is neither. Raises DisaError.
    """
    if path is not None:
        return key_of(path), path
    if hub is None:
        raise DisaError(missing)
    repository = Repository(hub.repo)
    try:
        if "*" in hub.name:
            return f"hub:{hub.repo}", _snapshot(repository, [hub.name])
        return f"hub:{hub.repo}/{hub.name}", _file(repository, hub.name)
    except DisaError as error:
        raise DisaError(
            f"could not get {hub.name} from the hub repository {hub.repo} ({error}). "
            f"Give a local file instead; upstream's download links are on {page}."
        ) from error


def download_folder(name: str) -> Path:
    """A hub repository in our layout: owner/name or owner/name@revision. Raises DisaError."""
    repository = Repository.of(name)
    try:
        config = _file(repository, CONFIG)
    except DisaError as error:
        raise DisaError(f"there is no folder {name}, and no hub repository could be got ({error}).") from error
    read_config(config)
    try:
        folder = _snapshot(repository, OF_A_MODEL)
    except DisaError as error:
        raise DisaError(f"the hub repository {name} could not be got ({error}).") from error
    if not (folder / WEIGHTS).is_file():
        raise DisaError(f"the hub repository {name} was not got whole: {WEIGHTS} is missing. Get it again.")
    return folder


def download_tokenizer(name: str) -> Path:
    """The files of a tokenizer in a hub repository. Raises DisaError."""
    try:
        return _snapshot(Repository.of(name), OF_A_TOKENIZER)
    except DisaError as error:
        raise DisaError(f"there is no folder {name}, and no tokenizer could be got from the hub ({error}).") from error


def _file(repository: Repository, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    def get(local: bool) -> str:
        return hf_hub_download(repository.name, name, revision=repository.revision, local_files_only=local)

    return _got(repository, get)


def _snapshot(repository: Repository, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    def get(local: bool) -> str:
        name, revision = repository
        return snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=local)

    return _got(repository, get)


def _got(repository: Repository, get: Callable[[bool], str]) -> Path:
    """What the hub has, or what was got from it before. Raises DisaError, which says why there is neither."""
    otherwise = "the hub cannot be reached: "
    with _few_warnings():
        try:
            _ask(repository)
            otherwise = ""
            return Path(get(False))
        except Exception as error:
            with suppress(Exception):
                return Path(get(True))
            raise DisaError(_why(error, repository) or otherwise + first_line(error)) from error


def _ask(repository: Repository) -> None:
    """Return where the hub knows the repository; fail with its own error, and soon. Its downloads would try again for
    half a minute where there is no network."""
    from huggingface_hub import HfApi

    answers = SimpleQueue[Exception | None]()

    def ask() -> None:
        try:
            HfApi().model_info(repository.name, revision=repository.revision, timeout=PATIENCE)
        except Exception as error:
            answers.put(error)
        else:
            answers.put(None)

    # A look-up of the host's name cannot be given a time: the thread is left to itself.
    Thread(target=ask, daemon=True).start()
    try:
        error = answers.get(timeout=PATIENCE + 1)
    except Empty:
        error = TimeoutError(f"no answer within {PATIENCE} seconds")
    if error is not None:
        raise error


def _why(error: Exception, repository: Repository) -> str:
    """What an answer of the hub means; nothing for other errors."""
    from huggingface_hub import errors

    name, revision = repository
    match error:
        case errors.OfflineModeIsEnabled():
            return "the hub is switched off by HF_HUB_OFFLINE, and it was not got before"
        case errors.GatedRepoError():
            return f"accept its terms on https://huggingface.co/{name} and log in with `hf auth login`"
        case errors.RepositoryNotFoundError():
            return f"the hub knows no {name}, or it is private: check the name, or log in with `hf auth login`"
        case errors.RevisionNotFoundError():
            return f"{name} has no revision {revision}"
        case errors.EntryNotFoundError():
            return f"{name} has no such file"
        case errors.HfHubHTTPError() if error.response is not None:
            return f"the hub answered with status {error.response.status_code}"
        case _:
            return ""


class _Few(logging.Filter):
    """Of what huggingface_hub logs only errors; the first note that it tries again becomes a warning of ours."""

    told = False

    def filter(self, record: logging.LogRecord) -> bool:
        if "Retry" in record.getMessage() and not self.told:
            self.told = True
            warn("the hub fails to answer; trying again for up to half a minute")
        return record.levelno >= logging.ERROR


@contextmanager
def _few_warnings() -> Iterator[None]:
    handlers, few = list(logging.getLogger("huggingface_hub").handlers), _Few()
    for handler in handlers:
        handler.addFilter(few)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(few)
