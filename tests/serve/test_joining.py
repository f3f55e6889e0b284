"""Batches that decode are joined and rows leave them: each row's scores stay those that it has alone."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch

import foveate
from foveate.engine.cache_layers import PrunedLayer
from tests.models.build import BUILDERS, build, inputs, single
from tests.models.sizes import PAD

pytest.importorskip("fastapi")

from foveate.serve.joining import Prefill, Running, check_joins
from foveate.serve.settings import ServeError

METHODS = {
    "dense": None,
    "greedyprune": foveate.GreedyPrune(keep=0.3),
    "fastv": foveate.FastV(keep=0.3, layer=2),
    "compacting": foveate.Random(keep=0.3, layer=2, compact_cache=True),
    "stages": foveate.PyramidDrop(keep=0.4),
    "adds tokens": foveate.GlimpsePrune(),
    "many run dense": foveate.Random(keep=0.3, layer=1, min_visual=20),
}
FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3")
# decoders with windows, states, or layers that read the keys of others
REFUSED = {
    *("aya_vision", "cohere2_vision", "paligemma2", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "gemma4_e2b"),
    *("exaone4_5", "step3p7", "internvl3_5_gpt_oss", "qwen3_5", "qwen3_5_moe", "lfm2_vl", "minicpmv4_6"),
    "minicpmv4_7",
}
STEPS = 9
FIRST, SECOND, THIRD = "ragged", "adjacent images", "ragged with text only"  # of three, one and three rows


def config(model, **more):
    found = copy.deepcopy(model.generation_config)
    found.update(do_sample=False, return_dict_in_generate=True, output_scores=True, **more)
    return found


def begin(model, batch, steps=1, **more):
    """What `generate` puts out, and what `Running.join` takes after one step."""
    with Prefill(model) as seen:
        out = model.generate(**batch, generation_config=config(model, max_new_tokens=steps, **more))
    return out, (out, batch["attention_mask"], seen)


class Rows:
    """Rows that decode, beside what each is alone: its scores, and the words that it is made to say."""

    def __init__(self, family, model, pruner):
        self.family, self.model = family, model
        self.running = Running(model, config(model))
        self.alone = {}
        with contextlib.nullcontext() if pruner is None else pruner(model):
            for layout in (FIRST, SECOND, THIRD):
                for row in range(len(inputs(family, layout)["input_ids"])):
                    out, _ = begin(model, single(family, layout, row), STEPS)
                    self.alone[layout, row] = torch.stack(out.scores)[:, 0], out.sequences[0, -STEPS:]
        self.expected, self.said, self.worst = [], [], 0.0

    def join(self, layout):
        batch = inputs(self.family, layout)
        out, given = begin(self.model, batch)
        new = [self.alone[layout, row] for row in range(len(batch["input_ids"]))]
        self._compare(out.scores[0], new, [0] * len(new))
        out["sequences"][:, -1] = torch.stack([words[0] for _, words in new])
        self.running.join(*given)
        self.expected += new
        self.said += [1] * len(new)

    def steps(self, number):
        for _ in range(number):
            self._compare(self.running.scores(), self.expected, self.said)
            words = [words[said] for (_, words), said in zip(self.expected, self.said, strict=True)]
            self.running.take(torch.stack(words))
            self.said = [said + 1 for said in self.said]

    def leave(self, *gone):
        stay = [row for row in range(len(self.said)) if row not in gone]
        self.running.leave(stay)
        self.expected, self.said = [self.expected[row] for row in stay], [self.said[row] for row in stay]

    def _compare(self, scores, expected, said):
        right = torch.stack([one[at] for (one, _), at in zip(expected, said, strict=True)])
        off = (scores - right).abs()
        off[:, PAD] = 0.0  # a penalty takes padding for a word that was said
        self.worst = max(self.worst, float(off.max()))


@torch.inference_mode()
def joined(family, pruner):
    model = build(family)
    if isinstance(pruner, foveate.GlimpsePrune):
        pruner = pruner.for_bench(model, vision=True)  # random weights
    rows = Rows(family, model, pruner)
    with contextlib.nullcontext() if pruner is None else pruner(model):
        rows.join(FIRST)
        rows.steps(2)
        rows.join(SECOND)
        rows.steps(2)
        rows.leave(0, 2)
        rows.join(THIRD)
        rows.steps(3)
        rows.leave(0, 1)
        rows.steps(1)
    return rows


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_each_row_alone(family, method):
    rows = joined(family, METHODS[method])
    assert rows.worst < 2e-4
    held = {type(layer) for layer in rows.running.cache.layers}
    assert any(issubclass(kind, PrunedLayer) for kind in held) == (method != "dense")
    # what no row needs any more is gone
    dense = int(rows.running.cache.get_seq_length())
    assert dense == int(rows.running.mask.sum(-1).max()) - 1 == rows.running.ids.shape[1] - 1


@torch.inference_mode()
def test_rows_of_one_length_that_kept_different_numbers():
    """No row has padding in its prompt, so that only the cache knows of any."""
    model, pruner = build("llava"), METHODS["fastv"]
    both = [inputs("llava", [row]) for row in ([21, None, 4], [4, None, 2, None, 3])]
    assert both[0]["input_ids"].shape == both[1]["input_ids"].shape
    with pruner(model):
        outs = [begin(model, one, 2)[0] for one in both]
        running = Running(model, config(model))
        for one in both:
            _, given = begin(model, one)
            running.join(*given)
        right = torch.cat([out.scores[1] for out in outs])
        assert torch.allclose(running.scores(), right, atol=2e-4)


@pytest.mark.parametrize("family", [family for family in BUILDERS if family not in FAMILIES])
def test_other_families_are_joined_or_refused(family):
    model = build(family)
    if family in REFUSED:
        with pytest.raises(ServeError, match="cannot be joined in KV cache layers"):
            check_joins(model, config(model))
        return
    check_joins(model, config(model))
    assert joined(family, foveate.Random(keep=0.3, layer=1)).worst < 2e-4


def test_a_penalty_for_repetition_holds_and_what_counts_tokens_is_refused():
    model = build("llava")
    kept, model.generation_config = model.generation_config, config(model, repetition_penalty=1.5)
    try:
        check_joins(model, config(model))
        assert joined("llava", METHODS["fastv"]).worst < 2e-4
        with pytest.raises(ServeError, match="MinNewTokens"):
            check_joins(model, config(model, min_new_tokens=3, eos_token_id=5))
    finally:
        model.generation_config = kept
