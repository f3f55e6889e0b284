"""Learned parts of a method: modules that know their sizes, and their files, safetensors and a model card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from foveate.errors import IncompatibleWeightsError
from foveate.pruners.saving import find
from foveate.torch_state import own_randomness

WEIGHTS = "model.safetensors"
CARD = "README.md"


class Learned(nn.Module):
    """Modules that are trained, saved and loaded together; equal to others of the same kind and the same numbers.

    Attributes
    ----------
    config
        A frozen dataclass of their sizes.
    about
        Plain data for the model card: the base model, how they were trained, what was measured.
    """

    def __init__(self, config: Any, about: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config, self.about = config, dict(about or {})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)) or self.config != other.config:
            return False
        theirs = other.state_dict()
        return all(torch.equal(mine.cpu(), theirs[name].cpu()) for name, mine in self.state_dict().items())

    def __hash__(self) -> int:
        return hash(self.config)


def save(weights: Learned, folder: Path, method: str, what: str) -> dict[str, Any]:
    """Write weights and card to a folder; what its config says of them.

    Parameters
    ----------
    method
        What the card's title says they are, a name of the method first.
    what
        A sentence for the card, of what they do to the model.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in weights.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CARD).write_text(_card(weights, method, what), encoding="utf-8")
    return {"weights": dataclasses.asdict(weights.config), "about": weights.about}


@own_randomness()
def load(config: dict[str, Any], name: str, made: Callable[[dict[str, Any]], Learned]) -> Any:
    """Weights of a config that `save` wrote, from its folder or Hub id, in evaluation mode.

    Parameters
    ----------
    made
        Gives the modules of the sizes in the config, with any numbers.

    Raises
    ------
    IncompatibleWeightsError
        When the file is no safetensors file, or its tensors are not those of the config.
    ModelNotReachable
        When there is no such file.
    """
    path = find(name, WEIGHTS)
    try:
        modules = made(config["weights"])
        modules.about = dict(config.get("about") or {})
        modules.load_state_dict(load_file(path))
    except (TypeError, RuntimeError, SafetensorError) as error:
        raise IncompatibleWeightsError(
            f"{path} does not hold the weights that its config describes: {error}"
        ) from error
    return modules.eval()


def _card(weights: Learned, method: str, what: str) -> str:
    """A model card: what it is for, how to use it, what was measured."""
    about = dict(weights.about)
    base, metrics = about.pop("base_model", None), about.pop("metrics", None)
    head = ["library_name: foveate", f"tags: [visual-token-pruning, {method.split()[0].lower()}]"]
    if base and "/" in str(base):
        head.append(f"base_model: {base}")
    lines = ["---", *head, "---", "", f"# {method}", ""]
    lines += [
        f"Prunes visual tokens of `{base or 'a model that the trainer did not name'}`, which stays as it is.",
        "",
    ]
    lines += ["```python", "import foveate", "", 'pruner = foveate.load("this folder or Hub id")', ""]
    lines += ["with pruner(model) as pruned:", "    model.generate(**inputs)", "```", ""]
    lines += [what]
    if metrics:
        lines += ["", "## Measured", "", *(f"- {name}: {value}" for name, value in metrics.items())]
    if about:
        lines += ["", "## Training", "", "```json", json.dumps(about, indent=2), "```"]
    return "\n".join(lines) + "\n"
