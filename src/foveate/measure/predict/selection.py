"""What a method selects and how long it takes, without a model: its own `select` on made-up visual tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.engine.layout import lay_out
from foveate.errors import BudgetError
from foveate.families.grids import Grid
from foveate.measure.predict.measure_rates import clock
from foveate.measure.predict.rates import LayerSizes, RateCurve, Rates, RatesError
from foveate.pruners.base import PromptRows, Pruner, Selection, SingleStagePruner, VisualTokens
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
        The text config of the model; a pruner that differs between models is worked out for this one.
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
    stages = method.layers(config.num_hidden_layers)
    counts: list[int] = []
    dense = torch.tensor([visual])
    if not visual:
        return [0] * len(stages)
    for layer in stages:
        one, present = method.member(layer), torch.tensor([counts[-1] if counts else visual])
        known = one.kept(layer, dense, present)
        if known is None and one.finds_budget:
            known = torch.minimum(torch.tensor([_found(one, visual, share)]), present)
        if known is None and isinstance(one, SingleStagePruner):  # of one image, and at most
            known = torch.minimum(tokens_to_keep(one.keep, dense), present)
        if known is None:
            return _chosen(method, stages, visual, text)
        counts.append(int(known))
    return counts


def _chosen(method: Pruner, stages: Iterable[int], visual: int, text: int) -> list[int]:
    """What `select` leaves of made-up tokens, stage by stage."""
    prompt = MadeUpPrompt(visual, text)
    counts: list[int] = []
    tokens = visual_tokens(prompt, method, next(iter(stages)))
    for layer in stages:
        tokens = for_stage(tokens, prompt, method, layer)
        keep, tokens = _select(method, tokens) if counts[-1:] != [0] else (tokens.valid, tokens)
        counts.append(int(keep.sum()))
        tokens = left(tokens, keep)
    return counts


def _select(method: Pruner, tokens: VisualTokens) -> tuple[Tensor, VisualTokens]:
    """What a stage keeps (B, N) bool, and the tokens with what it leaves for the next one."""
    chosen = method.member(tokens.layer).select(tokens)
    selection = chosen if isinstance(chosen, Selection) else Selection(chosen)
    carried = tokens.carried if selection.carry is None else selection.carry
    return selection.keep & tokens.valid, dataclasses.replace(tokens, carried=carried)


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
    shape = LayerSizes.of(config)
    device = torch.device(rates.device)
    prompt = MadeUpPrompt(visual, text, batch, shape.hidden, shape.heads, rates.device, rates.torch_dtype)
    method, tokens, total = pruner.resolved(config), None, 0.0
    for layer in method.layers(config.num_hidden_layers):
        if tokens is None:
            tokens = visual_tokens(prompt, method, layer)
        tokens = for_stage(tokens, prompt, method, layer)
        shown = tokens
        total += clock(lambda shown=shown: method.select(shown), device, SECONDS)  # type: ignore[misc]
        keep, tokens = _select(method, shown)
        if not bool(keep.any()):
            break
        tokens = left(tokens, keep)
    return max(total, 1e-9)


CLUSTER = 8  # tokens that lie around one centre: an image's are alike in groups
BLOCKS = 24  # of a vision encoder
SPREAD = 0.3  # of a group, against the distance of the centres


@dataclass(frozen=True)
class MadeUpPrompt:
    """What is asked for: `batch` equal prompts of one image each.

    Parameters
    ----------
    visual, text, batch
        Visual tokens and text tokens of a prompt; prompts.
    hidden, heads
        Width of the hidden states, attention heads.
    device, dtype
        Where, and the type of the hidden states.
    """

    visual: int
    text: int = 64
    batch: int = 1
    hidden: int = 8
    heads: int = 1
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


def grid_of(visual: int) -> Grid:
    """Return a grid of about as many rows as columns; what fills no row stands after it, as separators."""
    side = math.isqrt(visual)
    height = next((rows for rows in range(side, side // 2, -1) if visual % rows == 0), side)
    return Grid(height, visual // height, after=visual % height)


def visual_tokens(prompt: MadeUpPrompt, pruner: Pruner, layer: int) -> VisualTokens:
    """Return the tokens of a prompt before anything is pruned, the same ones for the same prompt.

    Features lie around centres, one for eight tokens, so that many are alike; attention is random. Samples are equal.

    Parameters
    ----------
    prompt
        How many, how wide, where.
    pruner
        Resolved for the model's depth; asked for the rows and vision features that it wants.
    layer
        The stage, as a decoder layer.
    """
    generator = torch.Generator().manual_seed(0)
    batch, number, grid = prompt.batch, prompt.visual, grid_of(prompt.visual)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    centres = random(max(1, number // CLUSTER), prompt.hidden)
    which = torch.randint(0, len(centres), (number,), generator=generator)
    features = (centres[which] + SPREAD * random(number, prompt.hidden)).to(prompt.device, prompt.dtype)
    places = lay_out(torch.ones(batch, number, dtype=torch.bool), [], [(grid,)] * batch).places
    image, place, row, column = places.to(prompt.device)
    tokens = VisualTokens(
        layer=layer,
        features=features.expand(batch, -1, -1).contiguous(),
        valid=torch.ones(batch, number, dtype=torch.bool, device=prompt.device),
        dense=torch.full((batch,), number),
        present=torch.full((batch,), number),
        position=torch.arange(number, device=prompt.device).expand(batch, -1),
        image=image,
        grid=place,
        row=row,
        column=column,
        grids=((grid,),) * batch,
        grids_known=True,
        query=random(batch, prompt.hidden).to(prompt.device, prompt.dtype),
        mean_text=random(batch, prompt.hidden).to(prompt.device, prompt.dtype),
        attention=None,
        extra=torch.zeros(batch, extra_tokens(pruner), prompt.hidden, device=prompt.device, dtype=prompt.dtype),
        vision=_vision(prompt, pruner, random),
        received=tuple(random(batch, number).abs().to(prompt.device) for _ in pruner.vision_attention(BLOCKS)),
        class_received=tuple(random(batch, number).abs().to(prompt.device) for _ in pruner.vision_attention(BLOCKS)),
    )
    return for_stage(tokens, prompt, pruner, layer)


def for_stage(tokens: VisualTokens, prompt: MadeUpPrompt, pruner: Pruner, layer: int) -> VisualTokens:
    """Return the tokens with the attention rows that the stage before `layer` asks for."""
    one, made = pruner.member(layer), {}
    if one is not pruner:  # of a chain, whose tokens were made without knowing whose stage comes
        made = _seen(dataclasses.replace(prompt, visual=tokens.valid.shape[1]), one, layer)
    rows = rows_wanted(one, layer, prompt)
    attention = None
    if rows is not None:
        generator = torch.Generator().manual_seed(layer)
        shape = (prompt.batch, prompt.heads, rows, tokens.valid.shape[1])
        logits = torch.randn(shape, generator=generator).to(prompt.device)
        form = one.attention_form()
        attention = logits if form == "logits" else logits.log_softmax(-1)
        attention = attention.exp() if form == "softmax" else attention
        attention = attention.masked_fill(~tokens.valid[:, None, None], 0)
    return dataclasses.replace(tokens, layer=layer, attention=attention, **made, **_read(tokens, prompt, one, layer))


def _seen(prompt: MadeUpPrompt, pruner: Pruner, seed: int) -> dict[str, Any]:
    """Return what the stage's method is shown of the vision encoder."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    sums = [random(prompt.batch, prompt.visual).abs().to(prompt.device) for _ in pruner.vision_attention(BLOCKS)]
    return {"vision": _vision(prompt, pruner, random), "received": tuple(sums), "class_received": tuple(sums)}


def _read(tokens: VisualTokens, prompt: MadeUpPrompt, pruner: Pruner, layer: int) -> dict[str, Tensor | None]:
    """Return what else the stage before `layer` asks for: keys, values and hidden states."""
    generator = torch.Generator().manual_seed(layer)
    visual, wanted = tokens.valid.shape[1], pruner.kv(layer)

    def states(number: int, *heads: int) -> Tensor:
        width = prompt.hidden // math.prod(heads)
        made = torch.randn(prompt.batch, *heads, number, width, generator=generator)
        return made.to(prompt.device, prompt.dtype)

    return {
        **{name: states(visual, prompt.heads) if name in wanted else None for name in ("keys", "values")},
        **{
            f"text_{name}": states(prompt.text, prompt.heads) if name in wanted else None
            for name in ("keys", "values")
        },
        "previous": states(visual) if pruner.wants_previous(layer) else None,
        "text": states(prompt.text) if pruner.wants_text(layer) else None,
        "rotary": (states(visual, prompt.heads)[:, 0],) * 2 if pruner.wants_rotary(layer) else None,
        "text_rotary": (states(prompt.text, prompt.heads)[:, 0],) * 2 if pruner.wants_rotary(layer) else None,
    }


def rows_wanted(pruner: Pruner, layer: int, prompt: MadeUpPrompt) -> int | None:
    """Return how many attention rows the stage before `layer` is shown, if it asks: their sum is one."""
    extra, method = extra_tokens(pruner), pruner.member(layer)
    rows = torch.arange(1 + extra + prompt.text).expand(prompt.batch, -1)
    wanted = method.attention_rows(layer, PromptRows(rows[:, 0], rows[:, 1 : 1 + extra], rows[:, 1 + extra :]))
    return None if wanted is None else 1 if method.sums_rows(layer) else wanted.shape[1]


def extra_tokens(pruner: Pruner) -> int:
    """Return how many tokens a method adds to a prompt; known of GlimpsePrune's weights."""
    weights = getattr(pruner, "weights", None)
    return 0 if weights is None or getattr(pruner, "keeps_all", False) else int(weights.config.length)


def left(tokens: VisualTokens, keep: Tensor) -> VisualTokens:
    """Return the tokens that a choice (B, N) leaves, as the next stage has them but for its attention."""
    counts = keep.sum(-1)
    most = int(counts.max())
    order = torch.argsort((~keep).to(torch.uint8), dim=-1, stable=True)[:, :most]
    valid = torch.arange(most, device=keep.device) < counts[:, None]

    def rows(tensor: Tensor) -> Tensor:
        return tensor.gather(1, order[..., None].expand(-1, -1, tensor.shape[-1]))

    ids = {
        name: getattr(tokens, name).gather(1, order).masked_fill(~valid, -1)
        for name in ("position", "image", "grid", "row", "column")
    }
    return dataclasses.replace(
        tokens,
        features=rows(tokens.features),
        valid=valid,
        present=counts.cpu(),
        attention=None,
        vision=tuple(map(rows, tokens.vision)),
        received=tuple(one.gather(1, order).masked_fill(~valid, 0) for one in tokens.received),
        class_received=tuple(one.gather(1, order).masked_fill(~valid, 0) for one in tokens.class_received),
        **ids,
    )


def _vision(prompt: MadeUpPrompt, pruner: Pruner, random: object) -> tuple[Tensor, ...]:
    weights = getattr(pruner, "weights", None)
    width = prompt.hidden if weights is None else weights.config.vision_size
    return tuple(
        random(prompt.visual, width).to(prompt.device, prompt.dtype).expand(prompt.batch, -1, -1)  # type: ignore[operator]
        for _ in pruner.vision_layers(BLOCKS)
    )
