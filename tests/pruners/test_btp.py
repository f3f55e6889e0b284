"""BTP: the published constants, budgets, and a choice that is exactly what its parts say."""

from __future__ import annotations

import dataclasses
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foveate
from foveate import BTP, BTPStage, select
from foveate.engine.flops import prefill_flops
from foveate.errors import BudgetError
from foveate.families import Grid
from foveate.pruners import VisualTokens
from foveate.pruners.btp.spread import spread
from foveate.pruners.btp.stages import PRESETS

LLAMA_7B = types.SimpleNamespace(hidden_size=4096, intermediate_size=11008, num_attention_heads=32)
LLAMA_13B = types.SimpleNamespace(hidden_size=5120, intermediate_size=13824, num_attention_heads=40)
RELEASED = BTP(stages="released-llava-1.5-7b", final="drop")


def config(kind, depth, hidden=64):
    text = types.SimpleNamespace(num_hidden_layers=depth, hidden_size=hidden)
    return types.SimpleNamespace(model_type=kind, get_text_config=lambda: text)


LLAVA, QWEN, OTHER = config("llava", 32, 4096), config("qwen2_5_vl", 28, 3584), config("llava", 36, 5120)
LLAVA_13B = config("llava", 40, 5120)


def made_up(sizes, keep=None, layer=3, dense=None, seed=0):
    """Visual tokens of samples whose images have these (height, width); `keep` (B, N) bool: those that are left."""
    generator = torch.Generator().manual_seed(seed)
    grids = tuple(tuple(Grid(*size) for size in row) for row in sizes)
    counts = [sum(grid.cells for grid in row) for row in grids]
    rows, number = len(counts), max(counts)
    grid, row, column = (torch.full((rows, number), -1) for _ in range(3))
    for at, images in enumerate(grids):
        begin = 0
        for index, image in enumerate(images):
            cells = torch.arange(image.cells)
            where = slice(begin, begin + image.cells)
            grid[at, where], row[at, where], column[at, where] = index, cells // image.width, cells % image.width
            begin += image.cells
    valid = torch.arange(number) < torch.tensor(counts)[:, None]
    return VisualTokens(
        layer=layer,
        features=torch.randn(rows, number, 8, generator=generator) * valid[..., None],
        valid=valid if keep is None else valid & keep,
        dense=torch.tensor(counts if dense is None else dense),
        present=(valid if keep is None else valid & keep).sum(-1),
        position=torch.arange(number).expand(rows, -1).masked_fill(~valid, -1),
        image=grid,
        query=torch.randn(rows, 8, generator=generator),
        mean_text=torch.randn(rows, 8, generator=generator),
        attention=torch.rand(rows, 4, 1, number, generator=generator) * valid[:, None, None],
        extra=torch.empty(rows, 0, 8),
        grid=grid,
        row=row,
        column=column,
        grids=grids,
        grids_known=True,
    )


def one_stage(*stage, **options):
    return BTP(stages=[stage], **options)


# -- the published figures


def test_released_schedule_has_129_tokens_a_layer():
    assert RELEASED.mean_tokens(32) * 576 == pytest.approx(129, abs=1e-9)
    assert [(stage.layer, stage.keep * 576) for stage in RELEASED.schedule(32)] == [
        (3, 288),
        (6, 144),
        (14, 48),
        (22, 0),
    ]
    halved = [
        dataclasses.replace(stage, keep=stage.keep and 0.5**number)
        for number, stage in enumerate(RELEASED.schedule(32), 1)
    ]
    assert BTP(stages=halved, final="drop").mean_tokens(32) * 576 == pytest.approx(135)


def test_released_schedule_costs_what_table_1_says():
    # the paper counts multiply-adds of the visual tokens: 4nd² + 2n²d + 3ndm, half of ours
    def tera(schedule=(), depth=32, model=LLAMA_7B):
        now, tokens = 1.0, []
        for layer in range(depth):
            now = next((stage.keep for stage in schedule if stage.layer == layer), now)
            tokens.append(576 * now)
        return prefill_flops(model, tokens) / 2 / 1e12

    assert tera() == pytest.approx(3.817, abs=5e-4)
    assert tera(RELEASED.schedule(32)) == pytest.approx(0.847, abs=5e-4)
    third_halved = BTP(stages=[(3, 0.5), (6, 0.25), (14, 0.125), (22, 0)], final="drop")
    assert tera(third_halved.schedule(32)) == pytest.approx(0.886, abs=5e-4)
    assert tera((), 40, LLAMA_13B) == pytest.approx(7.44, abs=5e-3)
    inferred = BTP(variant="paper", final="drop").resolved(LLAVA_13B).stages
    assert tera(inferred, 40, LLAMA_13B) == pytest.approx(1.68, abs=5e-3)
    assert [stage.attention for stage in inferred] == [0.6, 0.8, 1.0, 0.0]


def test_the_seed_of_the_released_code():
    seed = select.spatial_seed(24, 24, 144)
    assert seed.sum() == 144
    assert seed[0]
    tokens = made_up([[(24, 24)]])
    assert torch.equal(spread(tokens, torch.tensor([144]))[0], seed)


def test_the_released_first_stage_is_86_86_144_and_the_rest():
    tokens = dataclasses.replace(made_up([[(24, 24)]], seed=2), layer=3)
    score = tokens.attention.mean(1)[:, 0]
    score = score - 10 * (~select.spatial_seed(24, 24, 250)[None]).float()  # many in the seed: all three sets fit
    tokens = dataclasses.replace(tokens, attention=score[:, None, None])
    attended = select.rebalanced_top_k(score, 86, over=3.7, split=0.5)
    start = attended | select.max_min_diversity(tokens.features, 86) | select.spatial_seed(24, 24, 144)[None]
    assert start.sum() < 288
    kept = RELEASED.resolved(LLAVA).select(tokens)
    assert torch.equal(kept, select.max_min_diversity(tokens.features, 288, start=start))
    assert kept.sum() == 288


def test_a_released_first_stage_of_too_many_leaves_out_the_last_cells_of_the_seed():
    tokens = dataclasses.replace(made_up([[(24, 24)]]), layer=3)
    seed = select.spatial_seed(24, 24, 144)[None]  # neither attended nor diverse: the three sets hardly overlap
    tokens.attention.masked_fill_(seed[:, None, None], 0)
    tokens.features[seed] = tokens.features.sum(1)
    kept = RELEASED.resolved(LLAVA).select(tokens)
    score = tokens.attention.mean(1)[:, 0]
    first = select.rebalanced_top_k(score, 86, over=3.7, split=0.5) | select.max_min_diversity(tokens.features, 86)
    room = 288 - int(first.sum())
    cells = [cell for cell in select.spatial_order(24, 24).argsort().tolist()[:144] if not first[0, cell]]
    assert len(cells) > room
    first[0, cells[:room]] = True
    assert torch.equal(kept, first)


def test_the_released_second_stage_picks_14_from_nothing():
    tokens = made_up([[(24, 24)]], keep=torch.arange(576)[None] % 2 == 0, layer=6)
    score = tokens.attention.mean(1)[:, 0]
    attended = select.rebalanced_top_k(score, 129, over=1.5, split=144, valid=tokens.valid)
    start = attended | select.max_min_diversity(tokens.features, 14, valid=tokens.valid)
    kept = RELEASED.resolved(LLAVA).select(tokens)
    assert torch.equal(kept, select.max_min_diversity(tokens.features, 144, start=start, valid=tokens.valid))
    without = select.max_min_diversity(tokens.features, 144, start=attended, valid=tokens.valid)
    assert not torch.equal(kept, without)


@pytest.mark.parametrize(("side", "k", "best"), [(20, 200, 24), (22, 242, 28), (23, 264, 31)])
def test_the_released_first_stage_of_qwen_rounds_down_twice(side, k, best):
    """⌊1.2 · ⌊0.1 k⌋⌋ by attention alone, wherever they lie."""
    tokens = dataclasses.replace(made_up([[(side, side)]]), layer=3)
    kept = BTP(variant="released").resolved(QWEN).select(tokens)
    start = select.top_k(tokens.attention.mean(1)[:, 0], best)
    assert torch.equal(kept, select.max_min_diversity(tokens.features, k, start=start))


def test_released_stages_read_attention_as_published():
    for model, form in ((LLAVA, "logits"), (QWEN, "softmax"), (OTHER, "logits")):
        assert BTP(variant="released").resolved(model).attention_form() == form
        assert BTP(variant="paper").resolved(model).attention_form() == "softmax"
    assert RELEASED.resolved(LLAVA).attention_form() == "logits"
    assert BTP(variant="released", score="softmax").resolved(LLAVA).attention_form() == "softmax"
    assert BTP(variant="released", query="mean_text").resolved(LLAVA).attention_form() == "softmax"


# -- the choice


def test_lambda_one_is_the_rebalanced_top_k():
    tokens = made_up([[(6, 8)], [(3, 4), (5, 5)]])
    kept = one_stage(3, 0.25, 1.0, 1.7, 0.4, 0.5).select(tokens)
    score = tokens.attention.mean(1)[:, 0]
    expected = select.rebalanced_top_k(score, torch.tensor([12, 9]), 1.7, 0.4, tokens.valid)
    assert torch.equal(kept, expected)
    plain = one_stage(3, 0.25, 1.0, 1.7, 0.4, 0.5, rebalance=False).select(tokens)
    assert torch.equal(plain, select.top_k(score, torch.tensor([12, 9]), tokens.valid))
    assert not torch.equal(plain, kept)


def test_lambda_zero_is_max_min_from_the_seed():
    tokens = made_up([[(6, 8)]])
    kept = one_stage(3, 0.5, 0.0, 1.2, 0.5, 0.5).select(tokens)
    seed = select.spatial_seed(6, 8, 12)[None]
    assert torch.equal(kept, select.max_min_diversity(tokens.features, 24, start=seed))
    without = one_stage(3, 0.5, 0.0, 1.2, 0.5, 0.5, spatial_seed=False).select(tokens)
    assert torch.equal(without, select.max_min_diversity(tokens.features, 24))
    assert not torch.equal(without, kept)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(
        st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3), min_size=1, max_size=3
    ),
    keep=st.floats(0.05, 1.0),
    attention=st.floats(0, 1),
    over=st.floats(1, 4),
    spatial=st.floats(0, 1),
    left=st.integers(0, 2**32 - 1),
)
def test_exactly_k_survive_and_samples_do_not_mix(sizes, keep, attention, over, spatial, left):
    whole = made_up(sizes)
    present = torch.rand(whole.valid.shape, generator=torch.Generator().manual_seed(left)) < 0.8
    tokens = made_up(sizes, keep=present)
    pruner = one_stage(3, keep, attention, over, 0.5, spatial)
    kept = pruner.select(tokens)
    assert not (kept & ~tokens.valid).any()
    k = [max(1, round(keep * dense)) for dense in tokens.dense.tolist()]
    expected = [min(wanted, there) for wanted, there in zip(k, tokens.valid.sum(-1).tolist(), strict=True)]
    assert kept.sum(-1).tolist() == expected
    for row, images in enumerate(sizes):
        number = sum(height * width for height, width in images)
        alone = made_up([images], keep=present[row : row + 1, :number])
        alone = dataclasses.replace(
            alone,
            features=tokens.features[row : row + 1, :number],
            attention=tokens.attention[row : row + 1, ..., :number],
        )
        assert torch.equal(pruner.select(alone)[0], kept[row, :number])


def test_grids_share_the_seed_by_size():
    tokens = made_up([[(6, 8), (12, 8)], [(6, 8), (6, 8)]])
    seed = spread(tokens, torch.tensor([24, 24]))
    shares = [[int((seed[row] & (tokens.grid[row] == grid)).sum()) for grid in (0, 1)] for row in (0, 1)]
    assert shares == [[8, 16], [12, 12]]
    assert torch.equal(seed[0, :48], select.spatial_seed(6, 8, 8))
    assert torch.equal(seed[0, 48:], select.spatial_seed(12, 8, 16))


def test_separators_are_no_seed_but_may_stay():
    tokens = made_up([[(4, 4)]])
    separator = torch.zeros_like(tokens.valid)
    separator[0, [3, 7, 11, 15]] = True
    tokens = dataclasses.replace(tokens, grid=tokens.grid.masked_fill(separator, -1))
    assert not (spread(tokens, torch.tensor([16])) & separator).any()
    attention = torch.zeros(1, 1, 1, 16)
    attention[..., 7] = 1
    assert one_stage(3, 0.25, 0.5, 1.0).select(dataclasses.replace(tokens, attention=attention))[0, 7]


def test_query_and_score():
    tokens = made_up([[(5, 5)]])
    rows = torch.rand(1, 4, 3, 25, generator=torch.Generator().manual_seed(1))
    kept = one_stage(3, 0.2, 1.0, query="mean_text", rebalance=False).select(
        dataclasses.replace(tokens, attention=rows)
    )
    assert torch.equal(kept, select.top_k(rows.mean((1, 2)), 5))
    assert one_stage(3, 0.2, 1.0, score="logits").attention_form() == "logits"
    assert one_stage(3, 0.2, 1.0).attention_form() == "softmax"


def test_no_attention_where_none_is_needed():
    rows = types.SimpleNamespace(last=torch.zeros(1, dtype=torch.long), text=torch.zeros(1, 2, dtype=torch.long))
    assert one_stage(3, 0.2, 0.0).attention_rows(3, rows) is None
    assert one_stage(3, 0.2, 0.5).attention_rows(3, rows).shape == (1, 1)
    assert one_stage(3, 0.2, 0.5, query="mean_text").attention_rows(3, rows).shape == (1, 2)


# -- budgets


@pytest.mark.parametrize("stages", ["default", *PRESETS])
@pytest.mark.parametrize("keep", [0.15, 0.22, 0.5])
@pytest.mark.parametrize("final", ["keep", "drop"])
def test_the_budget_is_met(stages, keep, final):
    if final == "drop" and stages == "paper-qwen2.5-vl-7b":
        with pytest.raises(BudgetError, match="keeps 0"):
            BTP(stages=stages, final=final).schedule(28)
        return
    depth = 28 if "qwen" in stages else 40 if "13b" in stages else 32
    pruner = BTP(keep=keep, stages=stages, final=final)
    assert pruner.mean_tokens(depth) == pytest.approx(keep)
    assert BTP(stages=stages, final=final).with_mean(keep, config("llava", depth)) == pruner
    keeps = [stage.keep for stage in pruner.schedule(depth)]
    assert keeps == sorted(keeps, reverse=True)
    assert (keeps[-1] == 0) == (final == "drop")


def test_a_budget_out_of_reach():
    with pytest.raises(BudgetError, match="cannot be reached.*9.4%"):
        BTP(keep=0.05).schedule(32)
    with pytest.raises(BudgetError, match="cannot be reached"):
        BTP(keep=0.9, stages="released-llava-1.5-7b", final="drop").schedule(32)
    with pytest.raises(BudgetError, match="leaves over 50%"):
        foveate.FastV(layer=3).with_mean(0.22, config("llava", 6))


def test_mean_of_a_single_stage():
    pruner = foveate.FastV(layer=2).with_mean(0.3, config("llava", 10))
    assert (2 + 8 * pruner.keep) / 10 == pytest.approx(0.3)
    assert foveate.DivPrune().with_mean(0.22, config("llava", 12)).keep == pytest.approx(0.22)


@pytest.mark.parametrize("depth", range(2, 81))
def test_a_default_for_every_depth(depth):
    stages = BTP(final="drop" if depth > 4 else "keep").schedule(depth)
    assert [stage.layer for stage in stages] == sorted({stage.layer for stage in stages})
    assert stages[-1].layer < depth
    if depth == 32:
        assert [stage.layer for stage in stages] == [3, 6, 14, 22]


def test_final():
    dropping = [(2, 0.5, 0.2), (6, 0.25, 1.0), (9, 0.0)]
    assert len(BTP(stages=dropping).schedule(12)) == 2
    assert [stage.layer for stage in BTP(stages=dropping, final="drop").schedule(12)] == [2, 6, 9]
    assert [stage.layer for stage in BTP(stages=dropping, final="auto", harmless=7).schedule(12)] == [2, 6, 7]
    assert [stage.layer for stage in BTP(stages=dropping, final="auto", harmless=6).schedule(12)] == [2, 6]
    assert [stage.layer for stage in BTP(stages=dropping, final="auto", harmless=4).schedule(12)] == [2, 4]
    assert len(BTP(stages=dropping, final="auto").schedule(12)) == 2
    assert not BTP(stages=dropping).notes(12)
    assert "before layer 9" in BTP(stages=dropping, final="drop").notes(12)[0]
    assert "no calibration" in BTP(stages=dropping, final="auto").notes(12)[0]
    assert not BTP(stages=dropping, final="auto", harmless=7).notes(12)
    for pruner in (BTP(stages=dropping, final=final) for final in (None, "keep", "drop", "auto")):
        assert pruner.resolved(config("llava", 12)).notes(12) == pruner.notes(12)


def test_lambda_of_every_stage():
    stages = BTP(stages="paper-llava-1.5-7b", attention=0.3).schedule(32)
    assert {stage.attention for stage in stages} == {0.3}


# -- models


def test_auto_is_what_was_published_for_this_very_model():
    """And no other: LLaVA-1.6-7B has the same language model."""
    published = {"paper-llava-1.5-7b": LLAVA, "paper-llava-1.5-13b": LLAVA_13B, "paper-qwen2.5-vl-7b": QWEN}
    for name, model in published.items():
        assert BTP(keep=0.3).resolved(model) == BTP(keep=0.3, stages=name).resolved(model)
        assert BTP(variant="default").resolved(model) != BTP().resolved(model)
    for model in (OTHER, config("llava_next", 32, 4096), config("llava", 32, 2048), config("llava", 31, 4096)):
        generic = BTP(stages="default").resolved(model)
        assert BTP().resolved(model) == BTP(variant="default").resolved(model) == generic


def test_published_stages_of_the_very_model():
    for model, name, depth in ((LLAVA, "llava-1.5-7b", 32), (QWEN, "qwen2.5-vl-7b", 28)):
        paper, released = (BTP(variant=variant).resolved(model) for variant in ("paper", "released"))
        assert paper.stages == tuple(stage for stage in PRESETS[f"paper-{name}"] if stage.keep)
        assert released.stages == PRESETS[f"released-{name}"]
        assert "dropped before layer 22" in released.notes(depth)[0]
        assert not paper.notes(depth)
    assert BTP(variant="released", final="keep").resolved(LLAVA).stages[-1].keep


def test_published_stages_of_qwen():
    stages = PRESETS["released-qwen2.5-vl-7b"]
    assert [(one.layer, one.keep) for one in stages] == [(3, 0.5), (6, 0.25), (15, 0.125), (22, 0)]
    assert [(one.attention, one.over, one.split) for one in stages[:3]] == [
        (0.1, 1.2, None),
        (0.4, 1, 0.5),
        (1, 1.2, 0.5),
    ]


def test_published_stages_move_with_the_depth():
    assert BTP(variant="paper").resolved(config("qwen2_5_vl", 4)).layers(4) == (1, 2, 3)
    assert BTP(variant="released").resolved(config("llama4", 64)).layers(64) == (6, 12, 28, 44)
    assert BTP(variant="released").resolved(config("qwen2_5_vl", 4)).final is None  # the drop fell off the end
    with pytest.raises(RuntimeError, match="resolved"):
        BTP(variant="paper").layers(32)


@pytest.mark.parametrize(
    "pruner",
    [
        BTP(keep=0.3),
        BTP(variant="released"),
        BTP(keep=1.0, variant="released"),
        BTP(final="auto"),
        BTP(final="auto", harmless=20),
        BTP(attention=0.2),
    ],
)
def test_what_is_resolved_stays(pruner):
    once = pruner.resolved(LLAVA)
    assert once.resolved(LLAVA) == once


def test_a_budget_is_set_for_the_model_at_hand():
    pruner = BTP().with_mean(0.3, QWEN)
    assert pruner == BTP(keep=0.3)
    assert pruner.resolved(QWEN).layers(28) == (3, 6, 15)
    with pytest.raises(BudgetError, match="cannot be reached"):
        BTP().with_mean(0.05, QWEN)


def test_another_depth_is_refused():
    with pytest.raises(BudgetError, match="32 layers, this one has 28"):
        BTP(stages="paper-llava-1.5-7b", depth=32).schedule(28)
    with pytest.raises(BudgetError, match="layer 14 does not fit a model of 12"):
        BTP(stages="paper-llava-1.5-7b").schedule(12)


# -- what makes no sense


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"keep": 100}, "no count"),
        ({"stages": "best"}, "paper-llava"),
        ({"stages": []}, "no stage"),
        ({"stages": [3]}, "no stage"),
        ({"stages": [(3, 0.5), (3, 0.2)]}, "deeper"),
        ({"stages": [(3, 0.2), (6, 0.5)]}, "no more than before"),
        ({"stages": [(0, 0.5, 0.5)]}, "layer 0"),
        ({"stages": [(-1, 0.5)]}, "layer"),
        ({"stages": [(3, 1.5)]}, "keep"),
        ({"stages": [(3, 0.5, 2)]}, "attention"),
        ({"stages": [(3, 0.5, 0.5, 0.9)]}, "over"),
        ({"stages": [{"layer": 3, "share": 0.5}]}, "share"),
        ({"attention": 2}, "attention"),
        ({"final": "maybe"}, "final"),
        ({"variant": "best"}, "auto, default, paper, released"),
        ({"variant": "paper", "stages": "default"}, "either"),
        ({"score": "raw"}, "score"),
        ({"query": "first"}, "query"),
        ({"distance": "cosine"}, "distance"),
        ({"score": "logits", "query": "mean_text"}, "query='last'"),
    ],
)
def test_option_that_makes_no_sense(options, named):
    with pytest.raises(BudgetError, match=named):
        BTP(**options)


def test_round_trip(tmp_path):
    pruner = BTP(
        keep=0.2, stages=[BTPStage(0, 0.5), BTPStage(4, 0.25, 0.8, 1.5, 0.4, 0.1)], final="auto", harmless=9, depth=12
    )
    pruner.save_pretrained(tmp_path)
    assert foveate.load(tmp_path) == pruner
    assert hash(foveate.load(tmp_path)) == hash(pruner)


def test_with_a_budget_of_everything_no_stage_takes_any():
    everything, some = (BTP(keep=keep).resolved(config("llava", 12)) for keep in (1.0, None))
    dense, present = torch.tensor([40, 30]), torch.tensor([20, 30])
    for layer in some.layers(12):
        assert everything.kept(layer, dense, present).tolist() == [20, 30]
        assert some.kept(layer, dense, present).tolist() != [20, 30]
