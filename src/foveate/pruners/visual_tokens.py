"""The visual tokens that a method is shown at a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from foveate.families import Grid


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """The visual tokens that reach a stage, gathered in prompt order; rows are samples, short rows padded at the end.

    Attributes
    ----------
    layer
        The cut lies before this decoder layer, counted from 0; 0 is before the language model.
    features
        (B, N, D) hidden states that would enter the layer.
    valid
        (B, N) bool, False for padding.
    dense
        (B,) long, visual tokens of the row before any pruning; budgets refer to it. On the CPU wherever the rest is: a
        budget worked out of it, such as the `k` of `foveate.select`, costs no wait for the device.
    present
        (B,) long, visual tokens of the row that reach this stage, the sum of `valid`; on the CPU too.
    position
        (B, N) long, place in the dense prompt, left padding counted.
    image
        (B, N) long, which image or video of its sample a token belongs to, from 0; -1 for padding.
    grid
        (B, N) long, which grid of its sample a token lies on, from 0: `grids[sample][grid]`; -1 for padding and for
        separators, such as the newline tokens of LLaVA-NeXT.
    row, column
        (B, N) long, its place on that grid, from 0; -1 likewise.
    grids
        For each sample the grids of all its images: one an image, or one for each crop, tile or video frame.
    grids_known
        False where the layout of some image is unknown: its tokens then stand in one row.
    query
        (B, D) hidden state of the last prompt token.
    mean_text
        (B, D) mean hidden state of the prompt's text tokens.
    attention
        (B, H, R, N) attention from the R rows that `attention_rows` asked for to the visual tokens, from the layer
        before the cut, softmaxed over the whole prompt or as `attention_form` says, fp32; None where none was asked
        for.
    extra
        (B, G, D) hidden states of the tokens that the method added.
    vision
        For each block of the vision encoder that `vision_layers` named, in that order, (B, N, C) what it put out for
        these tokens: the mean of the patches that a visual token is made of, detached. Zeros for padding and for
        separators. Empty where none was asked for.
    received
        For each block that `vision_attention` named, (B, N) the attention these tokens received there from all patches
        of their image, mean over heads and over the patches that a visual token is made of, in fp32.
    class_received
        The same from the encoder's class token alone; where it has none, from all patches, divided by their number.
    keys, values
        (B, G, N, E) of these tokens in the layer before the cut, for its G key-value heads, keys with their rotary
        positions; zeros for padding. None unless `kv` asked for them.
    text_keys, text_values
        (B, G, T, E) of the text tokens after the first visual token, in the order of `PromptRows.text`; zeros where a
        sample has fewer. None unless `kv` asked for them.
    previous
        (B, N, D) hidden states with which these tokens entered the layer before the cut; zeros for padding. None
        unless `wants_previous`.
    text
        (B, T, D) hidden states that would enter the layer of the text tokens after the first visual token, in the
        order of `PromptRows.text`; zeros where a sample has fewer. None unless `wants_text`.
    dense_image
        (B, L) long, for each place of the prompt the image that the visual token there belonged to before any pruning,
        -1 for all else; None: all tokens of each image are there.
    rotary, text_rotary
        Cosines and sines (B, N, E) and (B, T, E) by which the layer before the cut turns these tokens' queries and
        keys, and those of the text tokens in `text`; zeros for padding. Models may turn only some of the channels, and
        give each angle once or twice. None unless `wants_rotary`.
    carried
        (B, ...) what the method's last stage in this prefill left for this one, see `Selection.carry`.
    """

    layer: int
    features: Tensor
    valid: Tensor
    dense: Tensor
    present: Tensor
    position: Tensor
    image: Tensor
    grid: Tensor
    row: Tensor
    column: Tensor
    grids: tuple[tuple[Grid, ...], ...]
    grids_known: bool
    query: Tensor
    mean_text: Tensor
    attention: Tensor | None
    extra: Tensor
    vision: tuple[Tensor, ...] = ()
    received: tuple[Tensor, ...] = ()
    class_received: tuple[Tensor, ...] = ()
    keys: Tensor | None = None
    values: Tensor | None = None
    text_keys: Tensor | None = None
    text_values: Tensor | None = None
    previous: Tensor | None = None
    text: Tensor | None = None
    dense_image: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    text_rotary: tuple[Tensor, Tensor] | None = None
    carried: Tensor | None = None
