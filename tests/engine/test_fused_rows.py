"""The kernel for attention rows in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from foveate.engine import attention_rows as rows
from foveate.kernels import attention_rows as fused_rows
from foveate.kernels import dispatch as fused
from tests.interpreted import interpreting


@pytest.fixture(autouse=True)
def _in_the_interpreter() -> Iterator[None]:
    with interpreting():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(2, 6, 2, 7, 130, 24), (1, 4, 4, 1, 20, 16), (1, 8, 1, 5, 64, 40)])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_row_logits(dtype: torch.dtype, shape: tuple[int, ...], softcap: float | None) -> None:
    batch, heads, groups, asked, keys, size = shape
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, heads, asked, size, generator=generator).to(dtype)
    cache = torch.randn(batch, keys, groups, size, generator=generator).to(dtype)
    key = cache.transpose(1, 2)  # not contiguous
    plain = rows.row_logits(query, key, 0.3, softcap)
    torch.testing.assert_close(fused_rows.row_logits(query, key, 0.3, softcap), plain, rtol=1e-5, atol=1e-5)


def test_it_passes_its_own_check() -> None:
    assert fused_rows.agrees(torch.device("cpu"), torch.float16)


def test_rows_take_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(1, 2, 3, 16), torch.randn(1, 2, 9, 16)
    plain = rows.row_logits(query, key, 0.3)
    monkeypatch.setattr(fused, "supported", lambda device: True)
    monkeypatch.setattr(fused, "_trusted", {})
    seen = []
    kernel = fused_rows.row_logits
    monkeypatch.setattr(fused_rows, "row_logits", lambda *args: seen.append(1) or kernel(*args))
    torch.testing.assert_close(rows.row_logits(query, key, 0.3), plain)
    assert len(seen) == 2  # its check, and the call
    monkeypatch.setattr(fused_rows, "row_logits", lambda *args: key[0])
    monkeypatch.setattr(fused, "_trusted", {})
    with pytest.warns(RuntimeWarning, match="row_logits"):
        torch.testing.assert_close(rows.row_logits(query, key, 0.3), plain)
