"""One process or several: `accelerate launch` starts several, and each takes its share of the batches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.errors import FoveateError

# by torch's launcher, and by those of MPI
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


class ProcessesError(FoveateError, ImportError):
    """Several processes were launched, and what joins them is not installed."""


@dataclass(frozen=True)
class Processes:
    """Who else works on this.

    Attributes
    ----------
    number, index
        How many processes there are, and which one this is.
    state
        Of accelerate; None where there is one process.
    """

    number: int = 1
    index: int = 0
    state: Any = None

    @property
    def main(self) -> bool:
        """True of the one process that writes and prints."""
        return self.index == 0

    def device(self, asked: str) -> str:
        """The device of this process where none was asked for by name: each has an accelerator of its own."""
        return asked if self.state is None or asked != "auto" else str(self.state.device)

    def total(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over all processes, `{name: float64}`; every process gets them."""
        if self.state is None:
            return dict(sums)
        from accelerate.utils import reduce

        # not every accelerator supports float64
        kind = torch.float32 if self.state.device.type == "mps" else torch.float64
        there = {name: value.to(self.state.device, kind) for name, value in sums.items()}
        return {name: value.cpu().double() for name, value in reduce(there, "sum").items()}

    def from_main(self, value: Any) -> Any:
        """What the main process has, in every process."""
        if self.state is None:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def together(self, value: Any) -> list[Any]:
        """What each process has, in every process, in the order of their indices; all wait for the last."""
        if self.state is None:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))


def alone_by_mistake() -> bool:
    """True where accelerate was asked for several processes and started one: on CPUs its own launcher needs MPI."""
    launched = {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= set(os.environ)
    return launched and not any(name in os.environ for name in SIZES)


def current() -> Processes:
    """The processes of this launch.

    Raises
    ------
    ProcessesError
        Several were launched, but accelerate is not installed.
    """
    if max(int(os.environ.get(name, "1")) for name in SIZES) < 2:
        return Processes()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ProcessesError("several processes need accelerate: pip install 'foveate[learn]'") from error
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    # without an accelerator it would join no process, and each would do all the work
    state = PartialState(cpu=cpu or not torch.accelerator.is_available())
    return Processes(state.num_processes, state.process_index, state)
