"""transformers' Trainer with the parts of the loss in its log and a look at held-out questions now and then."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer

from foveate.pruners import GlimpsePrune

KEPT = "history.json"


class GlimpseTrainer(Trainer):
    """Trains a `GlimpseForTraining`.

    Parameters
    ----------
    look
        What is measured of a pruner every `every` updates.
    max_keep
        Of that pruner.
    report
        Called with what is done, updates, and of how many.
    """

    def __init__(
        self,
        *,
        look: Callable[[GlimpsePrune], dict[str, Any]],
        every: int,
        max_keep: float | None,
        report: Callable[[str, int, int], None] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.remove_callback(PrinterCallback)
        self.look, self.every, self.max_keep, self.report = look, every, max_keep, report
        self.history: list[dict[str, float]] = []
        self.checks: list[dict[str, float]] = []
        self.parts: dict[str, list[float]] = defaultdict(list)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **rest: Any) -> Any:
        """The loss; its parts are kept for the log."""
        found = model(**inputs)
        for name, value in found.items():
            if name != "loss" and not value.isnan():  # no recall of samples without boxes
                self.parts[name].append(float(value))
        return (found["loss"], found) if return_outputs else found["loss"]

    def log(self, logs: dict[str, float], *args: Any, **rest: Any) -> None:
        """Add the parts since the last time."""
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self.parts.items() if values}
            self.history.append({"step": self.state.global_step, **{k: float(v) for k, v in logs.items()}})
            self.parts.clear()
        super().log(logs, *args, **rest)

    def _maybe_log_save_evaluate(self, *args: Any, **rest: Any) -> None:
        step = self.state.global_step
        if self.report:
            self.report("training", step, self.state.max_steps)
        looked = self.checks[-1]["step"] if self.checks else 0  # the end of an epoch comes here twice
        if self.every and step % self.every == 0 and step > looked and self.is_world_process_zero():
            learned = self.accelerator.unwrap_model(self.model).learned
            with torch.random.fork_rng():  # looking draws nothing that training would have drawn
                learned.eval()
                self.checks.append({"step": step, **self.look(GlimpsePrune(weights=learned, max_keep=self.max_keep))})
                learned.train()
        super()._maybe_log_save_evaluate(*args, **rest)

    def _save_checkpoint(self, *args: Any, **rest: Any) -> None:
        super()._save_checkpoint(*args, **rest)
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            kept = {"history": self.history, "checks": self.checks}
            (folder / KEPT).write_text(json.dumps(kept), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **rest: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **rest)
        path = Path(resume_from_checkpoint) / KEPT
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.history, self.checks = kept["history"], kept["checks"]
