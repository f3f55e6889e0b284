"""Tokens leave for real: hidden states, rotary tables, masks, KV cache; positions of what stays do not move."""

from __future__ import annotations

import pytest
import torch

from foveate import DivPrune, FastV, GreedyPrune, Random
from foveate.engine import attach
from foveate.engine.arguments import cache_of, with_cache
from foveate.errors import BudgetError
from foveate.testing import NEVER, hidden_from, reference_logits
from tests.laws.methods import Ladder
from tests.models.build import (
    ATTENTIVE,
    BUILDERS,
    IMAGE,
    build,
    build_anew,
    caches,
    decoder,
    generate,
    inputs,
    last_stage,
)
from tests.models.sizes import LAYERS


def lengths(cache) -> list[int]:
    return [layer.keys.shape[-2] for layer in cache.layers]


@pytest.mark.parametrize("family", ATTENTIVE)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_kv_cache_lengths_per_layer(family, attention):
    batch = inputs(family, "one image")
    prompt = batch["input_ids"].shape[1]
    visual = int((batch["input_ids"] == IMAGE).sum())
    kept = round(0.25 * visual)
    for layer in (0, 2, last_stage(family)):
        with Random(keep=0.25, layer=layer)(build(family, attention)) as pruned:
            out = generate(pruned.model, batch, 4)
        full, short = prompt + 3, prompt - visual + kept + 3  # the last token is never fed back
        cached = caches(family, cache_of(out))
        expected = [full] * layer + [short] * (len(cached) - layer)
        seen = [
            min(length, one.keys.shape[-2]) if one.is_sliding else length
            for one, length in zip(cached, expected, strict=True)
        ]
        assert [one.keys.shape[-2] for one in cached] == seen  # no more than that where a window has passed on
        assert [one.get_seq_length() for one in cached] == [full] * len(cached)


def test_three_stages_and_compaction():
    batch = inputs("llava", "one image")  # 9 text and 16 visual tokens
    with Ladder(cuts=(1, 3, 5))(build("llava")) as pruned:
        out = generate(pruned.model, batch, 1)
    kept = [len(stage.kept[0]) for stage in pruned.report.stages]
    assert 16 > kept[0] > kept[1] > kept[2]
    expected = [9 + count for count in [16, kept[0], kept[0], kept[1], kept[1], kept[2]]]
    assert lengths(cache_of(out)) == expected
    assert pruned.report.tokens_per_layer == [count - 9 for count in expected]
    with Ladder(cuts=(1, 3, 5), compact_cache=True)(build("llava")) as pruned:
        out = generate(pruned.model, batch, 1)
    assert lengths(cache_of(out)) == [9 + kept[2]] * LAYERS
    assert pruned.report.kv_share == kept[2] / 16
    assert pruned.report.mean_tokens_per_layer == pytest.approx(sum(expected) / LAYERS / 16 - 9 / 16)


def test_ragged_batch_is_as_long_as_its_longest_sample():
    batch = inputs("llava", [[40, None, 1], [3, None, None, None, 1]])  # 57 and 52 tokens dense
    with Random(keep=4)(build("llava")) as pruned:
        out = generate(pruned.model, batch, 1)
    assert lengths(cache_of(out)) == [45] * LAYERS  # padding in front of the second sample has gone too


@pytest.mark.parametrize("family", BUILDERS)
def test_layers_see_short_sequences_at_their_old_positions(family):
    model = build(family)
    batch = inputs(family, "two images")
    seen: dict[str, list] = {"dense": [], "pruned": []}

    def record(run):
        def hook(module, args, kwargs):
            tables = kwargs["position_embeddings"] if "position_embeddings" in kwargs else args[1]
            if args[0].shape[-2] > 1:
                seen[run].append((args[0].shape[-2], (tables,) if isinstance(tables, torch.Tensor) else tables))

        return hook

    with torch.no_grad():
        handle = decoder(model).layers[3].register_forward_pre_hook(record("dense"), with_kwargs=True)
        generate(model, batch, 1)
        handle.remove()
        with DivPrune(keep=0.3, layer=3)(model) as pruned:
            handle = decoder(model).layers[3].register_forward_pre_hook(record("pruned"), with_kwargs=True)
            generate(model, batch, 1)
            handle.remove()
    (length, tables), (short, picked) = seen["dense"][0], seen["pruned"][0]
    stay = batch["input_ids"][0] != IMAGE
    stay[pruned.report.stages[0].kept[0]] = True
    assert short == int(stay.sum()) < length
    for table, small in zip(tables, picked, strict=True):
        assert torch.equal(table[..., stay, :], small)


@pytest.mark.parametrize("family", ATTENTIVE)
@pytest.mark.parametrize("pruner", [FastV(keep=0.3), GreedyPrune(keep=0.3, layer=0)], ids=lambda pruner: pruner.name)
def test_plain_forward_prunes_too_and_keeps_its_output_shape(family, pruner):
    model, batch = build(family), inputs(family, "ragged")
    with torch.no_grad(), pruner(model) as pruned:
        out = model(**batch)
    assert out.logits.shape[:2] == batch["input_ids"].shape
    assert caches(family, cache_of(out))[-1].keys.shape[-2] < batch["input_ids"].shape[1]
    with pruner(model) as again:
        generated = generate(model, batch, 1)
    assert again.report.stages[0].kept[0].tolist() == pruned.report.stages[0].kept[0].tolist()
    torch.testing.assert_close(out.logits[:, -1], generated.logits[0], atol=1e-4, rtol=0)


def test_labels_anchor_the_question():
    """Scoring an answer chooses the tokens that generating it chose, though the prompt is no longer last."""
    model, batch = build("llava"), inputs("llava", "one image")
    pruner = FastV(keep=0.3)
    with pruner(model) as pruned:
        answer = generate(model, batch, 5).sequences
    chosen = pruned.report.stages[0].kept[0]
    prompt = batch["input_ids"].shape[1]
    labels = answer.clone()
    labels[:, :prompt] = -100
    with torch.no_grad(), pruner(model) as pruned:
        model(input_ids=answer, pixel_values=batch["pixel_values"], labels=labels)
    assert torch.equal(pruned.report.stages[0].kept[0], chosen)


def test_gradients_flow_through_the_kept_tokens():
    model, batch = build("llava"), inputs("llava", "ragged")
    with Random(keep=0.3, layer=2)(model):
        loss = model(**batch).logits.square().mean()
    loss.backward()
    gradient = model.get_decoder().layers[4].mlp.up_proj.weight.grad
    model.zero_grad()
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


def test_beams_with_and_without_cache_agree():
    """Random ignores the question, so a run without a cache prunes the same at every step."""
    for family in ("llava", "qwen2_5_vl"):
        model, batch = build(family), inputs(family, "ragged")
        with Random(keep=0.4, layer=2)(model):
            cached = generate(model, batch, 4, num_beams=3)
            recomputed = generate(model, batch, 4, num_beams=3, use_cache=False)
        assert torch.equal(cached.sequences, recomputed.sequences)


@pytest.mark.parametrize("layer", [0, 2])
def test_second_turn_on_a_pruned_cache(layer):
    model, batch = build("llava"), inputs("llava", "one image")
    with Random(keep=0.3, layer=layer)(model) as pruned:
        first = generate(model, batch, 3)
        more = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], 1)
        mask = torch.ones_like(more)
        second = generate(model, {"input_ids": more, "attention_mask": mask}, 3, **with_cache(model, cache_of(first)))
        whole = generate(model, {**batch, "input_ids": more, "attention_mask": mask}, 3)
    assert len(pruned.report.prefills) == 2  # the turn without an image is none
    for ours, theirs in zip(second.logits, whole.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_prompt_that_ends_in_an_image_keeps_its_last_token(family, attention):
    """The answer is read off the last token; if it were dropped, the logits would be those of nothing."""
    model = build(family, attention)
    batch = inputs(family, [[4, None], [2, 3, None]])
    words = [name for name, value in batch.items() if value.shape == batch["input_ids"].shape]
    while batch["input_ids"][0, -1] != IMAGE:  # without the tokens that close an image
        batch |= {name: batch[name][:, :-1] for name in words}
    if family == "ovis2":
        pytest.skip("images of different shapes end in different numbers of tokens")
    assert (batch["input_ids"][:, -1] == IMAGE).all()
    if family in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"):
        with pytest.raises(RuntimeError, match="shape mismatch"):  # in its own positions
            generate(model, batch, 1)
        pytest.skip("the model itself takes no such prompt")
    with Random(keep=0.3, layer=1)(model) as pruned:
        out = generate(model, batch, 4)
    kept = pruned.report.stages[0].kept
    gone = hidden_from(pruned.report, batch["input_ids"] == IMAGE)
    gone[:, -1] = NEVER
    assert all(batch["input_ids"].shape[1] - 1 not in row for row in kept)
    expected = reference_logits(model, batch, out.sequences[:, :-1], gone)
    torch.testing.assert_close(torch.stack(out.logits, 1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(family, dtype):
    model = build_anew(family, "sdpa").to(dtype)
    batch = inputs(family, "ragged")
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    dense = generate(model, batch, 3)
    for keep in (1.0, 0.3):
        for pruner in (FastV(keep=keep), GreedyPrune(keep=keep), DivPrune(keep=keep)):
            with pruner(model) as pruned:
                out = generate(model, batch, 3)
            assert all(torch.isfinite(logits).all() for logits in out.logits)
            assert pruned.report.last_layer_tokens == pytest.approx(keep, abs=0.05)
            if keep == 1.0:
                assert all(torch.equal(a, b) for a, b in zip(dense.logits, out.logits, strict=True))


@pytest.mark.parametrize("cache", [None, "static"])
def test_the_cache_knows_that_some_of_its_slots_are_padding(cache):
    """Prompts of one length: no mask says that the samples keep different numbers of tokens, the cache alone does."""
    model, batch = build("llava"), inputs("llava", [[23, None, 2], [4, None, 3, None, 2]])
    assert batch.pop("attention_mask").all()
    images = batch["pixel_values"].split([1, 2])
    rows = [{"input_ids": ids[None], "pixel_values": one} for ids, one in zip(batch["input_ids"], images, strict=True)]
    more = {} if cache is None else {"cache_implementation": cache}
    with Ladder(cuts=(2,))(model) as pruned:
        out = generate(model, batch, 4, **more)
        kept = {len(one) for one in pruned.report.stages[0].kept}
        alone = [generate(model, row, 4, **more) for row in rows]
    assert len(kept) == 2
    assert all(layer.padded for layer in cache_of(out).layers[2:])
    for step, logits in enumerate(out.logits):
        torch.testing.assert_close(logits, torch.cat([one.logits[step] for one in alone]), atol=1e-4, rtol=0)


def test_a_stage_beyond_the_last_layer_is_refused():
    with pytest.raises(BudgetError, match=r"ladder: stages must be layers of 0 to 5, ascending, got \(1, 6\)"):
        attach(build("llava"), Ladder(cuts=(1, 6)))
