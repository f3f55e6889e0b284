"""The state of one forward pass, and what a prefill records for the report.

Five index spaces meet in the engine. Each has one name, everywhere:

dense position
    Where a token stands in the prompt as it was given to this forward pass, 0 to L - 1, left padding counted. It never
    changes. The method's own tokens come after: L, L + 1, ...
position
    Where it stands in the whole conversation: its dense position plus `past`, the tokens of earlier turns. What the
    report and `VisualTokens.position` give; -1 for padding.
row
    Where it stands in the hidden states of now, (..., B, n, D): 0 to n - 1, n falls at each stage. Rows of a batch end
    together; a sample with fewer tokens has padding before them (`valid`).
column
    Where a visual token stands among those that a stage is shown, 0 to N - 1: the axis of `VisualTokens`.
slot
    Where a token's key and value stand in one layer's KV cache. `PrunedLayer.slots` has the position of each slot.

`ForwardPass.kept` leads from rows to dense positions; grids (`row` and `column` of `VisualTokens`) are places in an
image, and none of these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate.engine.layout import Layout
from foveate.engine.shared_kv import Keys
from foveate.engine.vision_features import VisionFeatures
from foveate.families import LayerAdditions
from foveate.pruners.base import Selection
from foveate.tensors import gather_positions


@dataclass
class StageRecord:
    """One cut as it happened; tensors stay where they are until the report is read.

    `elapsed` gives the milliseconds of selection, `passed` those of all that was done before the layer. `length` is
    how many prompt tokens the longest sample has left for the layers after it; None where nothing was taken out.
    """

    layer: int
    position: Tensor
    image: Tensor
    keep: Tensor
    kept: list[int]
    elapsed: Callable[[], float]
    selection: Selection
    passed: Callable[[], float] | None = None
    length: int | None = None


@dataclass
class PrefillRecord:
    """One prefill: its sizes on the host, its cuts, or why there was none."""

    text: list[int]
    visual: list[int]
    image: Tensor | None
    stages: list[StageRecord] = field(default_factory=list)
    compacted: int = 0
    skipped: str | None = None
    notes: list[str] = field(default_factory=list)
    entry: Any = None  # of the report, once it was read

    def to_host(self) -> None:
        """Move its tensors to the CPU; times are read, as what measures them lies on the device."""
        self.image = None if self.image is None else self.image.cpu()
        for stage in self.stages:
            stage.position, stage.image, stage.keep = stage.position.cpu(), stage.image.cpu(), stage.keep.cpu()
            chosen = stage.selection
            into, weight = (None if one is None else one.cpu() for one in (chosen.into, chosen.weight))
            stage.selection = dataclasses.replace(chosen, keep=chosen.keep.cpu(), into=into, weight=weight)
            spent, passed = stage.elapsed(), None if stage.passed is None else stage.passed()
            stage.elapsed, stage.passed = partial(float, spent), None if passed is None else partial(float, passed)


@dataclass
class Prompt:
    """A prompt with visual tokens.

    Attributes
    ----------
    visual
        (B, L) bool, visual tokens.
    layout
        Where each of them lies.
    real
        (B, L) bool, False for the prompt's own padding; None without any.
    query
        (B,) long, dense position of the last prompt token.
    counts
        Visual tokens that are still there, for each sample, on the host.
    placeholders
        (B, L) bool, every position that the model fills with visual features, also after the question.
    ids
        (B, L) long; None where the prompt was given as embeddings.
    encoded
        Whether the images came encoded, as in `generate()` of current transformers.
    vision
        Outputs of the vision encoder's blocks; None where no method wants them.
    carried
        (B, ...) what the method's last stage left for the next one; None without.
    """

    visual: Tensor
    layout: Layout
    real: Tensor | None
    query: Tensor
    counts: list[int]
    record: PrefillRecord
    placeholders: Tensor
    ids: Tensor | None
    encoded: bool
    vision: VisionFeatures | None = None
    carried: Tensor | None = None

    def move(self, device: torch.device) -> None:
        """Bring what the layers ask for to their device."""
        self.visual, self.query = self.visual.to(device), self.query.to(device)
        self.layout = dataclasses.replace(self.layout, places=self.layout.places.to(device))
        if self.real is not None:
            self.real = self.real.to(device)
        if self.carried is not None:
            self.carried = self.carried.to(device)
        if self.vision is not None:
            values = tuple(value.to(device) for value in self.vision.values)
            self.vision = dataclasses.replace(self.vision, values=values, index=self.vision.index.to(device))


@dataclass
class Tapped:
    """What was read in the layer before a stage.

    Attributes
    ----------
    attention
        (B, H, R, K) attention rows, K ends with the rows of now; None where none were asked for.
    keys, values
        (B, G, n, E) of the rows of now; None where not asked for.
    previous
        (B, n, D) hidden states that entered that layer; None where not asked for.
    rotary
        Cosines and sines (1 or B, n, E) that it was given; None where not asked for.
    """

    attention: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    previous: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None


@dataclass
class ForwardPass:
    """What the hooks of one forward pass share; one a thread.

    Attributes
    ----------
    length
        L, tokens given to this forward.
    past
        Tokens before them in the conversation.
    prompt
        None where nothing can be pruned: a decode step, a prompt without images.
    kept
        (B, n) long, the dense position of each row; None while all L are there.
    valid
        (B, n) bool, False for rows of padding; None where there are none.
    extra
        How many tokens of the method's own are there.
    newest
        With how many of the last dense positions the decoder goes on; None: with all. Where only the last tokens'
        logits are asked for, some decoders hand their last layers no others.
    held
        Tokens in each layer of the KV cache before this forward pass; None without a cache.
    cache
        The KV cache, once a layer has been given one.
    device
        Where all this is, once a layer has asked; None: where the prompt came from.
    tapped
        What was read in the layer before a stage, for that stage.
    tap
        Closed after the layer that is read.
    whole
        Closed at the end of the forward pass.
    keys
        What layers that others read the keys and values of have attended to.
    thread
        The `ident` of its thread.
    over
        Whether it has ended, or the pruner was detached in the midst of it.
    """

    length: int
    past: int = 0
    prompt: Prompt | None = None
    kept: Tensor | None = None
    valid: Tensor | None = None
    extra: int = 0
    newest: int | None = None
    held: list[int | None] | None = None
    cache: Any = None
    device: torch.device | None = None
    additions: LayerAdditions | None = None
    tapped: Tapped | None = None
    record: PrefillRecord | None = None
    tap: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    whole: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    memo: dict[Hashable, tuple[Any, Any]] = field(default_factory=dict)
    keys: dict[int, Keys] = field(default_factory=dict)
    thread: int = field(default_factory=threading.get_ident)
    over: bool = False

    def close(self) -> None:
        """It is over: undo what was done to the model for it; safe to repeat."""
        self.over = True
        self.tap.close()
        self.whole.close()

    def once(self, key: Hashable, source: Any, make: Callable[[], Any]) -> Any:
        """`make()` once for each key and source object; the source is held, so that its id stays its own."""
        full = (key, id(source))
        if full not in self.memo:
            self.memo[full] = (source, make())
        return self.memo[full][1]

    def follow(self, hidden: Tensor) -> None:
        """Be on the device of `hidden`: a model's layers may be spread over several."""
        if hidden.device == self.device:
            return
        self.device = hidden.device
        self.memo.clear()
        if self.kept is not None:
            self.kept = self.kept.to(self.device)
        if self.valid is not None:
            self.valid = self.valid.to(self.device)
        if self.prompt is not None:
            self.prompt.move(self.device)

    def dense_positions(self, batch: int, device: torch.device) -> Tensor:
        """The dense position of each row, (B, n)."""
        if self.kept is not None:
            return self.kept
        return torch.arange(self.length, device=device).expand(batch, -1)

    def in_conversation(self, dense_positions: Tensor, past: int) -> Tensor:
        """(B, n) dense positions as positions in the whole conversation, -1 for padding."""
        positions = dense_positions + past
        return positions if self.valid is None else positions.masked_fill(~self.valid, -1)

    def shorten(self, kept: Tensor, valid: Tensor | None) -> None:
        """From here on only these dense positions are there; what was picked for the old rows is stale."""
        self.kept, self.valid = kept, valid
        self.memo.clear()

    def keep_last(self, rows: int, batch: int, device: torch.device) -> None:
        """From here on the decoder goes on with as many rows as the last `rows` of the dense positions are.

        Of the tokens that are left it then keeps the last ones. Where a visual token is gone from the last positions,
        these reach further back than the dense run's; what does is padding from here on.
        """
        start = self.length - rows
        index = self.dense_positions(batch, device)[:, -rows:]
        valid = None if self.valid is None else self.valid[:, -rows:]
        # the last token of a prompt without padding stays: nothing to ask the device for
        if rows > 1 or (self.prompt is not None and self.prompt.real is not None):
            there = index >= start
            if not bool(there.all()):
                valid = there if valid is None else valid & there
                index = index.clamp(min=start)
        self.newest = rows
        self.shorten(index, valid)

    def continued(self, position_ids: Tensor) -> Tensor:
        """Position ids (..., B or 1, L) with the next ones after the last prompt token for the method's own tokens."""
        if self.prompt is None or not self.extra:
            return position_ids
        last = gather_positions(position_ids, self.prompt.query[:, None], -1)
        following = (last + 1 + torch.arange(self.extra, device=last.device)).to(position_ids.device)
        return torch.cat([position_ids.expand(*following.shape[:-1], -1), following], -1)
