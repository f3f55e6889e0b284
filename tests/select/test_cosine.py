"""Rows of length one, made where they are needed."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch.nn.functional import normalize

from foveate.select import cosine


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [4, 512])
def test_the_sum_of_valid_rows(kind, block):
    features = torch.randn(19, 8, generator=torch.Generator().manual_seed(1)).to(kind)
    valid = torch.arange(19) % 3 > 0
    with mock.patch.object(cosine, "BLOCK", block):
        found = cosine.UnitRows(features).mean(valid)
    wide = features.to(torch.float64 if kind == torch.float64 else torch.float32)
    torch.testing.assert_close(found, normalize(wide, dim=1)[valid].sum(0))
