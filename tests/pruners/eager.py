"""What a method's formula is given, read from a model that returns its attentions and prunes nothing.

The dense model runs in eager attention once a stage; what earlier stages dropped is hidden from the layers behind
them. Shares nothing with the engine.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from foveate import GlimpsePrune
from foveate.families import Grid, family_of
from foveate.pruners import Pruner
from tests.models.build import build, decoder, visual
from tests.models.images import Picture
from tests.pruners.oracles import Seen, choice

NEVER = 10**6
WORD = 5  # stands where a token of the method's own comes


@dataclass
class Read:
    """Of one run: attentions and entering states of each layer, and scaled products of query and key."""

    attentions: tuple[Tensor, ...]
    states: list[Tensor]
    products: list[Tensor]
    vision: list[Tensor]


def expected(
    pruner: Pruner, family: str, batch: dict[str, Tensor], pictures: list[list[Picture]], end: int | None = None
) -> list[tuple[int, list[list[int]]]]:
    """For each stage its layer, and for each sample the positions of the visual tokens that the formulas keep.

    Parameters
    ----------
    pictures
        Images of each sample.
    end
        Length of the prompt, where an answer follows it; None: none does.
    """
    model = build(family, "eager")
    pruner = pruner.resolved(model.config)
    where, own = visual(batch), own_rows(pruner)
    length = where.shape[1] if end is None else end
    gone = torch.full(where.shape, NEVER)
    stages = []
    for layer in pruner.layers(len(decoder(model).layers)):
        read = run(model, batch, gone, own, pruner)
        kept = []
        for sample, shown in enumerate(pictures):
            every = where[sample].nonzero()[:, 0].tolist()
            left = [at for at in every if gone[sample, at] == NEVER]
            seen = show(read, batch, sample, layer, every, left, shown, length, pruner)
            places = choice(pruner, seen) if left else set()
            assert not left or places == choice(pruner, shaken(seen)), "rounding would decide: take another seed"
            kept.append([left[place] for place in sorted(places)])
            gone[sample, [at for at in left if at not in kept[-1]]] = layer
        stages.append((layer, kept))
    return stages


def own_rows(pruner: Pruner) -> Tensor | None:
    """(layers, G, D) of GlimpsePrune's token, from its numbers: its embedding, then what each layer adds."""
    if not isinstance(pruner, GlimpsePrune) or pruner.weights is None:
        return None
    number = pruner.weights.state_dict()
    rows = number["glimpse.rows"] @ number["glimpse.projection.weight"].T + number["glimpse.projection.bias"]
    size = (rows.square().mean(-1, keepdim=True) + pruner.weights.config.norm_eps).sqrt()
    return number["glimpse.norm.weight"] * rows / size


def run(model: Any, batch: dict[str, Tensor], gone: Tensor, own: Tensor | None, pruner: Pruner) -> Read:
    """The dense model, in which each layer sees none of the tokens that are gone before it."""
    if own is not None:
        batch = {name: value.clone() for name, value in batch.items()}
        for name, value in (("input_ids", WORD), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in batch:
                batch[name] = torch.nn.functional.pad(batch[name], (0, own.shape[1]), value=value)
        gone = torch.nn.functional.pad(gone, (0, own.shape[1]), value=NEVER)
    read = Read((), [], [], [])

    def enter(number: int) -> Any:
        def hook(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            hidden = (args[0] if args else kwargs["hidden_states"]).clone()
            if own is not None:
                before = hidden[:, -own.shape[1] :] if number else 0
                hidden[:, -own.shape[1] :] = before + own[number]
            read.states.append(hidden)
            mask = kwargs["attention_mask"].clone()
            mask.masked_fill_((gone <= number)[:, None, None], torch.finfo(mask.dtype).min)
            kwargs = {**kwargs, "attention_mask": mask}
            return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})

        return hook

    layers = decoder(model).layers
    hooks = [layer.register_forward_pre_hook(enter(n), with_kwargs=True) for n, layer in enumerate(layers)]
    blocks = family_of(model).vision_blocks(model) if getattr(pruner, "weights", None) is not None else []
    for block in (blocks[number] for number in pruner.vision_layers(len(blocks))):
        hooks.append(block.register_forward_hook(lambda module, args, out: read.vision.append(patches(out))))
    try:
        with torch.no_grad(), products_of(layers, read.products):
            read.attentions = model(**batch, output_attentions=True, use_cache=False).attentions
    finally:
        for hook in hooks:
            hook.remove()
    return read


def patches(out: Any) -> Tensor:
    """All images' patches one after another, without the class token of CLIP; its blocks run in ascending order."""
    return (out[0] if isinstance(out, tuple) else out)[:, 1:].flatten(0, 1)


@contextlib.contextmanager
def products_of(layers: Any, into: list[Tensor]) -> Iterator[None]:
    """Scaled products of queries and keys of each decoder layer, without a mask."""
    attentions = [layer.self_attn for layer in layers]
    module = sys.modules[type(attentions[0]).__module__]
    eager = module.eager_attention_forward

    def listening(layer: Any, query: Tensor, key: Tensor, *rest: Any, scaling: float, **options: Any) -> Any:
        if layer in attentions:  # Qwen's vision encoder calls it, too
            repeated = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
            into.append(query @ repeated.transpose(2, 3) * scaling)
        return eager(layer, query, key, *rest, scaling=scaling, **options)

    with mock.patch.object(module, "eager_attention_forward", listening):
        yield


def cells(grid: Grid) -> list[tuple[int, int] | None]:
    """Row and column of each token of a grid; None for separators."""
    places: list[tuple[int, int] | None] = []
    for row in range(grid.height):
        places += [(row, column) for column in range(grid.width)] + [None] * grid.row_ends
    return places + [None] * grid.after


def show(
    read: Read,
    batch: dict[str, Tensor],
    sample: int,
    layer: int,
    every: list[int],
    left: list[int],
    shown: list[Picture],
    length: int,
    pruner: Pruner,
) -> Seen:
    """What the formulas are given of one sample: its visual tokens that are left, and its text up to `length`."""
    layout = []
    grids = [(image, grid) for image, picture in enumerate(shown) for grid in picture.grids]
    for number, (image, grid) in enumerate(grids):
        layout += [(image, -1 if cell is None else number, cell or (0, 0)) for cell in cells(grid)]
    assert len(layout) == len(every)
    layout = [layout[every.index(at)] for at in left]
    text = [at for at in range(length) if batch["attention_mask"][sample, at] and at not in every]
    behind = [at for at in text if every and at > every[0]]
    attention = read.attentions[layer - 1][sample] if layer else torch.zeros(0, 0, 0)
    states = read.states[layer][sample].double()
    given = None
    if own_rows(pruner) is not None:
        form = read.products[layer - 1][sample] if pruner.attention_form() == "logits" else attention.log()
        given = form[:, -1, left].T.tolist()
    before = sum(int((visual(batch)[row]).sum()) for row in range(sample))  # visual tokens of the samples before it
    ascending = sorted(pruner.vision_layers(99))
    features = [read.vision[ascending.index(number)] for number in pruner.vision_layers(99)]
    return Seen(
        layer=layer,
        dense=len(every),
        features=states[left].tolist(),
        attention=[head[behind][:, left].double().tolist() for head in attention],
        query=states[text[-1]].tolist(),
        text=states[text].tolist(),
        image=[image for image, _, _ in layout],
        grid=[grid for _, grid, _ in layout],
        cell=[cell for _, _, cell in layout],
        sizes=[(grid.height, grid.width) for _, grid in grids],
        rank=list(range(len(left))),
        glimpse=given,
        vision=[one[[before + every.index(at) for at in left]].tolist() for one in features],
    )


def shaken(seen: Seen, by: float = 1e-5) -> Seen:
    """The same with other last digits: where that changes the choice, rounding would decide it in a test."""
    generator = torch.Generator().manual_seed(0)

    def shake(rows: Any) -> Any:
        numbers = torch.tensor(rows, dtype=torch.float64)
        return (numbers * (1 + by * torch.randn(numbers.shape, generator=generator, dtype=torch.float64))).tolist()

    distinct = {tuple(row): shake(row) for row in seen.features}  # newline tokens are equal, and stay so
    return replace(
        seen,
        features=[distinct[tuple(row)] for row in seen.features],
        attention=[shake(head) for head in seen.attention],
        query=shake(seen.query),
        glimpse=None if seen.glimpse is None else shake(seen.glimpse),
    )
