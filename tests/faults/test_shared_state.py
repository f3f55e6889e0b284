"""What all of a process shares, such as the seed, is after a call of ours as it was before; see also conftest.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import foveate
from foveate import GlimpsePrune
from foveate.measure.bench.run import random_model
from foveate.measure.predict import bench as predictions
from foveate.torch_state import own_randomness, threads
from tests.models.build import build
from tests.shared_state import draws


def _load():
    return foveate.load("glimpseprune-tiny").weights.glimpse.rows


def _load_embedded():
    return foveate.tiny.load()[0].lm_head.weight


def _random_model():
    return random_model("qwen2.5-vl-7b", layers=4, width=256).model.lm_head.weight


def _random_weights():
    return GlimpsePrune().for_bench(build("llava"), True).weights.glimpse.rows


def _weights_of_a_prediction():
    method = GlimpsePrune().for_bench(build("llava"), True)
    method.weights.to("meta")
    elsewhere = SimpleNamespace(here=False)  # rates of another machine
    return predictions._here(method, elsewhere).weights.glimpse.rows


@pytest.mark.parametrize("call", [_load, _load_embedded, _random_model, _random_weights, _weights_of_a_prediction])
def test_nobody_else_draws_other_numbers(call):
    build("llava")
    torch.manual_seed(5)
    before = draws()
    first = call().detach().clone()
    assert draws() == before
    torch.rand(7)
    torch.testing.assert_close(call().detach(), first, rtol=0, atol=0)


def test_also_after_an_error():
    @threads(None)
    @own_randomness()
    def fail():
        torch.manual_seed(3)
        torch.set_num_threads(2)
        raise KeyError

    before, number = draws(), torch.get_num_threads()
    with pytest.raises(KeyError):
        fail()
    assert (draws(), torch.get_num_threads()) == (before, number)
