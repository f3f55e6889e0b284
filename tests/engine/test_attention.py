"""Attention rows equal what the model itself would return as attentions, on every backend, and leave no trace."""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_utils import AttentionInterface

from foveate.engine.attention_rows import attention_rows, attention_tap
from tests.models.build import ATTENTIVE, build, decoder, inputs


@pytest.mark.parametrize("family", ATTENTIVE)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["one image", "ragged"])
def test_rows_equal_output_attentions(family, attention, layout):
    batch = inputs(family, layout)
    length = batch["input_ids"].shape[1]
    rows = torch.tensor([[length - 1, length - 3]]).expand(batch["input_ids"].shape[0], -1)
    seen = []

    def listen(query, key, value, mask, options):
        seen.append(attention_rows(query, key, mask, options, rows))

    model = build(family, attention)
    before = AttentionInterface.get_interface
    with torch.no_grad():
        with attention_tap(decoder(model).layers[2].self_attn, listen):
            model(**batch)
        whole = build(family, "eager")(**batch, output_attentions=True).attentions[2]
    assert AttentionInterface.get_interface is before
    expected = whole.gather(2, rows[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3]))
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0)


def test_every_kind_of_mask_means_the_same():
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 9, 8)
    rows = torch.tensor([[6, 2], [5, 6]])
    real = torch.ones(2, 9, dtype=torch.long)
    real[1, :3] = 0
    visible = torch.ones(7, 9, dtype=torch.bool).tril(2) & real.bool()[:, None]
    visible = visible[:, None]
    additive = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    as_bool = attention_rows(query, key, visible, {}, rows)
    for mask in (additive, real):
        torch.testing.assert_close(attention_rows(query, key, mask, {}, rows), as_bool)
    assert not torch.allclose(attention_rows(query, key, None, {}, rows)[1], as_bool[1])
    torch.testing.assert_close(attention_rows(query, key, None, {}, rows)[0], as_bool[0])
    repeated = key.repeat_interleave(2, 1)
    scores = (query @ repeated.transpose(-1, -2)) * 8**-0.5
    expected = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    torch.testing.assert_close(as_bool, expected.gather(2, rows[:, None, :, None].expand(2, 4, 2, 9)))
    scaled = attention_rows(query, key, visible, {"scaling": 0.1, "softcap": 2.0}, rows)
    capped = (2.0 * torch.tanh(scores * 8**0.5 * 0.1 / 2.0)).masked_fill(~visible, float("-inf")).softmax(-1)
    torch.testing.assert_close(scaled, capped.gather(2, rows[:, None, :, None].expand(2, 4, 2, 9)))


def test_tap_is_closed_after_an_error():
    before = AttentionInterface.get_interface
    with pytest.raises(ZeroDivisionError), attention_tap(torch.nn.Identity(), lambda *_: None):
        1 / 0  # noqa: B018
    assert AttentionInterface.get_interface is before


def test_logits_and_absent_rows():
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8)
    rows = torch.tensor([[6, -1], [3, 6]])
    soft, raw = (attention_rows(query, key, None, {}, rows, form) for form in ("softmax", "logits"))
    torch.testing.assert_close(raw[1].softmax(-1), soft[1])
    assert raw[1, :, 0, 4:].isneginf().all()
    assert not soft[0, :, 1].any()
    assert not raw[0, :, 1].any()


def test_sinks_take_their_share():
    torch.manual_seed(0)
    query, key, sinks = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8), torch.randn(4)
    rows = torch.tensor([[6], [3]])
    forms = ("softmax", "log_softmax", "logits")
    soft, log, raw = (attention_rows(query, key, None, {"s_aux": sinks}, rows, form) for form in forms)
    weights = raw.exp()
    torch.testing.assert_close(soft, weights / (weights.sum(-1, keepdim=True) + sinks.exp().view(1, 4, 1, 1)))
    torch.testing.assert_close(log.exp(), soft)
    torch.testing.assert_close(attention_rows(query, key, None, {}, rows, "logits"), raw)
