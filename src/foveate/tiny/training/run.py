"""What both training stages need around them: run folder, log, checkpoints."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from foveate.tiny.training.recipe import Recipe


@dataclass
class Run:
    """A folder with `recipe.json`, `log.jsonl`, checkpoints, the rendered scenes and, at the end, the weights."""

    folder: Path
    recipe: Recipe
    checkpoint_seconds: float = 180.0
    device: str = "cpu"
    started: float = field(default_factory=time.time)
    _saved: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "recipe.json"
        if not path.is_file():
            path.write_text(json.dumps(asdict(self.recipe), indent=1))
        elif json.loads(path.read_text()) != json.loads(json.dumps(asdict(self.recipe))):
            raise ValueError(f"{path} holds another recipe; a run continues with its own or starts in another folder")

    def log(self, **values: Any) -> None:
        """Append one line to the log."""
        values = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
        line = json.dumps({**values, "seconds": round(time.time() - self.started, 1)})
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(line + "\n")

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.time() - self._saved > self.checkpoint_seconds

    def save(self, stage: str, step: int, modules: list[torch.nn.Module], optimisers: list) -> None:
        """Write a checkpoint; the old one stays until the new one is whole."""
        state = {
            "step": step,
            "modules": [module.state_dict() for module in modules],
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        }
        path = self.folder / f"{stage}.pt"
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
        self._saved = time.time()

    def restore(self, stage: str, modules: list[torch.nn.Module], optimisers: list) -> int:
        """Load a stage's checkpoint if there is one; gives the number of steps done."""
        path = self.folder / f"{stage}.pt"
        if not path.is_file():
            return 0
        state = torch.load(path, map_location="cpu", weights_only=True)
        for module, values in zip(modules, state["modules"], strict=True):
            module.load_state_dict(values)
        for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        return int(state["step"])
