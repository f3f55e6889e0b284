"""A few rows of an attention map, read where the layer computes it, for any attention backend.

Every model asks `AttentionInterface.get_interface` for its attention function and hands it queries and keys that are
normalised, rotated and joined with the cache. While a tap is open in a thread, that thread's calls are shown to it;
with no tap open anywhere the method of the class is the original one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_utils import AttentionInterface

from foveate.engine.masks import visible_keys
from foveate.engine.rows import row_logits
from foveate.pruners.base import AttentionForm

Listener = Callable[[Tensor, Tensor, Tensor | None, dict[str, Any]], None]

_FORMS: dict[AttentionForm, Callable[[Tensor], Tensor]] = {
    "softmax": lambda scores: scores.softmax(-1),
    "log_softmax": lambda scores: scores.log_softmax(-1),
    "logits": lambda scores: scores,
}

_lock = threading.Lock()
_open_taps = 0
_original = AttentionInterface.get_interface
_thread = threading.local()


def _tapped_get_interface(self: AttentionInterface, attn_implementation: str, default: Callable) -> Callable:
    function = _original(self, attn_implementation, default)
    listeners: dict[nn.Module, Listener] = getattr(_thread, "listeners", {})
    if not listeners:
        return function

    def tapped(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        listener = listeners.get(module)
        if listener is not None:
            query, key, _, mask = args if len(args) == 4 else (*args, kwargs["attention_mask"])
            listener(query, key, mask, kwargs)
        return function(module, *args, **kwargs)

    return tapped


@contextlib.contextmanager
def attention_tap(module: nn.Module, listener: Listener) -> Iterator[None]:
    """While open, this thread's attention calls of `module` first reach `listener(query, key, mask, kwargs)`."""
    global _open_taps, _original
    with _lock:
        if not _open_taps:
            _original = AttentionInterface.get_interface
            AttentionInterface.get_interface = _tapped_get_interface
        _open_taps += 1
    if not hasattr(_thread, "listeners"):
        _thread.listeners = {}
    _thread.listeners[module] = listener
    try:
        yield
    finally:
        _thread.listeners.pop(module, None)
        with _lock:
            _open_taps -= 1
            if not _open_taps:
                AttentionInterface.get_interface = _original


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
