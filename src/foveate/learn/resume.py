"""Sums on disk after every batch, so that a calibration that was stopped continues where it was."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from foveate.learn.data import GroundedSamples
from foveate.learn.errors import CalibrationError, TrainingError
from foveate.learn.glimpse_plus.config import PlusSettings
from foveate.learn.glimpse_plus.stages import ADAPTER, MODEL, PREDICTOR, RUN
from foveate.learn.processes import Processes
from foveate.measure import environment

Sample = TypeVar("Sample")


class State:
    """Running sums of each pass over the samples.

    Parameters
    ----------
    path : Path
        A JSON file; its size depends on model and candidates, not on the number of samples.
    configuration : dict
        What all sums in the file have in common. A file of another configuration is refused.
    fresh : bool
        Throw away what is there.
    processes : Processes
        They share the work; the main one writes.
    """

    def __init__(
        self, path: Path, configuration: dict[str, Any], fresh: bool = False, processes: Processes | None = None
    ) -> None:
        self.path, self.processes = path, processes or Processes()
        self.configuration = json.loads(json.dumps(configuration))
        read: Any = None
        if self.processes.main and not fresh and path.exists():
            try:
                read = self._read()
            except CalibrationError as error:
                read = error
        read = self.processes.from_main(read)
        if isinstance(read, CalibrationError):
            raise read
        self.passes: dict[str, dict[str, Any]] = read or {}

    def _read(self) -> dict[str, Any]:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            earlier, passes = data["configuration"], data["passes"]
        except (ValueError, KeyError, TypeError) as error:
            raise CalibrationError(
                f"{self.path} is not the state of a calibration: give another --out, or --fresh to start over"
            ) from error
        now = self.configuration
        differ = sorted(key for key in now | earlier if now.get(key) != earlier.get(key))
        if differ:
            was = ", ".join(f"{key} {earlier.get(key)!r} (now {now.get(key)!r})" for key in differ)
            raise CalibrationError(
                f"{self.path} was made with another configuration: {was}. Give another --out, or --fresh to start over"
            )
        return dict(passes)

    def run(
        self,
        name: str,
        samples: Sequence[Sample],
        batch_size: int,
        measure: Callable[[list[Sample]], Mapping[str, Tensor]],
        progress: Callable[[str, int, int], None] | None = None,
        about: Sequence[object] = (),
    ) -> dict[str, Tensor]:
        """Sum what `measure` gives over all batches of the samples, or go on with it, or take what is done.

        Parameters
        ----------
        name : str
            Of the pass.
        samples : sequence
            All of them; each process takes every so-manieth batch.
        batch_size : int
            Samples measured at once.
        measure : callable
            A batch in, float64 tensors by name out: sums over its samples, of the same shapes for every batch.
        progress : callable or None
            Called with the name, how many samples are done and of how many, after each round of batches.
        about : sequence
            What is measured, told by `repr`; sums of something else, by an earlier version of foveate, are not used.
        """
        batches = [list(samples[at : at + batch_size]) for at in range(0, len(samples), batch_size)]
        told = hashlib.sha256(repr(list(about)).encode()).hexdigest()[:16]
        entry = self.passes.get(name, {})
        if entry.get("about") != told:
            entry = {"batches": 0, "sums": {}}
        done = int(entry["batches"])
        sums = {key: torch.tensor(value, dtype=torch.float64) for key, value in entry["sums"].items()}
        while done < len(batches):
            here = done + self.processes.index
            found = dict(measure(batches[min(here, len(batches) - 1)]))
            if here >= len(batches):  # no batch left for this process; the others still need its place in the sum
                found = {key: torch.zeros_like(value) for key, value in found.items()}
            found = self.processes.total(found)
            sums = {key: sums[key] + value if sums else value for key, value in found.items()}
            done = min(done + self.processes.number, len(batches))
            written = {key: value.tolist() for key, value in sums.items()}
            self.passes[name] = {"about": told, "batches": done, "sums": written}
            self._write()
            if progress:
                progress(name, min(done * batch_size, len(samples)), len(samples))
        return sums

    def _write(self) -> None:
        if not self.processes.main:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"configuration": self.configuration, "passes": self.passes}), encoding="utf-8")
        new.replace(self.path)  # a stop in the middle of writing leaves the old one whole


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
