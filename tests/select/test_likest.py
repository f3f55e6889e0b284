"""The token that each token is most like, in blocks of rows, against the map of all pairs."""

from __future__ import annotations

import pytest
import torch

from foveate.select import likest


@pytest.mark.parametrize("rows", [1, 7, 512])
def test_it_is_the_largest_of_the_map(rows, monkeypatch):
    monkeypatch.setattr(likest, "ROWS", rows)
    torch.manual_seed(0)
    features, others = torch.randn(3, 20, 6), torch.randn(3, 5, 6)
    others[0, 3] = others[0, 1]
    there = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    value, place = likest.likest(features, others, there)
    for row in range(2):
        for token in range(20):
            cosines = {
                other: float(torch.cosine_similarity(features[row, token], others[row, other], dim=0))
                for other in there[row].nonzero()[:, 0].tolist()
            }
            assert float(value[row, token]) == pytest.approx(max(cosines.values()), abs=1e-6)
            assert int(place[row, token]) == max(cosines, key=cosines.get)
    assert (value[2] == -torch.inf).all()
    none, first = likest.likest(features, others[:, :0], there[:, :0])
    assert (none == -torch.inf).all()
    assert not first.any()
