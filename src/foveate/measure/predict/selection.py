"""What a method selects and how long it takes, without a model: its own `select` on made-up visual tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from foveate.errors import BudgetError
from foveate.measure.predict import synthetic
from foveate.measure.predict.rates import LayerSizes, RateCurve, Rates, RatesError
from foveate.pruners.base import Pruner, SingleStagePruner, depth_of
from foveate.pruners.budget import tokens_to_keep
from foveate.pruners.spec import brief

SIZES = (32, 128, 512, 2048)
SECONDS = 0.1  # about how long a stage is timed at a size


def kept(pruner: Pruner, config: Any, visual: int, text: int = 64, share: float | None = None) -> list[int]:
    """Return the visual tokens that each stage leaves of a prompt's `visual`, in one image.

    Parameters
    ----------
    pruner
        The method. One that may stop short of its budget is taken to reach it.
    config
        The model's.
    visual, text
        Visual and text tokens of a prompt.
    share
        What a method that finds its own budget is taken to keep; None: its `max_keep`.

    Raises
    ------
    BudgetError
        A method that finds its own budget has no `keep` and no `max_keep`, and no share is given; or the pruner does
        not fit the model.
    """
    method = pruner.resolved(config)
    stages = method.layers(depth_of(config))
    counts: list[int] = []
    dense = torch.tensor([visual])
    if not visual:
        return [0] * len(stages)
    for layer in stages:
        known = method.kept(layer, dense, torch.tensor([counts[-1] if counts else visual]))
        if known is None and method.finds_budget:
            known = torch.tensor([_found(method, visual, share)])
        if known is None and isinstance(method, SingleStagePruner):  # of one image, and at most
            known = tokens_to_keep(method.keep, dense)
        if known is None:
            return _chosen(method, stages, visual, text)
        counts.append(int(known))
    return counts


def _chosen(method: Pruner, stages: Iterable[int], visual: int, text: int) -> list[int]:
    """What `select` leaves of made-up tokens, stage by stage."""
    scene = synthetic.MadeUpPrompt(visual, text)
    counts: list[int] = []
    tokens = synthetic.visual_tokens(scene, method, next(iter(stages)))
    for layer in stages:
        tokens = synthetic.for_stage(tokens, scene, method, layer)
        keep = method.select(tokens) & tokens.valid if counts[-1:] != [0] else tokens.valid
        counts.append(int(keep.sum()))
        tokens = synthetic.left(tokens, keep)
    return counts


def _found(method: Any, visual: int, share: float | None) -> int:
    keep, most = getattr(method, "keep", None), getattr(method, "max_keep", None)
    if keep is not None:  # and corners, which may be among them
        return int(tokens_to_keep(keep, torch.tensor([visual])))
    if share is None and most is None:
        raise BudgetError(
            f"{method.name} finds its own budget: give max_keep or keep, or say which share it is to be taken to keep"
        )
    if share is not None and not 0 < share <= 1:
        raise BudgetError(f"the assumed share lies in (0, 1], got {share!r}")
    least = min(getattr(method, "min_keep", 1), visual)
    caps = [int(visual * cap) for cap in (share, most) if cap is not None]
    return max(least, min(caps))


def key(pruner: Pruner, config: Any, batch: int) -> str:
    """Return the name under which `Rates.choosing` has a method's time."""
    method = brief(pruner.resolved(config))
    return f"{method}, {config.num_hidden_layers} layers of {config.hidden_size}, batch {batch}"


def measure_choosing(
    rates: Rates, pruner: Pruner, config: Any, batch: int = 1, text: int = 64, sizes: Iterable[int] = SIZES
) -> Rates:
    """Return the rates with the time that a method takes to select at these numbers of visual tokens.

    Its `select` runs on made-up tokens of the model's width, all stages, on the device of the rates.

    Parameters
    ----------
    rates
        Measured on this machine.
    pruner
        The method.
    config
        The model's text config.
    batch, text
        Prompts at once, and text tokens of each.
    sizes
        Visual tokens of a prompt; between them the time is interpolated, beyond it grows as between the last two.

    Raises
    ------
    RatesError
        When the rates are of another machine.
    """
    if not rates.here:
        raise RatesError(
            f"the selection time of {brief(pruner)} is not among these rates, and this is not the machine they are "
            "of: measure it there"
        )
    sizes = sorted({size for size in sizes if size > 0}) or list(SIZES)
    points = tuple((size, _seconds(rates, pruner, config, batch, text, size)) for size in sizes)
    curve = RateCurve(points, grows=True)
    return dataclasses.replace(rates, choosing={**rates.choosing, key(pruner, config, batch): curve})


@torch.inference_mode()
def _seconds(rates: Rates, pruner: Pruner, config: Any, batch: int, text: int, visual: int) -> float:
    from foveate.measure.predict.measure_rates import clock

    shape = LayerSizes.of(config)
    device = torch.device(rates.device)
    scene = synthetic.MadeUpPrompt(visual, text, batch, shape.hidden, shape.heads, rates.device, rates.torch_dtype)
    method, tokens, total = pruner.resolved(config), None, 0.0
    for layer in method.layers(config.num_hidden_layers):
        if tokens is None:
            tokens = synthetic.visual_tokens(scene, method, layer)
        tokens = synthetic.for_stage(tokens, scene, method, layer)
        shown = tokens
        total += clock(lambda shown=shown: method.select(shown), device, SECONDS)  # type: ignore[misc]
        keep = method.select(shown) & shown.valid
        if not bool(keep.any()):
            break
        tokens = synthetic.left(tokens, keep)
    return max(total, 1e-9)
