"""A pruner as a folder: `config.json` with the method's name and options."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from foveate import __version__
from foveate.errors import BudgetError, ModelNotReachable

if TYPE_CHECKING:
    from foveate.pruners.base import Pruner

CONFIG = "config.json"


def save_pretrained(pruner: Pruner, folder: str | Path) -> None:
    """Write `pruner` to `folder`, which is made if it is not there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"foveate_version": __version__, "method": pruner.name, "options": dataclasses.asdict(pruner)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load(name_or_folder: str | Path) -> Pruner:
    """Load a pruner from a folder that `save_pretrained` wrote, or from the Hub.

    Raises
    ------
    ModelNotReachable
        When there is no such folder and the Hub has none or does not answer.
    BudgetError
        When the folder's config is not a pruner's.
    UnknownMethodError
        When it names a method or option that this version does not have.
    """
    from foveate.pruners import make

    path = Path(name_or_folder) / CONFIG
    if not path.is_file():
        path = _from_hub(str(name_or_folder))
    try:
        config = json.loads(path.read_text())
        method, options = config["method"], config["options"]
    except (ValueError, KeyError, TypeError) as error:
        raise BudgetError(f"{path} is not a pruner's config: {error!r}") from error
    return make(method, **options)


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, CONFIG))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotReachable(
            f"no folder {name!r} with a {CONFIG}, and the Hub does not give it: {type(error).__name__}"
        ) from error
