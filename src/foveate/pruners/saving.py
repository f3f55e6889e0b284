"""A pruner as a folder: `config.json` with the method's name and options, and its learned weights where it has any."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate import __version__
from foveate.errors import ModelNotReachable

if TYPE_CHECKING:
    from foveate.pruners.base import Pruner

CONFIG = "config.json"


def save_pretrained(pruner: Pruner, folder: str | Path) -> None:
    """Write `pruner` to `folder`, which is made if it is not there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        field.name: _plain(getattr(pruner, field.name)) for field in dataclasses.fields(pruner) if field.metadata
    }
    config = {"foveate_version": __version__, "method": pruner.name, "options": options, **pruner.save_weights(folder)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def push_to_hub(pruner: Pruner, repository: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload what `save_pretrained` writes to the Hub; the address of the commit."""
    from huggingface_hub import create_repo, upload_folder

    create_repo(repository, private=private, token=token, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(pruner, folder)
        return str(upload_folder(repo_id=repository, folder_path=folder, token=token))


def find(name: str, file: str) -> Path:
    """A file of a saved pruner, in a folder or on the Hub.

    Raises
    ------
    ModelNotReachable
        When neither has it.
    """
    path = Path(name) / file
    if os.path.isfile(path):  # False too for a name that no file can have, where Path raises
        return path
    if "/" not in name or os.path.isdir(name):  # asking the Hub may take long
        raise ModelNotReachable(_not_there(name, file, "and this is no id of the Hub, which has an owner"))
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        owner, _, rest = name.partition("/")
        repository, _, inside = rest.partition("/")  # a chain's methods lie in folders of its repository
        return Path(hf_hub_download(f"{owner}/{repository}", f"{inside}/{file}" if inside else file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = f"and the Hub does not give it ({type(error).__name__})"
        raise ModelNotReachable(_not_there(name, file, why)) from error


def _not_there(name: str, file: str, why: str) -> str:
    return (
        f"no folder {name!r} with a {file}, {why}: check the name (a Hub id is such as 'me/my-btp'), the network and "
        "HF_HUB_OFFLINE; one without a folder is made by foveate.make(name)"
    )


def _plain(value: Any) -> Any:
    """Dataclasses, in tuples too, as plain data for JSON."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
