"""Options: what makes no sense is refused with its name; what makes sense survives a round trip through a folder."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import foveate
from foveate import FastV, GreedyPrune, Random
from foveate.errors import BudgetError, ModelNotReachable, UnknownMethodError
from foveate.pruners.budget import tokens_to_keep


@pytest.mark.parametrize("keep", [0, 1, 0.0, 1.5, -1, -0.1, float("nan"), float("inf"), "0.5", None, True, 1j])
@pytest.mark.parametrize("method", foveate.pruners.METHODS)
def test_keep_that_makes_no_sense(keep, method):
    if method in ("btp", "glimpseprune") and keep is None:
        assert foveate.make(method, keep=keep).keep is None  # the method's own budget
        return
    with pytest.raises(BudgetError, match="keep"):
        foveate.make(method, keep=keep)


@pytest.mark.parametrize(
    "options",
    [
        {"layer": -1},
        {"layer": 1.5},
        {"layer": "2"},
        {"per": "batch"},
        {"threshold": float("nan")},
        {"threshold": "0.9"},
        {"threshold": -2},
        {"fill": "all"},
        {"query": "first"},
    ],
)
def test_option_that_makes_no_sense(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        GreedyPrune(**options)


def test_attention_before_the_first_layer():
    with pytest.raises(BudgetError, match="at least 1"):
        FastV(layer=0)


def test_unknown_method_and_option():
    with pytest.raises(foveate.errors.UnknownMethodError, match="fastv.*greedyprune"):
        foveate.make("slowv")
    with pytest.raises(foveate.errors.UnknownMethodError, match="threshold"):
        foveate.make("greedyprune", tau=0.9)


@pytest.mark.parametrize("seed", [1.5, "1", True])
def test_seed_that_makes_no_sense(seed):
    with pytest.raises(BudgetError, match="seed"):
        Random(seed=seed)


def test_whole_tokens():
    dense = torch.tensor([0, 1, 16, 576])
    assert tokens_to_keep(0.22, dense).tolist() == [0, 1, 4, 127]
    assert tokens_to_keep(0.001, dense).tolist() == [0, 1, 1, 1]
    assert tokens_to_keep(100, dense).tolist() == [0, 1, 16, 100]
    assert tokens_to_keep(1.0, dense).tolist() == dense.tolist()


def test_numbers_of_numpy_are_numbers():
    assert GreedyPrune(keep=np.float32(0.5)) == GreedyPrune(keep=0.5)
    assert GreedyPrune(keep=np.int64(64)) == GreedyPrune(keep=64)


def test_pruners_are_plain_data():
    pruner = GreedyPrune(keep=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pruner.keep = 0.1
    with pytest.raises(BudgetError):
        dataclasses.replace(pruner, keep=2.0)
    assert "keep=0.5" in repr(pruner)


@pytest.mark.parametrize("method", foveate.pruners.METHODS)
def test_save_and_load(method, tmp_path):
    pruner = foveate.make(method, keep=0.3, compact_cache=True)
    pruner.save_pretrained(tmp_path / "mine")
    assert foveate.load(tmp_path / "mine") == pruner


def test_load_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotReachable, match="no folder"):
        foveate.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BudgetError, match="not a pruner's config"):
        foveate.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"method": "slowv", "options": {}}))
    with pytest.raises(UnknownMethodError, match="slowv"):
        foveate.load(tmp_path)
