"""Runs against the clock: prefill and decode of one arm, alone and taken apart."""

from __future__ import annotations

import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from foveate.errors import UnsupportedModelError

WALL, CPU = "wall", "cpu"
PARTS = ("vision", "before", "behind", "choosing", "compaction", "rest")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@dataclass
class Times:
    """Seconds of each round: a prefill, and one decoded token (the median of a round's)."""

    prefill: dict[str, list[float]] = field(default_factory=lambda: {WALL: [], CPU: []})
    decode: dict[str, list[float]] = field(default_factory=lambda: {WALL: [], CPU: []})


def new_cache(model: Any) -> dict[str, Any]:
    """Return an empty KV cache, as `generate()` makes it, by the name that the model's argument has."""
    from transformers import DynamicCache

    from foveate.engine.arguments import with_cache

    return with_cache(model, DynamicCache(config=model.config.get_text_config()))


@contextlib.contextmanager
def attached(model: Any, pruner: Any) -> Iterator[Any]:
    """Attach a pruner, or nothing; the handle, or None."""
    with pruner(model) if pruner is not None else contextlib.nullcontext() as handle:
        yield handle


def prefill(model: Any, inputs: Mapping[str, Any], cache: Mapping[str, Any]) -> Any:
    """Return what the model makes of a prompt; `cache` is what `new_cache` gives."""
    return model(**inputs, **cache, use_cache=True, logits_to_keep=1)


@torch.inference_mode()
def timed_run(model: Any, inputs: Mapping[str, Any], pruner: Any, steps: int, times: Times) -> Any:
    """Prefill and decode once, and add the seconds; the handle, or None.

    Attaching, which happens once for many prompts, is not in the time.
    """

    def clock() -> dict[str, float]:
        synchronize(model.device)
        return {WALL: time.perf_counter(), CPU: time.process_time()}

    with attached(model, pruner) as handle, no_collection():
        marks = [clock()]
        cache = new_cache(model)
        out = prefill(model, inputs, cache)
        marks.append(clock())
        for _ in range(steps):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            out = model(input_ids=token, **cache, use_cache=True, logits_to_keep=1)
            marks.append(clock())
    for kind in (WALL, CPU):
        first, *rest = [after[kind] - before[kind] for before, after in itertools.pairwise(marks)]
        times.prefill[kind].append(first)
        if rest:
            times.decode[kind].append(statistics.median(rest))
    return handle


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python from looking for garbage meanwhile."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _vision(family: Any, model: Any) -> list[Any]:
    """Encoder and projector; none of a model whose vision side is not known, whose time is then in `rest`."""
    try:
        parts = family.vision_parts(model)
    except UnsupportedModelError:
        return []
    return [parts.encoder, parts.projector]


@torch.inference_mode()
def split_run(model: Any, inputs: Mapping[str, Any], pruner: Any, family: Any) -> dict[str, float]:
    """Return the milliseconds of a prefill's parts, and `total`; each part is waited for, which costs time of its own.

    `vision` is encoder and projector, `before` and `behind` are the decoder layers before and from the first
    stage on (all are `before` without one), `choosing` and `compaction` what the report says, `rest`
    embedding, head and what lies between.
    """
    marks: dict[str, list[float]] = {}

    def mark(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            synchronize(model.device)
            marks.setdefault(name, []).append(1e3 * time.perf_counter())

        return note

    # 1. one run with a mark at each part's beginning and end
    parts = family.parts(model)
    hooks = []
    with contextlib.ExitStack() as stack:
        for number, layer in enumerate(parts.layers):
            hooks += [
                layer.register_forward_pre_hook(mark(f"into {number}")),  # before the engine's own, which cuts there
                layer.register_forward_hook(mark(f"out of {number}")),
            ]
        for module in _vision(family, model):
            hooks.append(module.register_forward_pre_hook(mark("into vision")))
            hooks.append(module.register_forward_hook(mark("out of vision")))
        for hook in hooks:
            stack.callback(hook.remove)
        handle = stack.enter_context(attached(model, pruner))
        mark("start")()
        prefill(model, inputs, new_cache(model))
        mark("end")()
    # 2. the marks as milliseconds of each part
    layers = [marks[f"out of {number}"][0] - marks[f"into {number}"][0] for number in range(len(parts.layers))]
    report = None if handle is None else handle.report
    stages = report.stages if report is not None else []
    first = stages[0].layer if stages else len(layers)
    found = dict.fromkeys(PARTS, 0.0)
    found["total"] = marks["end"][0] - marks["start"][0]
    if "into vision" in marks:
        found["vision"] = marks["out of vision"][-1] - marks["into vision"][0]
    if report is not None:
        found["choosing"], found["compaction"] = report.selection_ms, report.compaction_ms
    found["before"] = sum(layers[:first])
    found["behind"] = sum(layers[first:]) - found["choosing"] - found["compaction"]
    found["rest"] = found["total"] - sum(found[part] for part in PARTS if part != "rest")
    return found


RUNS, WARM_UP = 9, 2


@dataclass(frozen=True)
class PrefillTime:
    """Medians over alternating runs.

    Parameters
    ----------
    ratio
        Median over the runs of pruned time over the time of the dense run beside it; under 1 is a gain.
    dense_ms, pruned_ms
        Median milliseconds, image encoder included. They belong to the machine and its load; the ratio travels.
    selection_ms
        Median milliseconds of `pruned_ms` that went into selection.
    runs
        Pairs that were timed.
    """

    ratio: float
    dense_ms: float
    pruned_ms: float
    selection_ms: float
    runs: int

    def to_dict(self) -> dict[str, float]:
        """Return plain data for JSON."""
        return asdict(self)


def time_prefill(model: Any, inputs: Mapping[str, Any], pruner: Any, runs: int = RUNS) -> PrefillTime:
    """Time the prefill of one batch dense and pruned, interleaved, in this process.

    Parameters
    ----------
    model
        Nothing may be attached to it.
    inputs
        A processed batch.
    pruner
        What is compared with the dense run.
    runs
        Pairs to time, after a warm-up.
    """
    dense, pruned, selection = Times(), Times(), []
    for turn in range(runs + WARM_UP):
        if turn % 2:  # neither is always the one that finds the caches warm
            timed_run(model, inputs, None, 0, dense)
        selection.append(timed_run(model, inputs, pruner, 0, pruned).report.selection_ms)
        if not turn % 2:
            timed_run(model, inputs, None, 0, dense)
    before, after = dense.prefill[WALL][WARM_UP:], pruned.prefill[WALL][WARM_UP:]
    ratio = statistics.median(new / old for old, new in zip(before, after, strict=True))
    times = (1000 * statistics.median(before), 1000 * statistics.median(after))
    return PrefillTime(ratio, *times, statistics.median(selection[WARM_UP:]), runs)
