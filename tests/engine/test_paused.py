"""`handle.paused()`: the pruner stays attached and does nothing."""

from __future__ import annotations

import threading

import pytest
import torch

from foveate import FastV, Random
from foveate.engine.arguments import cache_of, with_cache
from foveate.errors import UnsupportedCacheError
from tests.laws.methods import METHODS
from tests.models.build import build, generate, inputs
from tests.models.sizes import LAYERS

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize("method", ["fastv", "glimpseprune", "ladder from 0 compacted"])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_dense_inside_and_pruned_again_behind_it(family, method):
    model, batch = build(family), inputs(family, "ragged")
    dense = generate(model, batch, 3)
    with METHODS[method](model) as pruned:
        before = generate(model, batch, 3)
        with pruned.paused():
            inside = generate(model, batch, 3)
        behind = generate(model, batch, 3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(inside.logits, dense.logits, strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(before.logits, behind.logits, strict=True))
    assert {layer.keys.shape[-2] for layer in cache_of(inside).layers} == {batch["input_ids"].shape[1] + 2}
    first, middle, last = pruned.report.prefills
    assert middle.skipped == "the pruner was paused"
    assert not middle.stages
    assert middle.kv_share == middle.mean_tokens_per_layer == 1.0
    assert middle.flops_pruned == middle.flops_dense
    assert not first.skipped
    assert [kept.tolist() for kept in last.stages[0].kept] == [kept.tolist() for kept in first.stages[0].kept]


def test_a_pruned_cache_is_refused_and_lives_on():
    model, batch = build("llava"), inputs("llava", "one image")
    with Random(keep=0.3, layer=2)(model) as pruned, torch.no_grad():
        cache = cache_of(model(**batch, use_cache=True))
        word, mask = torch.tensor([[7]]), torch.ones(1, batch["input_ids"].shape[1] + 1, dtype=torch.long)
        lengths = [layer.keys.shape[-2] for layer in cache.layers]
        for words in (word, word.repeat(1, 3)):
            with pruned.paused(), pytest.raises(UnsupportedCacheError, match="while its pruner is paused"):
                model(input_ids=words, attention_mask=mask, **with_cache(model, cache))
        assert [layer.keys.shape[-2] for layer in cache.layers] == lengths
        model(input_ids=word, attention_mask=mask, **with_cache(model, cache))


def test_an_error_inside_ends_the_pause_and_pauses_nest():
    model, batch = build("llava"), inputs("llava", "one image")
    with FastV(keep=0.3)(model) as pruned:
        with pruned.paused() as handle:
            assert handle is pruned
            with pytest.raises(ZeroDivisionError), pruned.paused():
                raise ZeroDivisionError
            generate(model, batch, 1)
        generate(model, batch, 1)
    assert [bool(prefill.skipped) for prefill in pruned.report.prefills] == [True, False]


def test_it_holds_in_every_thread():
    model, batch = build("llava"), inputs("llava", "one image")
    with FastV(keep=0.3)(model) as pruned, pruned.paused():
        thread = threading.Thread(target=generate, args=(model, batch, 1))
        thread.start()
        thread.join()
    assert pruned.report.skipped == "the pruner was paused"


def test_a_new_image_behind_a_dense_one_is_pruned():
    """The first image stays whole in the cache, the second is cut."""
    model, first, second = build("llava"), inputs("llava", "one image"), inputs("llava", "one image", seed=2)
    past = first["input_ids"].shape[1]
    with Random(keep=4, layer=2)(model) as pruned, torch.no_grad():
        with pruned.paused():
            cache = cache_of(model(**first, use_cache=True))
        mask = torch.cat([first["attention_mask"], second["attention_mask"]], -1)
        model(**{**second, "attention_mask": mask}, **with_cache(model, cache))
    full = past + second["input_ids"].shape[1]
    assert [layer.keys.shape[-2] for layer in cache.layers] == [full] * 2 + [full - 12] * (LAYERS - 2)
    assert [prefill.skipped for prefill in pruned.report.prefills] == ["the pruner was paused", None]


def test_an_image_that_comes_later_is_reported():
    model, batch = build("llava"), inputs("llava", "one image")
    with Random(keep=4, layer=2)(model) as pruned, torch.no_grad(), pruned.paused():
        cache = cache_of(model(input_ids=torch.tensor([[5, 6]]), use_cache=True))
        mask = torch.ones(1, 2 + batch["input_ids"].shape[1], dtype=torch.long)
        model(**{**batch, "attention_mask": mask}, **with_cache(model, cache))
    assert [prefill.skipped for prefill in pruned.report.prefills] == [
        "no visual token in the prompt",
        "the pruner was paused",
    ]
