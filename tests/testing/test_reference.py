"""The slow reference: the dense run where nothing is hidden, and on top of the model's own mask where something is."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from foveate.testing import NEVER, dense_run, hidden_from, reference_logits
from foveate.testing.one_by_one import without_the_dropped
from tests.models.build import BUILDERS, WITH_VIDEOS, build, inputs, visual

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize("family", BUILDERS)
def test_with_nothing_hidden_it_is_the_dense_run(family):
    """If it were not, no law would say anything."""
    model, batch = build(family), inputs(family, "video" if family in WITH_VIDEOS else "ragged")
    dense = dense_run(model, batch, 4)
    nothing = torch.full(batch["input_ids"].shape, NEVER)
    logits = reference_logits(model, batch, dense.sequences[:, :-1], nothing)
    torch.testing.assert_close(logits, torch.stack(dense.logits, 1), atol=1e-4, rtol=0)


def test_what_is_hidden_changes_the_answer_from_its_layer_on():
    model, batch = build("llava"), inputs("llava", "one image")
    nothing = torch.full(batch["input_ids"].shape, NEVER)
    first, last = (nothing.masked_fill(visual(batch), layer) for layer in (0, 5))
    whole, none, little = (reference_logits(model, batch, batch["input_ids"], gone) for gone in (nothing, first, last))
    assert (whole - none).abs().max() > (whole - little).abs().max() > 1e-3


@contextlib.contextmanager
def own_masks(model, visible, additive):
    """The model gives its decoder layers this (L, L) mask, as families with windows or two directions do."""

    def give(module, args, kwargs):
        length = args[0].shape[1]
        mask = visible(length).expand(args[0].shape[0], 1, -1, -1)
        if additive:
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        return args, {**kwargs, "attention_mask": mask}

    handles = [layer.register_forward_pre_hook(give, with_kwargs=True) for layer in model.get_decoder().layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def window(length):
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return causal & ~causal.tril(-4)


def both_ways(length):
    return torch.ones(length, length, dtype=torch.bool)


@pytest.mark.parametrize(("attention", "additive"), [("sdpa", False), ("eager", True)])
def test_the_model_s_own_mask_stays(attention, additive):
    model, batch = build("llava", attention), inputs("llava", "one image")
    nothing = torch.full(batch["input_ids"].shape, NEVER)
    plain = reference_logits(model, batch, batch["input_ids"], nothing)
    with own_masks(model, window, additive), torch.no_grad():
        dense = model(**batch).logits[:, -1:]
        logits = reference_logits(model, batch, batch["input_ids"], nothing)
        gone = nothing.clone()
        gone[:, 4:-4] = 0  # more than a window away from the last token, but not from those it sees
        hidden = reference_logits(model, batch, batch["input_ids"], gone)
    torch.testing.assert_close(logits, dense, atol=1e-5, rtol=0)
    assert (logits - plain).abs().max() > 1e-2
    assert (logits - hidden).abs().max() > 1e-2


def test_a_prompt_does_not_see_its_answer():
    """Where a prompt sees itself in both directions, an answer behind it must change nothing in it."""
    model, batch = build("llava"), inputs("llava", "one image")
    nothing = torch.full(batch["input_ids"].shape, NEVER)
    longer = torch.cat([batch["input_ids"], torch.tensor([[7, 8]])], 1)
    with own_masks(model, both_ways, False):
        alone = reference_logits(model, batch, batch["input_ids"], nothing)
        first = reference_logits(model, batch, longer, nothing)[:, :1]
    torch.testing.assert_close(first, alone, atol=1e-5, rtol=0)


class Running(nn.Module):
    """A layer without attention: each token gets the sum of all before it, turned by the tables."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **kwargs):
        (turn,) = position_embeddings
        return hidden_states.cumsum(1) + turn


@pytest.mark.parametrize("rows", [1, 2])
def test_a_layer_without_attention_never_meets_the_dropped(rows):
    layer, hidden, turn = Running(), torch.randn(2, 5, 3), torch.randn(rows, 5, 3)
    stay = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 1, 0]]).bool()
    handle = without_the_dropped(layer, stay)
    out = layer(hidden, position_embeddings=(turn,))
    handle.remove()
    for row, mine in enumerate(stay):
        expected = hidden[row, mine].cumsum(0) + turn[min(row, rows - 1), mine]
        torch.testing.assert_close(out[row, mine], expected)


def test_hidden_from_takes_the_first_stage_that_drops():
    class Stage:
        def __init__(self, layer, kept):
            self.layer, self.kept = layer, [torch.tensor(kept)]

    class Report:
        stages = (Stage(1, [1, 2]), Stage(3, [2]))

    seen = torch.tensor([[False, True, True, True, False]])
    assert hidden_from(Report, seen).tolist() == [[NEVER, 3, NEVER, 1, NEVER]]
