"""Sums on disk after every batch, so that a calibration that was stopped continues where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from foveate.learn.errors import CalibrationError
from foveate.measure.processes import Processes
from foveate.measure.resume import differences, write_whole

Sample = TypeVar("Sample")


class PassSums:
    """Running sums of each pass over the samples.

    Parameters
    ----------
    path
        A JSON file; its size depends on model and candidates, not on the number of samples.
    configuration
        What all sums in the file have in common. A file of another configuration is refused.
    fresh
        Throw away what is there.
    processes
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
        was = differences(earlier, self.configuration)
        if was:
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
        """Sum what `measure` gives over all batches of the samples, or continue with it, or take what is done.

        Parameters
        ----------
        name
            Of the pass.
        samples
            All of them; each process takes every n-th batch.
        batch_size
            Samples measured at once.
        measure
            A batch in, float64 tensors by name out: sums over its samples, of the same shapes for every batch.
        progress
            Called with the name, how many samples are done and of how many, after each round of batches.
        about
            What is measured, identified by its `repr`; sums of something else, by an earlier version of foveate, are
            not used.
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
        if self.processes.main:
            write_whole(self.path, {"configuration": self.configuration, "passes": self.passes})
