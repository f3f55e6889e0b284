"""The report tells the time of choosing from that of cutting."""

from __future__ import annotations

import time

import torch

from foveate import Random
from foveate.engine import layer_hooks
from tests.models.build import build, inputs

NAP = 0.05


def prefill(pruner):
    model, batch = build("llava"), inputs("llava", "one image")
    with torch.no_grad(), pruner(model) as pruned:
        model(**batch, use_cache=True)
    return pruned.report


def test_choosing_and_cutting_each_have_their_own(monkeypatch):
    plain_select, plain_compact = Random.select, layer_hooks.compact

    def after_a_nap(function):
        def slow(*given):
            time.sleep(NAP)
            return function(*given)

        return slow

    pruner = Random(keep=0.3, layer=2, compact_cache=True)
    with monkeypatch.context() as patch:
        patch.setattr(Random, "select", after_a_nap(plain_select))
        report = prefill(pruner)
        assert report.selection_ms > 1e3 * NAP > report.compaction_ms > 0
    monkeypatch.setattr(layer_hooks, "compact", after_a_nap(plain_compact))
    report = prefill(pruner)
    assert report.compaction_ms > 1e3 * NAP > report.selection_ms > 0


def test_no_cut_takes_no_time():
    model = build("llava")
    with Random(keep=0.3)(model) as pruned, torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert pruned.report.compaction_ms == 0
