"""What both training stages need around them: recipe, run folder, log, checkpoints, thread count."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

START = "start.safetensors"
LAYERS = ("model.language_model.layers.", "model.language_model.norm.", "lm_head.")  # untouched by the vision stage


@dataclass(frozen=True)
class Recipe:
    """All that decides what comes out; the defaults are those of the shipped weights."""

    seed: int = 0
    scenes: int = 24000
    steps_vision: int = 3200
    steps_language: int = 4200
    batch_vision: int = 32
    batch_language: int = 8
    signs_from: int = 553
    muon_vision: float = 0.02
    adam_vision: float = 0.003
    muon_language: float = 0.008
    adam_language: float = 0.002
    decay_vision: float = 0.5
    decay_language: float = 0.5
    texture_gain: float = 6.0
    evidence_weight: float = 0.2
    evidence_until: float = 1800 / 4200
    check_every: int = 250
    held_out_scenes: int = 600


@dataclass
class Run:
    """A folder with `recipe.json`, `log.jsonl`, checkpoints, the rendered scenes and, at the end, the weights."""

    folder: Path
    recipe: Recipe
    device: torch.device
    checkpoint_seconds: float = 180.0
    quiet: bool = False
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
        """Load a stage's checkpoint if there is one; gives the number of steps done.

        A run that begins with the weights of an earlier one has them in `START`; its optimisers begin anew.
        """
        path = self.folder / f"{stage}.pt"
        state = self.state(stage)
        if state is None:
            return 0
        for module, values in zip(modules, state["modules"], strict=False):  # a reader may want the first alone
            missing, unknown = module.load_state_dict(values, strict=False)
            if unknown or any(path.is_file() or not name.startswith(LAYERS) for name in missing):
                raise ValueError(f"{self.folder} is of another recipe: {[*missing, *unknown][:3]} do not fit")
        if "optimisers" in state and optimisers:
            for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(values)
        return int(state["step"])

    def state(self, stage: str) -> dict[str, Any] | None:
        """A stage's last checkpoint, or what `START` holds of it; None where there is neither."""
        path, start = self.folder / f"{stage}.pt", self.folder / START
        if path.is_file():
            return torch.load(path, map_location=self.device, weights_only=True)
        if not start.is_file():
            return None
        with safe_open(start, "pt") as file:
            steps = json.loads(file.metadata()["steps"])
            if stage not in steps:
                return None
            modules: dict[int, dict[str, torch.Tensor]] = {}
            for name in file.keys():  # noqa: SIM118
                own, number, rest = name.split(".", 2)
                if own == stage:
                    modules.setdefault(int(number), {})[rest] = file.get_tensor(name).float()
        return {"step": int(steps[stage]), "modules": [modules[number] for number in sorted(modules)]}

    def write_start(self, path: Path, stages: Sequence[str]) -> None:
        """Write the weights of a run so far, in float16 and without optimisers, as a `START` for another folder."""
        tensors, steps = {}, {}
        for stage in stages:
            state = self.state(stage)
            if state is None:
                raise FileNotFoundError(f"{self.folder} has no weights of the stage {stage!r}")
            steps[stage] = state["step"]
            for number, values in enumerate(state["modules"]):
                for name, value in values.items():
                    if not (stage == "vision" and name.startswith(LAYERS)):
                        tensors[f"{stage}.{number}.{name}"] = value.half().contiguous()
        save_file(tensors, path, {"steps": json.dumps(steps)})


class Threads:
    """Use two threads where two cores are free, one where another process wants a core; `fixed` switches this off.

    Waiting for a core that another process holds costs far more than it brings, hence the regular probe.
    """

    def __init__(self, fixed: int | None = None, every: int = 40):
        self.fixed, self.every = fixed, every
        self.most = min(2, os.cpu_count() or 1)
        self.cost: dict[int, float] = {}
        self.now, self.step = self.most, 0
        if fixed:
            torch.set_num_threads(fixed)

    def begin(self) -> None:
        """Call before a training step."""
        if self.fixed or self.most == 1:
            return
        self.step += 1
        other = 3 - self.now
        self.used = other if self.step % self.every in (0, 1) else self.now
        if self.used != torch.get_num_threads():
            torch.set_num_threads(self.used)
        self.clock = time.perf_counter()

    def end(self) -> None:
        """Call after a training step."""
        if self.fixed or self.most == 1:
            return
        seconds = time.perf_counter() - self.clock
        old = self.cost.get(self.used, seconds)
        # A probe replaces the memory of how the other count did; the current count is averaged.
        self.cost[self.used] = 0.7 * old + 0.3 * seconds if self.used == self.now else min(seconds, 2 * old)
        if len(self.cost) == 2 and self.cost[3 - self.now] < 0.93 * self.cost[self.now]:
            self.now = 3 - self.now
