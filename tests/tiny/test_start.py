"""A training run that begins with the weights of another, and Muon on a processor without bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foveate.tiny.training.optimisers import Float32Muon, newton_schulz
from foveate.tiny.training.run import START, Recipe, Run


def run(folder):
    return Run(folder, Recipe(), torch.device("cpu"))


def test_it_goes_on_at_the_step_of_the_other_with_its_weights(tmp_path):
    first, second = nn.Linear(3, 4), nn.Linear(3, 4)
    earlier = run(tmp_path / "a")
    earlier.save("language", 7, [first], [])
    (tmp_path / "b").mkdir()
    earlier.write_start(tmp_path / "b" / START, ["language"])
    later = run(tmp_path / "b")
    assert later.restore("vision", [nn.Linear(3, 4)], []) == 0
    assert later.restore("language", [second], []) == 7
    torch.testing.assert_close(second.weight, first.weight, atol=1e-3, rtol=0)
    later.save("language", 9, [second], [])
    assert later.restore("language", [second], []) == 9  # a checkpoint of its own comes first


def test_weights_of_another_recipe_are_refused(tmp_path):
    earlier = run(tmp_path / "a")
    earlier.save("language", 7, [nn.Linear(3, 4, bias=False)], [])
    earlier.write_start(tmp_path / "a" / START, ["language"])
    (tmp_path / "a" / "language.pt").unlink()
    with pytest.raises(ValueError, match="another recipe"):
        earlier.restore("language", [nn.Linear(3, 4)], [])


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_float32_muon_steps_as_torchs_does(shape):
    torch.manual_seed(0)
    start, grad = torch.randn(shape), torch.randn(shape)
    found = []
    for kind in (torch.optim.Muon, Float32Muon):
        weight = nn.Parameter(start.clone())
        weight.grad = grad.clone()
        kind([weight], lr=0.1, weight_decay=0.0).step()
        found.append(weight.detach() - start)
    torch.testing.assert_close(*found, atol=3e-3, rtol=0)
    whole = newton_schulz(grad, (3.4445, -4.775, 2.0315), 5, 1e-7)
    assert whole.shape == shape
    values = torch.linalg.svdvals(whole)
    assert 0.5 < values.min() <= values.max() < 1.5
