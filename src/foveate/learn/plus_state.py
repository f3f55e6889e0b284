"""Which stages of GlimpsePrune+ a folder has, so that a run that was stopped goes on."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveate.learn.data import GroundedSamples
from foveate.learn.errors import TrainingError
from foveate.learn.glimpse_plus.config import PlusSettings
from foveate.learn.glimpse_plus.stages import ADAPTER, MODEL, PREDICTOR, RUN
from foveate.learn.processes import Processes
from foveate.measure import environment

STATE = "plus.json"
FORMAT = "foveate-plus-1"


class State:
    """Which stages a folder has, and of what settings."""

    def __init__(
        self, folder: Path, settings: PlusSettings, samples: GroundedSamples, fresh: bool, processes: Processes
    ) -> None:
        self.path, self.processes = folder / STATE, processes
        about = {
            "settings": dataclasses.asdict(settings),
            "data": {"name": samples.name, "fingerprint": samples.fingerprint, "samples": len(samples.items)},
        }
        about = json.loads(json.dumps(about))
        found = processes.from_main(self._start(about, fresh) if processes.main else None)
        if isinstance(found, TrainingError):
            raise found
        self.data: dict[str, Any] = found

    def _start(self, about: dict[str, Any], fresh: bool) -> dict[str, Any] | TrainingError:
        new = {"format": FORMAT, **about, "done": {}}
        if fresh:
            _clear(self.path.parent)
        elif self.path.exists():
            return self._read(about)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write(new)
        return new

    def _read(self, about: dict[str, Any]) -> dict[str, Any] | TrainingError:
        try:
            data = dict(json.loads(self.path.read_text(encoding="utf-8")))
            earlier = {**data["settings"], **{f"data {key}": value for key, value in data["data"].items()}}
            data["done"].items()
        except (ValueError, KeyError, TypeError, AttributeError):
            return TrainingError(f"{self.path} is not of a GlimpsePrune+ run: give another folder, or --fresh")
        now = {**about["settings"], **{f"data {key}": value for key, value in about["data"].items()}}
        differ = sorted(key for key in now | earlier if now.get(key) != earlier.get(key))
        if differ:
            was = ", ".join(f"{key} {earlier.get(key)!r} (now {now.get(key)!r})" for key in differ)
            return TrainingError(
                f"{self.path.parent} holds a run of other settings: {was}; give another folder, or --fresh"
            )
        return data

    def run(self, name: str, stage: Callable[[], dict[str, Any]], by_one: bool = False) -> None:
        """Run a stage unless it is done, and note that it is.

        Parameters
        ----------
        by_one
            The main process does it alone, and the others wait.
        """
        if name in self.data["done"]:
            return
        found = stage() if self.processes.main or not by_one else {}
        found = self.processes.from_main(found)
        gc.collect()  # one stage's model goes before the next one's comes
        self.data["done"][name] = {"command": environment.command(), **found}
        if self.processes.main:
            self._write(self.data)

    def _write(self, data: dict[str, Any]) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(self.path)  # a stop in the middle of writing leaves the old one whole


def _clear(folder: Path) -> None:
    """Remove what an earlier run wrote, and nothing else."""
    for name in (RUN, ADAPTER, MODEL, PREDICTOR):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    (folder / STATE).unlink(missing_ok=True)
