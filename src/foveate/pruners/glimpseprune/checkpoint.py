"""GlimpsePrune's weights as files: safetensors beside `config.json`, and a model card."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from foveate.errors import IncompatibleWeightsError
from foveate.pruners.glimpseprune.modules import GlimpseConfig, GlimpseModules
from foveate.pruners.saving import find
from foveate.torch_state import own_randomness

WEIGHTS = "model.safetensors"
CARD = "README.md"


def save(weights: GlimpseModules, folder: Path) -> dict[str, Any]:
    """Write weights and card to a folder; what its config says of them."""
    state = {name: value.detach().cpu().contiguous() for name, value in weights.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CARD).write_text(card(weights), encoding="utf-8")
    return {"weights": dataclasses.asdict(weights.config), "about": weights.about}


@own_randomness()
def load(config: dict[str, Any], name: str) -> GlimpseModules:
    """Weights of a config that `save` wrote, from its folder or Hub id.

    Raises
    ------
    IncompatibleWeightsError
        When the file is no safetensors file, or its tensors are not those of the config.
    ModelNotReachable
        When there is no such file.
    """
    path = find(name, WEIGHTS)
    try:
        modules = GlimpseModules(GlimpseConfig(**config["weights"]), config.get("about"))
        modules.load_state_dict(load_file(path))
    except (TypeError, RuntimeError, SafetensorError) as error:
        raise IncompatibleWeightsError(
            f"{path} does not hold the weights that its config describes: {error}"
        ) from error
    return modules.eval()


def card(weights: GlimpseModules) -> str:
    """A model card: what it is for, how to use it, what was measured."""
    about = dict(weights.about)
    base, metrics = about.pop("base_model", None), about.pop("metrics", None)
    head = ["library_name: foveate", "tags: [visual-token-pruning, glimpseprune]"]
    if base and "/" in str(base):
        head.append(f"base_model: {base}")
    lines = ["---", *head, "---", "", "# GlimpsePrune predictor", ""]
    lines += [
        f"Prunes visual tokens of `{base or 'a model that the trainer did not name'}`, which stays as it is.",
        "",
    ]
    lines += ["```python", "import foveate", "", 'pruner = foveate.load("this folder or Hub id")', ""]
    lines += ["with pruner(model) as pruned:", "    model.generate(**inputs)", "```", ""]
    lines += [f"A cut before decoder layer {weights.config.layer} of {weights.config.depth}."]
    if metrics:
        lines += ["", "## Measured", "", *(f"- {name}: {value}" for name, value in metrics.items())]
    if about:
        lines += ["", "## Training", "", "```json", json.dumps(about, indent=2), "```"]
    return "\n".join(lines) + "\n"
