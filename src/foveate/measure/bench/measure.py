"""Everything that is measured of one setting: all arms on one prompt, interleaved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from foveate.engine.arguments import cache_of
from foveate.measure.bench.arms import AGAIN, DENSE, SMALLER, Arm
from foveate.measure.bench.counters import cache_bytes, counted, peak_bytes
from foveate.measure.bench.prompts import BenchPrompt
from foveate.measure.bench.settings import BenchSettings
from foveate.measure.bench.timing import Times, attached, new_cache, prefill, split_run, timed_run

Advance = Callable[[str], None]


@dataclass
class Measured:
    """What was found of one arm."""

    arm: Arm
    prompt: BenchPrompt
    times: Times = field(default_factory=Times)
    parts: list[dict[str, float]] = field(default_factory=list)
    selection_ms: list[float] = field(default_factory=list)
    flops: int | None = None
    peak: int | None = None
    kv: int | None = None
    report: Any = None
    failed: str | None = None


def measure(
    model: Any,
    family: Any,
    arms: list[Arm],
    prompts: dict[str, BenchPrompt],
    settings: BenchSettings,
    advance: Advance,
) -> list[Measured]:
    """Measure all arms.

    Parameters
    ----------
    model, family
        The model and its family.
    arms
        Dense first.
    prompts
        By arm label; `dense` is that of every arm that has none of its own.
    settings
        Rounds and decoded tokens.
    advance
        Called with what was done, after each step.

    Returns
    -------
    list of Measured
        One an arm; one whose memory did not suffice says so in `failed`.
    """
    found = [Measured(arm, prompts.get(arm.label, prompts[DENSE])) for arm in arms]
    for one in found:
        _count(model, one, settings.operations)
        advance(f"{one.arm.label}: operations and memory")
    running = [one for one in found if one.failed is None]
    if not running or running[0].arm.label != DENSE:
        return found
    for number in range(-1, settings.rounds):
        turns = _order(running, number)
        if number < 0 and model.device.type == "cpu":  # where counting has warmed up all but the machine itself
            turns = running[:1]
        for one in turns:
            _time(model, one, settings, number < 0)
        running = [one for one in running if one.failed is None]
        if not running or running[0].arm.label != DENSE:
            return found
        advance(f"round {number + 1} of {settings.rounds}" if number >= 0 else "warm-up")
    for number in range(settings.splits):
        for one in _order(running, number):
            if one.arm.label != AGAIN:
                one.parts.append(split_run(model, one.prompt.inputs, one.arm.pruner, family))
        advance(f"taken apart {number + 1} of {settings.splits}")
    return found


def _time(model: Any, one: Measured, settings: BenchSettings, warm_up: bool) -> None:
    """One run of one arm; one that runs out of memory has no times at all."""
    times, steps = (Times(), 1) if warm_up else (one.times, settings.decode)
    try:
        handle = timed_run(model, one.prompt.inputs, one.arm.pruner, steps, times)
    except (torch.OutOfMemoryError, MemoryError) as error:
        one.times, one.selection_ms = Times(), []
        _out_of_memory(model, one, error)
        return
    if handle is not None and not warm_up:
        one.selection_ms.append(handle.report.selection_ms)


def _out_of_memory(model: Any, one: Measured, error: BaseException) -> None:
    one.failed = f"out of memory: {str(error).splitlines()[0][:160]}" if str(error) else "out of memory"
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def _order(running: list[Measured], number: int) -> list[Measured]:
    """Each round begins with another arm, and every second one goes backwards."""
    start = number % len(running)
    turned = running[start:] + running[:start]
    return turned[::-1] if number % 2 else turned


@torch.inference_mode()
def _count(model: Any, one: Measured, operations: bool) -> None:
    """Operations, peak memory and KV cache, each of a prefill of its own."""
    try:
        if operations:
            with attached(model, one.arm.pruner):
                _, one.flops = counted(lambda: prefill(model, one.prompt.inputs, new_cache(model)))
        elif model.device.type != "cpu":  # what a library allocates the first time is no method's
            with attached(model, one.arm.pruner):
                prefill(model, one.prompt.inputs, new_cache(model))
        with attached(model, one.arm.pruner) as handle:
            cache = new_cache(model)
            _, one.peak = peak_bytes(model.device, lambda: prefill(model, one.prompt.inputs, cache))
            one.report = None if handle is None else handle.report
        one.kv = cache_bytes(cache_of(cache))
    except (torch.OutOfMemoryError, MemoryError) as error:
        _out_of_memory(model, one, error)


def is_dense(label: str) -> bool:
    """Say whether an arm of this label runs the dense model."""
    return label in (DENSE, AGAIN) or label.startswith(f"{SMALLER} @")
