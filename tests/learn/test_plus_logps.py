import contextlib

import pytest
import torch

from foveate.learn.glimpse_plus.trainer import answer_logps
from foveate.pruners import FastV, GlimpsePrune, Random
from tests.models.build import ATTENTIVE, IMAGE, SEEING, VIDEO, build, generate, inputs, visual

STEPS = 5
PRUNERS = {
    "compacted": FastV(layer=4, keep=0.4, compact_cache=True),
    "ragged": Random(layer=2, keep=0.5, compact_cache=True),
    "early layers keep all": FastV(layer=3, keep=0.3),
    "glimpse": GlimpsePrune(layer=4),
}


def sampled(model, batch, pruner):
    """Answers, padded as TRL pads them, with the log-probability and the entropy of each step."""
    torch.manual_seed(0)
    with pruner(model):
        output = generate(model, batch, STEPS, do_sample=True, top_k=0)
    answers = output.sequences[:, -STEPS:]
    lengths = torch.arange(answers.shape[0]) % STEPS + 1  # as if they had ended there
    mask = torch.arange(STEPS) < lengths[:, None]
    distribution = torch.stack(output.logits, 1).log_softmax(-1)
    logps = distribution.gather(-1, answers[..., None])[..., 0]
    return answers * mask, mask, logps, -(distribution.exp() * distribution).sum(-1)


def scored(model, batch, answers, mask, pruner):
    others = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")}
    if "mm_token_type_ids" in others:
        others["mm_token_type_ids"] = torch.nn.functional.pad(others["mm_token_type_ids"], (0, STEPS))  # as TRL does
    with pruner(model), torch.no_grad():
        return answer_logps(
            model,
            torch.cat([batch["input_ids"], answers], 1),
            torch.cat([batch["attention_mask"], mask.long()], 1),
            STEPS,
            **others,
        )


@pytest.mark.oldest
@pytest.mark.parametrize("layout", ["ragged", "ragged with text only"])
@pytest.mark.parametrize("family", [one for one in ATTENTIVE if one in SEEING])
def test_scoring_equals_sampling_in_every_family(family, layout):
    model, batch = build(family), inputs(family, layout)
    for pruner in PRUNERS.values():
        answers, mask, logps, entropy = sampled(model, batch, pruner)
        found = scored(model, batch, answers, mask, pruner)
        torch.testing.assert_close(found[0][mask], logps[mask], atol=1e-4, rtol=0)
        torch.testing.assert_close(found[1][mask], entropy[mask], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_prompt_without_images_behind_one_with_some(family):
    """Qwen keeps the last images' shift of positions; text must not inherit it."""
    model, pruner = build(family), PRUNERS["compacted"]
    model(**inputs(family, "one image"))
    batch = inputs(family, [[9], [5]])
    answers, mask, logps, _ = sampled(model, batch, pruner)
    model(**inputs(family, "one image"))
    assert not visual(batch).any()
    torch.testing.assert_close(scored(model, batch, answers, mask, pruner)[0][mask], logps[mask], atol=1e-4, rtol=0)


def test_answers_of_one_token_and_temperature():
    model, batch, pruner = build("llava"), inputs("llava", "ragged"), PRUNERS["compacted"]
    with pruner(model):
        logits = generate(model, batch, 1).logits[0]
    word = logits.argmax(-1, keepdim=True)
    with pruner(model), torch.no_grad():
        found, _ = answer_logps(
            model,
            torch.cat([batch["input_ids"], word], 1),
            torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1),
            1,
            temperature=0.5,
            pixel_values=batch["pixel_values"],
        )
    expected = (logits / 0.5).log_softmax(-1).gather(-1, word)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_placeholder_in_an_answer_is_a_word():
    model, pruner, batch = build("qwen2_5_vl"), PRUNERS["compacted"], inputs("qwen2_5_vl", "one image")
    answers = torch.tensor([[7, VIDEO, IMAGE, 7, 7]])
    with pruner(model) as pruned:
        scored(model, batch, answers, torch.ones(1, STEPS, dtype=torch.bool), contextlib.nullcontext)
    (prefill,) = pruned.report.prefills  # not one more for the answer
    assert prefill.stages[0].dense == [int(visual(batch).sum())]
