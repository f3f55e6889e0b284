"""A few rows of an attention map by a Triton kernel, without repeated or widened keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["rows", "keys"])
def _rows(query, key, out, rows, keys, groups, size, batch_stride, group_stride, key_stride, scale,
          ROWS: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """Logits of all rows of one key head's queries with one block of its keys, which is read once."""
    sample_group = tl.program_id(1).to(tl.int64)
    sample, group = sample_group // groups, sample_group % groups
    column, lane = tl.program_id(0) * KEYS + tl.arange(0, KEYS), tl.arange(0, SIZE)
    place = key + sample * batch_stride + group * group_stride + column.to(tl.int64)[:, None] * key_stride
    block = tl.load(place + lane[None, :], (column < keys)[:, None] & (lane < size)[None, :], 0.0)
    for first in range(0, rows, ROWS):
        row = sample_group * rows + first + tl.arange(0, ROWS)
        inside = (first + tl.arange(0, ROWS) < rows)[:, None]
        asked = tl.load(query + row[:, None] * size + lane[None, :], inside & (lane < size)[None, :], 0.0)
        logits = tl.dot(asked, tl.trans(block), input_precision="ieee") * scale
        tl.store(out + row[:, None] * keys + column[None, :], logits, inside & (column < keys)[None, :])


def row_logits(query: Tensor, key: Tensor, scale: float, softcap: float | None = None) -> Tensor:
    """Scaled products of a few queries with all keys, before mask and softmax.

    Parameters
    ----------
    query
        (B, H, R, D) fp32, fp16 or bf16.
    key
        (B, G, K, D) of the same type, H a multiple of G; any strides, best with the last one 1.
    scale
        Factor of the products.
    softcap
        c: the logits become c tanh(logits / c).

    Returns
    -------
    Tensor
        (B, H, R, K) fp32.
    """
    batch, heads, rows, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    key = key if key.stride(-1) == 1 else key.contiguous()
    out = torch.empty(batch, heads, rows, keys, device=query.device, dtype=torch.float32)
    together = heads // groups * rows
    large = query.dtype == torch.float32 or size > 256  # a block of keys is held whole
    block = 32 if large else 64
    _rows[(triton.cdiv(keys, block), batch * groups)](
        query.contiguous(), key, out, together, keys, groups, size, key.stride(0), key.stride(1), key.stride(2),
        float(scale), ROWS=16 if large or together <= 16 else 32, KEYS=block,
        SIZE=max(16, triton.next_power_of_2(size)), num_stages=1 if large else 3,
    )  # fmt: skip
    return out if not softcap else out.div_(softcap).tanh_().mul_(softcap)


def agrees(device: torch.device, dtype: torch.dtype) -> bool:
    """Try the kernel on a small problem against a plain product on the CPU."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 7, 40, generator=generator).to(dtype)
    key = torch.randn(2, 2, 130, 40, generator=generator).to(dtype)
    plain = query.float().view(2, 2, -1, 40) @ key.float().mT * 0.2
    fused = row_logits(query.to(device), key.to(device), 0.2).cpu()
    return torch.allclose(fused.view_as(plain), plain, rtol=1e-5, atol=1e-5)
