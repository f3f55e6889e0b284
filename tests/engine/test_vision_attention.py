"""Attention that the vision encoder's tokens receive, as a method is shown it at each visual token."""

from __future__ import annotations

import pytest
import torch

from foveate.engine.attention_rows import QUERIES, column_sums, received
from foveate.errors import UnsupportedModelError
from foveate.families import family_of
from tests.models.build import IMAGE, LAYOUTS, SEEING, build, inputs, single
from tests.models.images import SIZED
from tests.vision_probe import hooked, looked

BATCH = "ragged with text only"


@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
def test_columns_equal_those_of_the_whole_map(kind):
    torch.manual_seed(0)
    length = QUERIES + 9
    query, key = torch.randn(2, 4, length, 8), torch.randn(2, 2, length, 8)
    real = torch.rand(2, length) < (2 if kind == "none" else 0.8)
    real[:, 0] = True
    visible = real[:, None, None, :].expand(-1, -1, length, -1)
    logits = (query @ key.repeat_interleave(2, 1).mT) * 0.3
    whole = logits.masked_fill(~visible, -torch.inf).softmax(-1)
    additive = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    mask = {"none": None, "bool": visible, "additive": additive}[kind]
    sums = column_sums(query, key, 0.3, mask)
    torch.testing.assert_close(sums, (whole * real[:, None, :, None]).sum(2), atol=1e-4, rtol=1e-5)


def test_an_attention_that_tells_no_scale_has_that_of_its_heads():
    query, key = torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
    assert torch.equal(received(query, key, None, {}), received(query, key, None, {"scaling": 16**-0.5}))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_it_is_what_the_encoders_own_attention_says(attention):
    model, batch, seen = build("llava", attention), inputs("llava", BATCH), []
    eager = build("llava", "eager")
    block = family_of(eager).vision_blocks(eager)[1]
    with hooked(block.self_attn.register_forward_hook(lambda *call: seen.append(call[2][1]))), torch.no_grad():
        eager(**batch)
    flat = (batch["input_ids"] == IMAGE).flatten().cumsum(0).view_as(batch["input_ids"]) - 1
    expected = seen[0].sum(2).mean(1)[:, 1:].flatten()  # without the class token
    from_class = seen[0][:, :, 0].mean(1)[:, 1:].flatten()
    for tokens in looked(model, batch, attended=(1,)):
        assert len(tokens.vision) == 2
        for row, valid in enumerate(tokens.valid):
            places = flat[row, tokens.position[row, valid]]
            torch.testing.assert_close(tokens.received[0][row, valid], expected[places], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(tokens.class_received[0][row, valid], from_class[places], atol=1e-6, rtol=1e-5)
            assert not tokens.received[0][row, ~valid].any()
            assert not tokens.class_received[0][row, ~valid].any()


@pytest.mark.parametrize("family", [one for one in ("qwen2_5_vl", "gemma3") if one in SEEING])
def test_without_a_class_token_every_query_counts(family):
    for tokens in looked(build(family), inputs(family, "one image"), blocks=(), attended=(1,)):
        share = tokens.class_received[0] / tokens.received[0]
        torch.testing.assert_close(share, share[:, :1].expand_as(share), atol=0, rtol=1e-4)
        assert share.max() < 1


UNHEARD = tuple(family for family in ("got_ocr2",) if family in SEEING)  # attention of their own


@pytest.mark.parametrize("family", UNHEARD)
@pytest.mark.parametrize("how", ["generate", "forward"])
def test_attention_that_cannot_be_heard_is_refused(family, how):
    with pytest.raises(UnsupportedModelError, match="does not go through transformers' attention functions"):
        looked(build(family), inputs(family, BATCH), how, blocks=(), attended=(0, 2))


@pytest.mark.parametrize("family", [family for family in SEEING if family not in UNHEARD])
def test_batch_equals_its_samples_alone_and_nothing_is_lost(family):
    model = build(family)
    together = looked(model, inputs(family, BATCH), blocks=(), attended=(0, 2))[0]
    assert not together.vision
    for row in range(len(LAYOUTS[BATCH])):
        for alone in looked(model, single(family, BATCH, row), "forward", blocks=(), attended=(0, 2))[:1]:
            for mine, its in zip(alone.received, together.received, strict=True):
                torch.testing.assert_close(mine[0, alone.valid[0]], its[row, together.valid[row]], atol=1e-5, rtol=0)
                if family.startswith(SIZED):  # every patch gives what it has to patches of its own image
                    torch.testing.assert_close(its[row, together.valid[row]].mean(), torch.tensor(1.0))


@pytest.mark.parametrize("class_token", [None, 0, -1])
def test_images_in_one_sequence_are_taken_one_by_one(class_token):
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 3, 8, 4)
    options = {"scaling": 0.7, "cu_seq_lens_q": torch.tensor([0, 3, 8])}
    alone = [
        received(query[:, :, a:b], key[:, :, a:b], None, {"scaling": 0.7}, class_token) for a, b in ((0, 3), (3, 8))
    ]
    found = received(query, key, None, options, class_token)
    assert torch.equal(found, torch.cat(alone, 1))
    assert not torch.allclose(found, received(query, key, None, {"scaling": 0.7}, class_token))
