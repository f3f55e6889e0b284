"""Assisted decoding and prompt lookup: the first forward pass holds proposals, and the question ends before them."""

from __future__ import annotations

import copy

import pytest
import torch

from foveate import FastV
from foveate.errors import UnsupportedModelError
from tests.laws.methods import METHODS
from tests.models.build import build, generate, inputs

STEPS = 6


def assistant():
    """A model that proposes other words than the one it helps."""
    model = copy.deepcopy(build("llava"))
    with torch.no_grad():
        noise = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
        model.lm_head.weight += 0.1 * noise
    return model


@pytest.mark.parametrize("how", ["assistant", "lookup"])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_tokens_are_kept_and_the_same_is_said(method, how):
    model = build("llava")
    options = {"assistant_model": assistant()} if how == "assistant" else {"prompt_lookup_num_tokens": 3}
    pruner = METHODS[method]
    if pruner.compact_cache or pruner.extra_tokens(model) is not None:
        batch = inputs("llava", "one image")
        with pruner(model) as handle:
            with pytest.raises(UnsupportedModelError, match="prompt lookup need compact_cache=False"):
                generate(model, batch, 1, **options)
            with handle.paused():
                generate(model, batch, 1, **options)
            generate(model, {"input_ids": torch.tensor([[5, 6, 7, 6]])}, 1, **options)
        return
    for seed in range(1, 9):
        batch = inputs("llava", "one image", seed=seed)
        dense = generate(model, batch, STEPS).sequences
        if not torch.equal(generate(model, batch, STEPS, **options).sequences[:, : dense.shape[1]], dense):
            continue  # older releases answer otherwise with proposals, also without pruning
        with pruner(model) as plain:
            expected = generate(model, batch, STEPS)
        with pruner(model) as helped:
            found = generate(model, batch, STEPS, **options)
        for ours, theirs in zip(helped.report.stages, plain.report.stages, strict=True):
            assert torch.equal(ours.kept[0], theirs.kept[0]), f"seed {seed}, layer {ours.layer}"
        assert torch.equal(found.sequences[:, : expected.sequences.shape[1]], expected.sequences), f"seed {seed}"


def test_the_next_prompt_ends_where_it_ends():
    """Nothing of the proposals is remembered for a longer prompt, nor after a refusal."""
    model, short, long = build("llava"), inputs("llava", "one image"), inputs("llava", "two images")
    with FastV(keep=0.3)(model) as alone, torch.no_grad():
        model(**long)
    with FastV(keep=0.3)(model) as after, torch.no_grad():
        generate(model, short, 3, prompt_lookup_num_tokens=3)
        model(**long)
    assert torch.equal(after.report.stages[0].kept[0], alone.report.stages[0].kept[0])


def test_a_call_that_fails_leaves_no_mark_on_the_next():
    """Assisted decoding of several samples is refused by transformers, after it made the proposing part."""
    model, long = build("llava"), inputs("llava", "two images")
    with FastV(keep=0.3)(model) as alone, torch.no_grad():
        model(**long)
    with FastV(keep=0.3)(model) as after, torch.no_grad():
        with pytest.raises(ValueError, match="batch_size = 1"):
            generate(model, inputs("llava", [[4, None], [3, None]]), 1, prompt_lookup_num_tokens=3)
        model(**long)
    assert torch.equal(after.report.stages[0].kept[0], alone.report.stages[0].kept[0])


def test_nothing_stays_behind():
    model = build("llava")
    with FastV(keep=0.3)(model):
        assert "_get_candidate_generator" in model.__dict__
    assert "_get_candidate_generator" not in model.__dict__
