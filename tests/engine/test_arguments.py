"""Arguments of the forward pass that do not go with dropped tokens."""

from __future__ import annotations

import pytest
import torch

from foveate import Random
from foveate.engine import attach
from foveate.errors import UnsupportedModelError
from foveate.families import family_of
from tests.models.build import IMAGE, build, generate, inputs, visual


@pytest.mark.parametrize(
    ("name", "message"), [("cu_seq_lens_q", "packed sequences"), ("weight_of_each_token", "one entry a token")]
)
def test_what_cannot_be_cut_is_refused(name, message):
    model, batch = build("llava"), inputs("llava", "one image")
    dense = generate(model, batch, 2)
    with Random(keep=0.3, layer=2)(model), pytest.raises(UnsupportedModelError, match=message), torch.no_grad():
        model(**batch, **{name: torch.ones(batch["input_ids"].shape[1])})
    assert torch.equal(generate(model, batch, 2).sequences, dense.sequences)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_labels_from_the_start_keep_everything(family):
    """As in training on all text: the text behind an image would be predicted from tokens that are gone."""
    model, batch = build(family), inputs(family, "one image")
    labels = batch["input_ids"].masked_fill(visual(batch), -100)
    with torch.no_grad():
        dense = model(**batch, labels=labels).loss
        with Random(keep=0.3, layer=2)(model) as pruned:
            loss = model(**batch, labels=labels).loss
    assert torch.equal(loss, dense)
    assert "labels begin before" in pruned.report.skipped


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_what_is_advised_for_embeddings_with_images_in_them_is_possible(family):
    model, batch, seen = build(family), inputs(family, "one image"), {}
    hook = (
        family_of(model)
        .parts(model)
        .decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    )
    with torch.no_grad():
        model(**batch)
    hook.remove()
    embeds = {"inputs_embeds": seen["inputs_embeds"], "attention_mask": batch["attention_mask"]}
    types = (batch["input_ids"] == IMAGE).int()
    with attach(model, Random(keep=0.3)) as handle, torch.no_grad():
        model(**embeds)
        advice = handle.report.skipped
        assert "pass mm_token_type_ids, 1 where an image is" in advice
        model(**embeds, mm_token_type_ids=types)
        assert handle.report.skipped is None
        if "generate() of this model takes none" in advice:
            with pytest.raises(ValueError, match="mm_token_type_ids"):
                model.generate(**embeds, mm_token_type_ids=types, max_new_tokens=1)
        else:
            model.generate(**embeds, mm_token_type_ids=types, max_new_tokens=1)
            assert handle.report.skipped is None
