"""A pruner as a folder: `config.json` with the method's name and options, and its learned weights where it has any."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate import __version__
from foveate.errors import BudgetError, IncompatibleWeightsError, ModelNotReachable

if TYPE_CHECKING:
    from foveate.pruners.base import Pruner

CONFIG = "config.json"
# trained pruners that come with the package
SHIPPED = {"glimpseprune-tiny": Path(__file__).parents[1] / "tiny" / "predictor"}


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


def load(name_or_folder: str | Path) -> Pruner:
    """Load a pruner from a folder that `save_pretrained` wrote, or from the Hub.

    `glimpseprune-tiny` is GlimpsePrune with the predictor that comes with the embedded model. The folders of
    GlimpsePrune's authors (`config.json` beside `new_modules_gp.pt`) are taken, too. Files of weights are read as
    tensors, never as code.

    Raises
    ------
    ModelNotReachable
        When there is no such folder and the Hub has none or does not answer.
    BudgetError
        When the folder's config is not a pruner's.
    IncompatibleWeightsError
        When its weights are not what the config says.
    UnknownMethodError
        When it names a method or option that this version does not have.
    """
    from foveate.pruners import METHODS, make
    from foveate.pruners.glimpseprune import authors_checkpoint as glimpse_authors

    name = str(SHIPPED.get(str(name_or_folder), name_or_folder))
    path = find(name, CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if glimpse_authors.is_theirs(config):
            return glimpse_authors.load(config, find(name, glimpse_authors.WEIGHTS))
        method, options = config["method"], dict(config["options"])
    except (BudgetError, IncompatibleWeightsError):
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise BudgetError(f"{path} is not a pruner's config: {error!r}") from error
    if method in METHODS:
        options |= METHODS[method].load_weights(config, name)
    return make(method, **options)


def find(name: str, file: str) -> Path:
    """A file of a saved pruner, in a folder or on the Hub.

    Raises
    ------
    ModelNotReachable
        When neither has it.
    """
    path = Path(name) / file
    if path.is_file():
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotReachable(
            f"no folder {name!r} with a {file}, and the Hub does not give it: {type(error).__name__}"
        ) from error


def _plain(value: Any) -> Any:
    """Dataclasses, in tuples too, as plain data for JSON."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
