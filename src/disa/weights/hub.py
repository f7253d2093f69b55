"""Files of the Hugging Face hub, from the local cache where they are there already."""

from __future__ import annotations

from pathlib import Path

from disa.errors import DisaError
from disa.models.spec import HubFile
from disa.values import first_line
from disa.weights.trust import key_of


def locate(path: Path | None, hub: HubFile | None, page: str, missing: str) -> tuple[str, Path]:
    """The key of a file's hash, and the file: the given one, or the hub's.

    page: where upstream's links are; missing: what to say where there is neither. Raises DisaError.
    """
    if path is not None:
        return key_of(path), path
    if hub is None:
        raise DisaError(missing)
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if "*" in hub.name:
            return f"hub:{hub.repo}", Path(snapshot_download(hub.repo, allow_patterns=[hub.name]))
        return f"hub:{hub.repo}/{hub.name}", Path(hf_hub_download(hub.repo, hub.name))
    except Exception as error:
        raise DisaError(
            f"could not get {hub.name} from the hub repository {hub.repo} ({first_line(error)}). "
            f"Give a local file instead; upstream's download links are on {page}."
        ) from error


def download_folder(repo: str) -> Path:
    """A hub repository in our layout. Raises DisaError."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        raise DisaError(
            f"there is no folder {repo}, and no hub repository of that name could be got ({first_line(error)})."
        ) from error
