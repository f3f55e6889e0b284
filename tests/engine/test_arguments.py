"""Arguments of the forward pass that do not go with dropped tokens."""

from __future__ import annotations

import pytest
import torch

from foveate import Random
from foveate.errors import UnsupportedModelError
from tests.models.build import build, generate, inputs, visual


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
