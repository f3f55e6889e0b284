"""GlimpsePrune+: fine-tune with pruned visual context, merge, and train a predictor for the new weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.learn.data import GroundedSample, GroundedSamples
from foveate.learn.glimpse_plus.config import PlusSettings
from foveate.learn.glimpse_plus.stages import StagesDone, merge, reinforce, train_predictor
from foveate.learn.processes import Processes


def train_plus(
    settings: PlusSettings,
    samples: GroundedSamples,
    held_out: Sequence[GroundedSample],
    folder: Path,
    fresh: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Run the stages of GlimpsePrune+ that a folder does not have yet.

    1. `rl`: GRPO with LoRA on the model, sampling and scoring with pruned context (`PlusTrainer`). Goes on from the
       last checkpoint in FOLDER/rl; gives FOLDER/adapter, with time and peak memory of each step in steps.json.
    2. `merge`: the adapter goes into the weights; gives FOLDER/model, an ordinary model with its processor.
    3. `predictor`: a predictor is trained on that model, unless `settings.glimpse` is None; gives FOLDER/predictor.

    Parameters
    ----------
    settings
        How.
    samples
        Questions, answers and boxes.
    held_out
        Others, at which the training of the predictor looks.
    folder
        Gets everything.
    fresh
        Start over instead of going on.
    device
        auto, cpu, cuda, …
    progress
        Called with what is done, how much and of how much.
    processes
        Those that share the work.

    Returns
    -------
    dict
        What FOLDER/plus.json holds: settings, data, and an entry for each finished stage.

    Raises
    ------
    TrainingError
        The folder holds a run of other settings, the data is unusable, or what training needs is not installed.
    """
    state = StagesDone(folder, settings, samples, fresh, processes or Processes())
    state.run("rl", lambda: reinforce(settings, samples, folder, device, progress, state.processes))
    state.run("merge", lambda: merge(settings, folder), by_one=True)
    if settings.glimpse is not None:
        state.run(
            "predictor",
            lambda: train_predictor(settings, samples, held_out, folder, device, progress, state.processes),
        )
    return state.data
