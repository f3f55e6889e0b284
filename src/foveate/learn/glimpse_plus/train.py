"""GlimpsePrune+ (experimental): fine-tune with pruned context, merge, train a predictor for the new weights."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError
from foveate.learn.data import GroundedSample, GroundedSamples
from foveate.learn.errors import TrainingError
from foveate.learn.glimpse.train import GlimpseSettings, train_glimpse
from foveate.learn.glimpse_plus.config import PlusSettings
from foveate.learn.glimpse_plus.rewards import reward_by_name
from foveate.learn.glimpse_plus.setup import Progress, load_for, make_trainer, usable
from foveate.measure import environment
from foveate.measure.loading import load_model
from foveate.measure.processes import Processes
from foveate.measure.resume import differences, write_whole
from foveate.pruners.glimpseprune.modules import GlimpseConfig
from foveate.pruners.glimpseprune.sizes import sizes_for
from foveate.torch_state import own_randomness

ADAPTER, STEPS, MODEL, PREDICTOR, RUN = "adapter", "steps.json", "model", "predictor", "rl"
FIGURES = ("step", "seconds", "peak_bytes", "kept", "kv_share", "reward", "reward_std", "kl", "entropy", "loss")


def need_trl() -> None:
    """Say what to install.

    Raises
    ------
    TrainingError
        TRL, PEFT, accelerate or datasets is missing.
    """
    try:
        import accelerate  # noqa: F401
        import datasets  # noqa: F401
        import peft  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise TrainingError(f"GlimpsePrune+ needs {error.name}: pip install 'foveate[train]'") from error


@own_randomness()
def reinforce(
    settings: PlusSettings,
    samples: GroundedSamples,
    folder: Path,
    device: str = "auto",
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Fine-tune by GRPO; continues from the last checkpoint of FOLDER/rl."""
    need_trl()
    from transformers.trainer_utils import get_last_checkpoint

    processes = processes or Processes()
    reward = reward_by_name(settings.reward, settings.judge)
    loaded = load_for(settings, processes.device(device))
    if settings.glimpse is not None:
        check_sizes(settings, loaded.model)
    items, left_out = usable(settings, samples.items, loaded, progress)
    trainer = make_trainer(settings, items, loaded, reward, folder / RUN, progress)
    (folder / RUN).mkdir(parents=True, exist_ok=True)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder / RUN)))
    if processes.main:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder / ADAPTER)
        history = [entry for entry in trainer.state.log_history if "seconds" in entry]
        steps = [{name: entry[name] for name in FIGURES if name in entry} for entry in history]
        report = {
            "pruned": settings.pruned,
            "memory": trainer.meter.kind,
            "machine": environment.machine(loaded.model.device),
            "steps": steps,
        }
        (folder / ADAPTER / STEPS).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return {
        "samples": len(items),
        "left_out": left_out,
        "steps": trainer.state.global_step,
        "versions": environment.versions(),
        **_summary(trainer.state.log_history),
    }


def _summary(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median seconds and largest memory of a step."""
    entries = [entry for entry in history if "seconds" in entry]
    if not entries:
        return {}
    found: dict[str, Any] = {"seconds_per_step": statistics.median(float(entry["seconds"]) for entry in entries)}
    if any("peak_bytes" in entry for entry in entries):
        found["peak_bytes"] = max(int(float(entry["peak_bytes"])) for entry in entries if "peak_bytes" in entry)
    return found


def merge(settings: PlusSettings, folder: Path) -> dict[str, Any]:
    """Put the adapter of FOLDER/adapter into the weights; gives FOLDER/model."""
    need_trl()
    from peft import PeftModel

    loaded = load_for(settings, "cpu")
    before = environment.model_fingerprint(loaded.model)
    merged = PeftModel.from_pretrained(loaded.model, str(folder / ADAPTER)).merge_and_unload()
    merged.save_pretrained(folder / MODEL)
    loaded.processor.save_pretrained(folder / MODEL)
    return {"from": before, "to": environment.model_fingerprint(merged)}


def check_sizes(settings: PlusSettings, model: Any) -> GlimpseConfig:
    """Sizes of the predictor, checked before the hours that come first.

    Raises
    ------
    TrainingError
        They do not do.
    """
    unknown = sorted(set(settings.glimpse_sizes) - {one.name for one in dataclasses.fields(GlimpseConfig)})
    if unknown:
        raise TrainingError(f"a predictor has no size {', '.join(unknown)}")
    try:
        return sizes_for(model, **settings.glimpse_sizes)
    except (FoveateError, TypeError, ValueError) as error:
        raise TrainingError(f"glimpse_sizes do not do: {error}") from error


def train_predictor(
    settings: PlusSettings,
    samples: GroundedSamples,
    held_out: Sequence[GroundedSample],
    folder: Path,
    device: str,
    progress: Progress | None,
    processes: Processes,
) -> dict[str, Any]:
    """Train a predictor on FOLDER/model, as `foveate train glimpse` does; gives FOLDER/predictor."""
    loaded = load_model(str(folder / MODEL), processes.device(device), "bfloat16" if settings.bf16 else "auto")
    sizes = check_sizes(settings, loaded.model)
    how = settings.glimpse or GlimpseSettings()
    result = train_glimpse(loaded, samples, held_out, how, folder / PREDICTOR, sizes, True, progress)
    return {"held_out": result.get("held_out", {})}


STATE = "plus.json"
FORMAT = "foveate-plus-1"


class StagesDone:
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
        write_whole(self.path, new, indent=2)
        return new

    def _read(self, about: dict[str, Any]) -> dict[str, Any] | TrainingError:
        try:
            data = dict(json.loads(self.path.read_text(encoding="utf-8")))
            earlier = {**data["settings"], **{f"data {key}": value for key, value in data["data"].items()}}
            data["done"].items()
        except (ValueError, KeyError, TypeError, AttributeError):
            return TrainingError(f"{self.path} is not of a GlimpsePrune+ run: give another folder, or --fresh")
        now = {**about["settings"], **{f"data {key}": value for key, value in about["data"].items()}}
        was = differences(earlier, now)
        if was:
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
            write_whole(self.path, self.data, indent=2)


def _clear(folder: Path) -> None:
    """Remove what an earlier run wrote, and nothing else."""
    for name in (RUN, ADAPTER, MODEL, PREDICTOR):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    (folder / STATE).unlink(missing_ok=True)


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
