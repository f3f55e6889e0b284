"""Local and global error of each cut, against a dense model in which the dropped tokens are masked."""

from __future__ import annotations

import pytest
import torch

from foveate import BTP, Random
from foveate.engine import attach
from foveate.measure.stage_errors import Only, stage_errors
from foveate.testing import NEVER, hidden_from
from tests.models.build import IMAGE, LAYOUTS, build, inputs, single

PRUNER = BTP(stages=[(1, 0.6, 0.4), (3, 0.3, 1.0)])


def masked_outputs(model, batch, gone):
    """Output of each layer of the dense model with tokens hidden from layer `gone` (B, L) on."""
    length = batch["input_ids"].shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    found = []

    def hide(layer):
        def hook(module, args, kwargs):
            visible = causal & (batch["attention_mask"].bool() & (gone > layer))[:, None, None, :]
            visible = visible | torch.eye(length, dtype=torch.bool)
            return args, {**kwargs, "attention_mask": visible}

        return hook

    layers = model.get_decoder().layers
    handles = [layer.register_forward_pre_hook(hide(at), with_kwargs=True) for at, layer in enumerate(layers)]
    handles += [layer.register_forward_hook(lambda m, a, out: found.append(out)) for layer in layers]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("tokens", ["last", "text"])
@pytest.mark.parametrize("layout", ["one image", "two images", "ragged", "ragged with text only"])
def test_equal_to_masking(layout, tokens):
    model, batch = build("llava"), inputs("llava", layout)
    visual = (batch["input_ids"] == IMAGE) & batch["attention_mask"].bool()
    text = (visual.cumsum(-1) > 0) & ~visual & batch["attention_mask"].bool()
    if tokens == "last":  # of samples with an image; prompts end together
        text[:, :-1] = False
    dense = masked_outputs(model, batch, torch.full(visual.shape, NEVER))

    def expected(cuts):
        with torch.no_grad(), attach(model, Only(method=PRUNER.resolved(model.config), cuts=cuts)) as pruned:
            model(**batch)
        masked = masked_outputs(model, batch, hidden_from(pruned.report, visual))
        both = []
        for layer in (cuts[-1], 5):
            of_sample = [
                ((masked[layer][row][mask] - dense[layer][row][mask]).norm() / dense[layer][row][mask].norm()).item()
                for row, mask in enumerate(text)
                if mask.any()
            ]
            both.append(sum(of_sample) / len(of_sample))
        return both

    first, second = stage_errors(model, PRUNER, batch, tokens)
    assert [first.layer, second.layer] == [1, 3]
    assert [first.local, first.global_] == pytest.approx(expected((1,)), rel=1e-3)
    assert [first.local_so_far, first.global_so_far] == [first.local, first.global_]
    assert [second.local, second.global_] == pytest.approx(expected((3,)), rel=1e-3)
    assert [second.local_so_far, second.global_so_far] == pytest.approx(expected((1, 3)), rel=1e-3)
    assert min(first.local, first.global_, second.local, second.global_) > 0.01


@pytest.mark.parametrize("tokens", ["last", "text"])
@pytest.mark.parametrize("family", ["qwen3_vl", "llava_next"])
def test_a_batch_is_the_mean_of_its_samples(family, tokens):
    model, rows = build(family), range(len(LAYOUTS["ragged"]))
    together = stage_errors(model, PRUNER, inputs(family, "ragged"), tokens)
    alone = [stage_errors(model, PRUNER, single(family, "ragged", row), tokens) for row in rows]
    for number, stage in enumerate(together):
        for name in ("local", "global_", "local_so_far", "global_so_far"):
            mean = sum(getattr(errors[number], name) for errors in alone) / len(alone)
            assert getattr(stage, name) == pytest.approx(mean, rel=1e-3)


def test_nothing_pruned_is_no_error():
    model = build("llava")

    def hooks():
        return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]

    before = hooks()
    (stage,) = stage_errors(model, Random(keep=1.0, layer=2), inputs("llava", "one image"))
    assert (stage.local, stage.global_) == (0, 0)
    assert stage_errors(model, PRUNER, inputs("llava", "no image")) == []
    assert hooks() == before
