"""A few rows of an attention map, read where the layer computes it, for any attention backend.

Every model asks `AttentionInterface.get_interface` for its attention function and hands it queries and keys that are
normalised, rotated and joined with the cache. While a tap is open in a thread, that thread's calls are shown to it;
with no tap open anywhere the method of the class is the original one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_utils import AttentionInterface

from foveate.engine.masks import visible_keys
from foveate.engine.mutex import Mutex
from foveate.engine.per_thread import PerThread
from foveate.errors import UnsupportedModelError
from foveate.kernels import dispatch as fused
from foveate.pruners.base import AttentionForm

Listener = Callable[[Tensor, Tensor, Tensor, Tensor | None, dict[str, Any]], None]

_FORMS: dict[AttentionForm, Callable[[Tensor], Tensor]] = {
    "softmax": lambda scores: scores.softmax(-1),
    "log_softmax": lambda scores: scores.log_softmax(-1),
    "logits": lambda scores: scores,
}


class _Taps(dict[nn.Module, Listener]):
    """Those that are open in one thread, by module."""


_lock = Mutex()
_taps: PerThread[_Taps] = PerThread()
_original = AttentionInterface.get_interface


def _tapped_get_interface(self: AttentionInterface, attn_implementation: str, default: Callable) -> Callable:
    function = _original(self, attn_implementation, default)
    taps = _taps.own
    if not taps:
        return function

    def tapped(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        listener = taps.get(module)
        if listener is not None:
            query, key, value, mask = args if len(args) == 4 else (*args, kwargs["attention_mask"])
            listener(query, key, value, mask, kwargs)
        return function(module, *args, **kwargs)

    return tapped


def settle_taps() -> None:
    """Look attention functions up our way while a tap is open, and the original way once none is; safe to repeat.

    So an interruption between the steps of opening or closing is mended by whoever opens or closes next.
    """
    global _original
    with _lock:
        ours = AttentionInterface.get_interface is _tapped_get_interface
        tapped = any(_taps.every())
        if tapped and not ours:
            _original = AttentionInterface.get_interface
            AttentionInterface.get_interface = _tapped_get_interface
        elif not tapped and ours:
            AttentionInterface.get_interface = _original


def close_taps(modules: Collection[nn.Module]) -> None:
    """Close the taps on these modules, in every thread; safe to repeat."""
    for taps in _taps.every():
        for module in modules:
            taps.pop(module, None)
    settle_taps()


@contextlib.contextmanager
def attention_tap(module: nn.Module, listener: Listener) -> Iterator[None]:
    """While open, attention calls of `module` in this thread first reach the listener."""
    taps = _taps.own  # it may be closed from another thread
    if taps is None:
        taps = _taps.own = _Taps()
    try:
        taps[module] = listener
        settle_taps()
        yield
    finally:
        taps.pop(module, None)
        settle_taps()


def attention_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | BlockMask | None,
    options: dict[str, Any],
    rows: Tensor,
    form: AttentionForm = "softmax",
) -> Tensor:
    """Rows of softmax(Q K^T) in fp32.

    Parameters
    ----------
    query, key
        (B, H, L, D) and (B, G, K, D) with H a multiple of G, as the attention function gets them.
    mask
        None (causal), (B, K) or (B or 1, 1, L, K), bool or additive, or what flex attention takes.
    options
        The other arguments of the attention function; `scaling`, `softcap` and sinks (`s_aux`) are honoured.
    rows
        (B, R) long, which of the L queries; -1 gives a row of zeros.
    form
        "logits" for the products before the softmax, "log_softmax" for its logarithm; what the mask hides is -inf
        there, or as low as the mask makes it.

    Returns
    -------
    Tensor
        (B, H, R, K).
    """
    absent = (rows < 0)[:, None, :, None]
    scores = _masked_scores(query, key, mask, options, rows.clamp(min=0))
    sinks = options.get("s_aux")
    if sinks is not None and form != "logits":  # a score of each head that takes its share, and is nobody's
        sink = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return _FORMS[form](torch.cat([scores, sink], -1))[..., :-1].masked_fill(absent, 0)
    return _FORMS[form](scores).masked_fill(absent, 0)


def summed_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | BlockMask | None,
    options: dict[str, Any],
    rows: Tensor,
    form: AttentionForm = "softmax",
) -> Tensor:
    """The sum of `attention_rows`, (B, H, 1, K), a few rows at a time: memory is O(B H K), whatever R is."""
    blocks = rows.split(ROWS, 1)
    total = attention_rows(query, key, mask, options, blocks[0], form).sum(2, keepdim=True)
    for block in blocks[1:]:
        total += attention_rows(query, key, mask, options, block, form).sum(2, keepdim=True)
    return total


def _masked_scores(
    query: Tensor, key: Tensor, mask: Tensor | BlockMask | None, options: dict[str, Any], rows: Tensor
) -> Tensor:
    batch, heads, length, size = query.shape
    keys, scale = key.shape[2], options.get("scaling")
    picked = query.gather(2, rows[:, None, :, None].expand(-1, heads, -1, size))
    scores = row_logits(picked, key, size**-0.5 if scale is None else scale, options.get("softcap"))
    if isinstance(mask, BlockMask):
        return scores.masked_fill(~visible_keys(mask, rows, keys), float("-inf"))
    if mask is None or mask.ndim == 2:
        place = torch.arange(keys, device=key.device)
        visible = (place <= rows[..., None] + keys - length)[:, None]
        if mask is not None:
            visible = visible & mask[:, None, None, -keys:].bool()
        return scores.masked_fill(~visible, float("-inf"))
    own = mask[..., :keys].expand(batch, -1, -1, -1)
    own = own.gather(2, rows[:, None, :, None].expand(-1, own.shape[1], -1, keys))
    if own.dtype == torch.bool:
        return scores.masked_fill(~own, float("-inf"))
    return scores + own.float()


KEYS = 1024  # turned into fp32 at a time
QUERIES = 128  # rows of a whole attention map at a time
ROWS = 64  # rows that are summed at a time


def row_logits(query: Tensor, key: Tensor, scale: float, softcap: float | None = None) -> Tensor:
    """Scaled products of a few query rows with all keys, in fp32; no fp32 copy of the keys, no repeat for their heads.

    Parameters
    ----------
    query, key
        (B, H, R, D) and (B, G, K, D) with H a multiple of G, of any floating-point type.
    softcap
        Where given, products s become softcap · tanh(s / softcap).

    Returns
    -------
    Tensor
        (B, H, R, K).
    """
    if not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)):
        scores = fused.attempt("row_logits", key, lambda: _fused_logits(query, key, scale, softcap), _fused_agrees)
        if scores is not None:
            return scores
    batch, heads, rows, size = query.shape
    grouped = (query.float() * scale).reshape(batch, key.shape[1], -1, size)
    if key.dtype == torch.float32:
        scores = torch.matmul(grouped, key.mT)
    else:
        scores = torch.cat([torch.matmul(grouped, block.float().mT) for block in key.split(KEYS, 2)], -1)
    scores = scores.view(batch, heads, rows, key.shape[2])
    return torch.tanh(scores / softcap) * softcap if softcap else scores


def _fused_logits(query: Tensor, key: Tensor, scale: float, softcap: float | None) -> Tensor:
    from foveate.kernels import attention_rows as fused_rows

    return fused_rows.row_logits(query.to(key.dtype), key, scale, softcap)


def _fused_agrees(device: torch.device, dtype: torch.dtype) -> bool:
    from foveate.kernels import attention_rows as fused_rows

    return fused_rows.agrees(device, dtype)


def column_sums(query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Attention that each token of an encoder receives, summed over all queries: the columns of softmax(Q Kᵀ).

    The map is made a few rows at a time, so that memory is O(B H L), not O(B H L²).

    Parameters
    ----------
    query, key
        (B, H, L, D) and (B, G, L, D) with H a multiple of G.
    mask
        (B or 1, 1, L, L), bool or additive; a query that does not see itself is padding and counts for nothing. None:
        every query sees every key.

    Returns
    -------
    Tensor
        (B, H, L) in fp32; a head's sums add up to the number of queries.
    """
    sums = query.new_zeros(query.shape[:3], dtype=torch.float32)
    for first in range(0, query.shape[2], QUERIES):
        logits = row_logits(query[:, :, first : first + QUERIES], key, scale)
        if mask is None:
            sums += logits.softmax(-1).sum(2)
            continue
        rows = mask[:, :, first : first + QUERIES]
        hidden = ~rows if rows.dtype == torch.bool else rows < -1
        real = ~hidden.diagonal(first, 2, 3)[..., None]
        sums += (logits.masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1) * real).sum(2)
    return sums


ATTENTIONS = ("self_attn", "attn", "attention")


def find_attention(block: nn.Module) -> nn.Module:
    """The attention of a block of the vision encoder.

    Raises
    ------
    UnsupportedModelError
        When there is none under a known name.
    """
    found = next((one for name, one in block.named_children() if name in ATTENTIONS), None)
    if found is None:
        raise UnsupportedModelError(f"no attention ({', '.join(ATTENTIONS)}) in {type(block).__name__}")
    return found


def received(query: Tensor, key: Tensor, mask: Any, options: dict[str, Any], class_token: int | None = None) -> Tensor:
    """(B, L, 2) attention that each token of an encoder receives, mean over the heads.

    First summed over all queries; then from the class token alone, where there is none as the mean over all queries.

    Parameters
    ----------
    options
        The other arguments of the attention function: `scaling`, and where it is given several images as one, where
        they begin (`cu_seq_lens_q`).
    class_token
        Its index in the sequence; None for an encoder without one.
    """
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    ends = options.get("cu_seq_lens_q")
    if ends is not None:
        sizes = ends.diff().tolist()
        parts = zip(query.split(sizes, 2), key.split(sizes, 2), strict=True)
        return torch.cat([_received(*part, scale, None, class_token) for part in parts], 1)
    return _received(query, key, scale, mask, class_token)


def _received(query: Tensor, key: Tensor, scale: float, mask: Any, class_token: int | None) -> Tensor:
    """`received` of images that share no sequence."""
    sums = column_sums(query, key, scale, mask).mean(1)
    if class_token is None:
        return torch.stack([sums, sums / sums.sum(-1, keepdim=True)], -1)  # a query gives 1 in all
    own = class_token % query.shape[2]
    if mask is None:
        alone = row_logits(query[:, :, own : own + 1], key, scale).softmax(-1)
    else:
        row = torch.full((len(query), 1), own, device=query.device)
        alone = attention_rows(query, key, mask.to(query.device), {"scaling": scale}, row)
    return torch.stack([sums, alone[:, :, 0].mean(1)], -1)
