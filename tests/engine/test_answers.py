"""Placeholder ids in an answer, or proposed for one, are words: nothing is pruned there."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList

from foveate import Random
from foveate.engine.arguments import cache_of, with_cache
from tests.models.build import IMAGE, build, generate, inputs

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "idefics3"])
def test_prompt_lookup_proposes_placeholders(family):
    """The answer's second word stands before the image in the prompt: what follows it there is proposed."""
    model, batch = build(family), inputs(family, "one image")
    length, first = batch["input_ids"].shape[1], int((batch["input_ids"] == IMAGE).int().argmax())
    word = int(batch["input_ids"][0, first - 1])

    def force(ids, scores):
        scores[:, IMAGE] = -1e9
        return torch.nn.functional.one_hot(torch.tensor([word]), scores.shape[1]) * 1e9 + scores * (
            ids.shape[1] != length + 1
        )

    options = dict(max_new_tokens=5, do_sample=False, eos_token_id=1)
    proposed = []
    look = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: proposed.append((args or (kwargs["input_ids"],))[0][0].tolist()), with_kwargs=True
    )
    try:
        with Random(keep=0.3, layer=2)(model) as pruned:
            forced = LogitsProcessorList([force])
            out = model.generate(
                **batch, logits_processor=forced, prompt_lookup_num_tokens=3, max_matching_ngram_size=1, **options
            )
            expected = model.generate(**batch, logits_processor=forced, **options)
    finally:
        look.remove()
    assert any(1 < len(ids) < 6 and IMAGE in ids for ids in proposed), "nothing of the image was proposed"
    assert len(pruned.report.prefills) == 2
    assert torch.equal(out[:, : expected.shape[1]], expected)


@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_an_answer_with_a_placeholder_is_passed_on(family):
    model, batch = build(family), inputs(family, "one image")
    with Random(keep=0.3, layer=2)(model) as pruned:
        first = generate(model, batch, 3)
        more = torch.cat([first.sequences, torch.tensor([[5, IMAGE, IMAGE, 7]])], 1)
        generate(
            model,
            {"input_ids": more, "attention_mask": torch.ones_like(more)},
            2,
            **with_cache(model, cache_of(first)),
        )
    assert len(pruned.report.prefills) == 1
