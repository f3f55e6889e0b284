"""The kernels on a GPU: compiled, trusted, equal to the plain forms at size, and never waited for."""

from __future__ import annotations

import warnings
from unittest import mock

import pytest
import torch

from foveate import select
from foveate.kernels import dispatch as fused

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("batch", [1, 3])
def test_picks_of_the_plain_forms_without_waiting(batch: int, dtype: torch.dtype) -> None:
    number, width = 2000, 256
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, number, width, generator=generator).to("cuda", dtype)
    scores = torch.randn(batch, number, generator=generator).cuda()
    calls = {
        "diversity": lambda: select.max_min_diversity(features, 400),
        "suppression": lambda: select.suppression(features, scores, 400, 0.12, "relax"),
        "dpp": lambda: select.low_rank_dpp(features, 150),
    }
    for name, call in calls.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call()  # compiled, and tried
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                keep = call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        with mock.patch.object(fused, "supported", return_value=False):
            plain = call()
        # Rounding may decide between two near ties, and the picks after it differ.
        assert (keep & plain).sum() >= 0.95 * plain.sum(), name
        assert torch.equal(keep.sum(-1), plain.sum(-1)), name
