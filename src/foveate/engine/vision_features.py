"""What the vision encoder's blocks put out, kept until the prefill whose visual tokens were made of it.

The encoder may run inside the base model's forward, or before it: `generate()` of current transformers encodes first.
So its calls are recorded in the thread that makes them, and a prefill takes those that made its visual tokens. Which
ones did is not guessed: what the language model is given is compared with what the projector put out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveate.engine.attention_rows import attention_tap, find_attention, received
from foveate.engine.per_thread import PerThread
from foveate.errors import BudgetError, UnsupportedModelError, VisionFeaturesError
from foveate.families import Family, same_features
from foveate.pruners.base import Pruner

if TYPE_CHECKING:
    from foveate.engine.forward_pass import Prompt

MOST_CALLS = 32  # whoever encodes image after image, and never prefills, must not fill the memory
COMPARED = 16  # of the channels of a visual token; no two images agree in so many
UNSEEN = (
    "vision features were not seen: encode the image while the pruner is attached, in the thread that runs the model"
)
UNHEARD = (
    "what the vision encoder's tokens receive cannot be seen: its attention does not go through transformers' "
    "attention functions; use a method that wants no attention of the vision encoder"
)
MISFIT = (
    "vision features were not seen: the visual tokens of this prompt are not those that the vision encoder made since "
    "the last prompt; encode the image while the pruner is attached, anew for each prompt"
)


@dataclass(frozen=True)
class VisionFeatures:
    """Outputs of blocks for the visual tokens of a prompt.

    Attributes
    ----------
    values
        For each of `wanted`, then of `received`, (M, C) in the encoder's order; of the latter two channels.
    index
        (B, L) long, the row of these that a place in the prompt stands for; -1 for text and separators.
    wanted, received
        Blocks whose outputs, and whose attention received, these are.
    depth
        Blocks of the encoder.
    """

    values: tuple[Tensor, ...]
    index: Tensor
    wanted: tuple[int, ...]
    received: tuple[int, ...]
    depth: int

    def at(self, places: Tensor, method: Pruner) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What `method` wants, each (B, N, C) at `places` (B, N) of the prompt; zeros for -1, text and separators.

        Returns
        -------
        tuple
            The outputs of its blocks, and the attention received in its blocks, of two channels.
        """
        index = self.index.gather(1, places.clamp(0, self.index.shape[1] - 1)).masked_fill(places < 0, -1)

        def picked(value: Tensor) -> Tensor:
            return value[index.clamp(min=0)].masked_fill((index < 0)[..., None], 0)

        outputs = dict(zip(self.wanted, self.values, strict=False))
        sums = dict(zip(self.received, self.values[len(self.wanted) :], strict=True))
        return (
            tuple(picked(outputs[block]) for block in method.vision_layers(self.depth)),
            tuple(picked(sums[block]) for block in method.vision_attention(self.depth)),
        )


@dataclass
class _Call:
    """One call of the encoder and of the projector after it, `projections` times for the images in it."""

    sizes: Tensor | None
    blocks: dict[int, Tensor] = field(default_factory=dict)
    shapes: dict[int, torch.Size] = field(default_factory=dict)
    received: dict[int, list[Tensor]] = field(default_factory=dict)
    projected: Tensor | None = None
    projections: int = 0
    encoded: Tensor | None = None  # what the encoder put out, where the projector runs later


@dataclass
class _Seen:
    """Calls in one thread; `used` once a prefill has taken them and may want them again."""

    calls: list[_Call] = field(default_factory=list)
    used: bool = False
    tap: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


class VisionRecorder:
    """Records the encoder's calls of one model, each thread its own."""

    def __init__(self, model: Any, family: Family, wanted: tuple[int, ...], received: tuple[int, ...]) -> None:
        self.parts, self.family, self.config = family.vision_parts(model), family, model.config
        self.model = model
        self.wanted, self.received = wanted, received
        self.attention = {number: find_attention(self.parts.blocks[number]) for number in received}
        self.class_token = family.class_token(self.parts.encoder)
        self.threads: PerThread[_Seen] = PerThread()

    def register(self) -> list[Any]:
        """Hooks on the encoder, the blocks that are wanted, and the projector."""
        parts = self.parts
        return [
            parts.encoder.register_forward_pre_hook(self._before_encoder, with_kwargs=True),
            *([parts.encoder.register_forward_hook(self._after_encoder)] if self.family.projects_later else []),
            *(
                parts.blocks[number].register_forward_hook(partial(self._after_block, number))
                for number in self.numbers
            ),
            *(
                self.attention[number].register_forward_pre_hook(partial(self._before_attention, number))
                for number in self.attention
            ),
            *(one.register_forward_hook(self._after_attention, always_call=True) for one in self.attention.values()),
            parts.projector.register_forward_hook(self._after_projector, with_kwargs=True),
        ]

    @property
    def numbers(self) -> list[int]:
        """Each block that is wanted, once."""
        return sorted({*self.wanted, *self.received})

    def close(self) -> None:
        """Let go of all, in every thread."""
        for seen in self.threads.every():
            seen.tap.close()
        self.threads.clear()

    def forget(self, failed: bool) -> None:
        """A prefill is over in this thread: let go, unless it wants to take the same again."""
        if failed or not self._seen.used:
            self._seen.calls.clear()

    @property
    def _seen(self) -> _Seen:
        seen = self.threads.own
        if seen is None:
            seen = self.threads.own = _Seen()
        return seen

    # -- recording

    def _before_encoder(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen = self._seen
        seen.tap.close()  # left open by a call that was interrupted
        if seen.used:
            seen.calls.clear()
        seen.used = False
        seen.calls.append(_Call(self.family.vision_sizes(args, kwargs)))
        del seen.calls[:-MOST_CALLS]

    def _after_encoder(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._seen.calls:
            self._seen.calls[-1].encoded = _few(output[0]).clone()

    def _after_block(self, number: int, module: nn.Module, args: tuple, output: Any) -> None:
        if self._seen.calls:  # the first time: gradient checkpointing may call the block again, later
            output = output[0] if isinstance(output, tuple) else output
            call = self._seen.calls[-1]
            call.shapes.setdefault(number, output.shape)
            if number in self.wanted:
                call.blocks.setdefault(number, output.detach())

    def _before_attention(self, number: int, module: nn.Module, args: tuple) -> None:
        if not self._seen.calls:
            return
        call, tap = self._seen.calls[-1], self._seen.tap
        if number in call.received:  # gradient checkpointing calls again
            return
        seen = call.received[number] = []

        def listen(query: Tensor, key: Tensor, value: Tensor, mask: Any, options: dict) -> None:
            with torch.no_grad():
                seen.append(received(query, key, mask, options, self.class_token))

        tap.enter_context(attention_tap(module, listen))

    def _after_attention(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._seen.tap.close()

    def _after_projector(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        calls = self._seen.calls
        if self.family.projects_later:  # other images may have been encoded since
            calls = [call for call in calls if call.encoded is not None and _equal(call.encoded, _few(args[0]))]
        if not calls:
            return
        call = calls[-1]
        output = torch.cat(output) if isinstance(output, (list, tuple)) else output  # each image by itself
        output = output if isinstance(output, Tensor) else output[0]
        call.projections += 1
        if call.projected is None:
            call.projected = output.detach()
            if call.sizes is None:
                call.sizes = self.family.projector_sizes(args, kwargs)
        elif self.family.projects_each and call.sizes is not None and call.projections <= len(call.sizes):
            both = (one.flatten(0, -2) for one in (call.projected, output.detach()))
            call.projected = torch.cat([*both])

    # -- taking

    def take(self, prompt: Prompt, embeds: Tensor, cache: Any) -> VisionFeatures:
        """The features of a prompt's visual tokens.

        Parameters
        ----------
        embeds
            (B, L, D) what the language model is given.
        cache
            Its KV cache. Without one `generate()` runs the whole prompt at each step, with images encoded only once:
            the calls then stay for the next.

        Raises
        ------
        VisionFeaturesError
            When no calls were recorded, or none that the visual tokens were made of.
        """
        calls = [call for call in self._seen.calls if call.projected is not None]
        self._seen.used = cache is None and prompt.encoded
        if not calls:
            raise VisionFeaturesError(UNSEEN)
        for first in range(len(calls)):  # all that were made since the last prefill; if one failed, the latest
            index = self._index(calls[first:], prompt, embeds)
            if index is not None:
                outputs = [
                    self._values(calls[first:], [call.blocks[one] for call in calls[first:]]) for one in self.wanted
                ]
                sums = [
                    self._values(calls[first:], [_column(call, one) for call in calls[first:]])
                    for one in self.received
                ]
                values = tuple(one.to(embeds.device) for one in (*outputs, *sums))
                return VisionFeatures(values, index, self.wanted, self.received, len(self.parts.blocks))
        raise VisionFeaturesError(MISFIT)

    def _values(self, calls: Sequence[_Call], outputs: Sequence[Tensor]) -> Tensor:
        """(M, C) of one block, which put out `outputs` in these calls."""
        return torch.cat(
            [
                self.family.merge_call(self.config, output, call.projected, call.sizes)
                for call, output in zip(calls, outputs, strict=True)
                if call.projected is not None
            ]
        )

    def _index(self, calls: Sequence[_Call], prompt: Prompt, embeds: Tensor) -> Tensor | None:
        """(B, L) rows of what these calls put out; None if the prompt's visual tokens are not made of that."""
        found = [_few(call.projected) for call in calls if call.projected is not None]
        projected = self.family.inserted(self.model, torch.cat(found).to(embeds.device, embeds.dtype))
        given = [call.sizes for call in calls if call.sizes is not None]
        if len({one.shape[1:] for one in given}) > 1:
            return None  # of kinds that never share a prompt
        sizes = torch.cat(given) if given else None
        embeds, placeholders = embeds[..., :COMPARED], prompt.placeholders.to(embeds.device)
        for repeats in _repeats(placeholders):
            rows = placeholders[::repeats]
            places = self._places(rows, None if prompt.ids is None else prompt.ids[::repeats].to(embeds.device))
            grids = [grid for row in prompt.layout.grids[::repeats] for grid in row]
            order = self.family.vision_order(self.config, sizes, projected, embeds[::repeats][*places], grids)
            if order is None:
                continue
            index = torch.full_like(rows, -1, dtype=torch.long)
            index[*places] = order
            index = index.repeat_interleave(repeats, 0)
            if same_features(projected, embeds, index):
                return index
        return None

    def _places(self, rows: Tensor, ids: Tensor | None) -> tuple[Tensor, ...]:
        """Rows and columns of the visual tokens in the order in which they are encoded: images, then videos."""
        if ids is None:
            return rows.nonzero(as_tuple=True)
        late = rows & torch.isin(ids, ids.new_tensor(self.family.video_ids(self.config)))
        return torch.cat([(rows & ~late).nonzero(), late.nonzero()]).unbind(1)


def _few(features: Tensor) -> Tensor:
    """(M, COMPARED) of these features, by which they are known again."""
    return features.detach().flatten(0, -2)[:, :COMPARED]


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second.to(first.device))


def _repeats(placeholders: Tensor) -> Iterator[int]:
    """How often each row may stand in the batch: beams repeat the rows, but not the images."""
    batch = len(placeholders)
    for number in range(1, batch + 1):
        if batch % number == 0:
            groups = placeholders.unflatten(0, (-1, number))
            if bool((groups == groups[:, :1]).all()):
                yield number


def vision_recorder(model: Any, method: Pruner, family: Family) -> VisionRecorder | None:
    """A recorder of what `method` wants; None if it wants nothing.

    Raises
    ------
    UnsupportedModelError
        When it wants something and the vision encoder is not found.
    BudgetError
        When the encoder has no such block.
    """
    kinds = {type(one) for one in method.members}
    if all(
        kind.vision_layers is Pruner.vision_layers and kind.vision_attention is Pruner.vision_attention
        for kind in kinds
    ):
        return None
    try:
        depth = len(family.vision_blocks(model))
    except UnsupportedModelError:
        # it wants none, however many there are
        if not any(one.vision_layers(1) or one.vision_attention(1) for one in method.members):
            return None
        raise
    wanted: dict[int, None] = {}
    attended: dict[int, None] = {}
    for one in method.members:
        outputs, sums = tuple(one.vision_layers(depth)), tuple(one.vision_attention(depth))
        if not {*outputs, *sums} <= set(range(depth)):
            raise BudgetError(f"{one.name}: vision layers must be blocks of 0 to {depth - 1}, got {outputs + sums}")
        wanted |= dict.fromkeys(outputs)
        attended |= dict.fromkeys(sums)
    return VisionRecorder(model, family, tuple(wanted), tuple(attended)) if wanted or attended else None


def _column(call: _Call, number: int) -> Tensor:
    """What the tokens of one call received in a block, shaped as the block's output with two channels."""
    if not call.received[number]:
        raise UnsupportedModelError(UNHEARD)
    return torch.cat(call.received[number], 1).reshape(*call.shapes[number][:-1], 2)
