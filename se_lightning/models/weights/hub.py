"""Weights from the Hugging Face hub."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

__all__ = ["NAME", "fetch", "fetch_config"]

# owner/repository, optionally with a revision.
NAME = re.compile(r"(?:hf[-_]hub:)?([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
_FILES = ("model.safetensors", "pytorch_model.bin")


def fetch(name: str) -> Path:
    """Download the weights of a repository, or find them in the hub's cache.

    Args:
        name: ``owner/repository``, optionally with ``@revision``, and with timm's prefix
            ``hf-hub:``.

    Raises:
        ValueError: If the repository does not exist or has no weights, the hub cannot be reached,
            huggingface_hub is not installed, or the file differs from the hub's.
    """
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise ValueError(
            f"weights={name} is on the Hugging Face hub, which needs huggingface_hub: "
            'pip install "se-lightning[hub]".'
        ) from error
    found = NAME.fullmatch(name)
    assert found
    repository, revision = found.groups()
    unreachable: OSError | None = None
    for file in _FILES:
        offline = unreachable is not None
        try:
            path = hf_hub_download(repository, file, revision=revision, local_files_only=offline)
        except errors.RemoteEntryNotFoundError:
            continue
        except errors.HfHubHTTPError as error:
            why = str(error).strip().partition("\n")[0]
            raise ValueError(f"The Hugging Face hub refuses {name}: {why}") from error
        except OSError as error:  # no network; the other file may be in the cache
            unreachable = error
            continue
        _check(Path(path), name)
        return Path(path)
    if unreachable is not None:
        raise ValueError(_unreachable(repository, revision)) from unreachable
    raise ValueError(f"{name} has no weights on the hub: neither {' nor '.join(_FILES)}.")


def fetch_config(name: str) -> dict[str, Any]:
    """Return the description next to the weights of a repository, in timm's form; {} if none."""
    from huggingface_hub import errors, hf_hub_download

    found = NAME.fullmatch(name)
    assert found
    repository, revision = found.groups()
    try:
        path = hf_hub_download(repository, "config.json", revision=revision)
        config = json.loads(Path(path).read_text())
    except (OSError, ValueError, errors.HfHubHTTPError):  # the weights are what matters
        return {}
    return config if isinstance(config, dict) else {}


def _unreachable(repository: str, revision: str | None) -> str:
    from huggingface_hub import constants

    address = f"{constants.ENDPOINT}/{repository}/resolve/{revision or 'main'}/{_FILES[0]}"
    return (
        f"The Hugging Face hub cannot be reached, and {repository} is not in its cache "
        f"({constants.HF_HUB_CACHE}). Download {address} (or {_FILES[1]}) on a machine with "
        f"internet access, copy the file here, and pass its path: weights=DIR/{_FILES[0]}."
    )


def _check(path: Path, name: str) -> None:
    """Compare with the hub's hash, which is the name of a large file in its cache."""
    wanted = path.resolve().name
    if not re.fullmatch("[0-9a-f]{64}", wanted):
        return  # a small file, or a file system without links
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise ValueError(
            f"{path} differs from {name} on the hub: its SHA-256 is {found}. Delete the file to "
            "download it again."
        )
