"""Visual tokens without a model, as a stage would show them: for timing and counting what a method selects."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.engine.layout import lay_out
from foveate.families.grids import Grid
from foveate.pruners.base import PromptRows, Pruner, VisualTokens

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
    return Grid(height, visual // height, behind=visual % height)


def visual_tokens(scene: MadeUpPrompt, pruner: Pruner, layer: int) -> VisualTokens:
    """Return the tokens of a scene before anything is pruned, the same ones for the same scene.

    Features lie around centres, one for eight tokens, so that many are alike; attention is random. Samples are equal.

    Parameters
    ----------
    scene
        How many, how wide, where.
    pruner
        Resolved for the model's depth; asked for the rows and vision features that it wants.
    layer
        The stage, as a decoder layer.
    """
    generator = torch.Generator().manual_seed(0)
    batch, number, grid = scene.batch, scene.visual, grid_of(scene.visual)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    centres = random(max(1, number // CLUSTER), scene.hidden)
    which = torch.randint(0, len(centres), (number,), generator=generator)
    features = (centres[which] + SPREAD * random(number, scene.hidden)).to(scene.device, scene.dtype)
    places = lay_out(torch.ones(batch, number, dtype=torch.bool), [], [(grid,)] * batch).places
    image, place, row, column = places.to(scene.device)
    tokens = VisualTokens(
        layer=layer,
        features=features.expand(batch, -1, -1).contiguous(),
        valid=torch.ones(batch, number, dtype=torch.bool, device=scene.device),
        dense=torch.full((batch,), number),
        present=torch.full((batch,), number),
        position=torch.arange(number, device=scene.device).expand(batch, -1),
        image=image,
        grid=place,
        row=row,
        column=column,
        grids=((grid,),) * batch,
        grids_known=True,
        query=random(batch, scene.hidden).to(scene.device, scene.dtype),
        mean_text=random(batch, scene.hidden).to(scene.device, scene.dtype),
        attention=None,
        extra=torch.zeros(batch, extra_tokens(pruner), scene.hidden, device=scene.device, dtype=scene.dtype),
        vision=_vision(scene, pruner, random),
        received=tuple(random(batch, number).abs().to(scene.device) for _ in pruner.vision_attention(BLOCKS)),
    )
    return for_stage(tokens, scene, pruner, layer)


def for_stage(tokens: VisualTokens, scene: MadeUpPrompt, pruner: Pruner, layer: int) -> VisualTokens:
    """Return the tokens with the attention rows that the stage before `layer` asks for."""
    rows = rows_wanted(pruner, layer, scene)
    attention = None
    if rows is not None:
        generator = torch.Generator().manual_seed(layer)
        shape = (scene.batch, scene.heads, rows, tokens.valid.shape[1])
        logits = torch.randn(shape, generator=generator).to(scene.device)
        form = pruner.attention_form()
        attention = logits if form == "logits" else logits.log_softmax(-1)
        attention = attention.exp() if form == "softmax" else attention
        attention = attention.masked_fill(~tokens.valid[:, None, None], 0)
    return dataclasses.replace(tokens, layer=layer, attention=attention)


def rows_wanted(pruner: Pruner, layer: int, scene: MadeUpPrompt) -> int | None:
    """Return how many attention rows the stage before `layer` asks for, if it asks."""
    rows = torch.arange(1 + extra_tokens(pruner) + scene.text).expand(scene.batch, -1)
    extra = extra_tokens(pruner)
    wanted = pruner.attention_rows(layer, PromptRows(rows[:, 0], rows[:, 1 : 1 + extra], rows[:, 1 + extra :]))
    return None if wanted is None else wanted.shape[1]


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
        **ids,
    )


def _vision(scene: MadeUpPrompt, pruner: Pruner, random: object) -> tuple[Tensor, ...]:
    weights = getattr(pruner, "weights", None)
    if weights is None or not weights.config.vision_layers:
        return ()
    width = weights.config.vision_size
    return tuple(
        random(scene.visual, width).to(scene.device, scene.dtype).expand(scene.batch, -1, -1)  # type: ignore[operator]
        for _ in weights.config.vision_layers
    )
