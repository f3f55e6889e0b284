"""Methods that read the vision encoder, against their rules worked out token by token."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import foveate
from foveate.errors import BudgetError, VisionFeaturesError
from foveate.families import Grid
from foveate.pruners import anchorprune, vispruner
from foveate.pruners.encoder import used_block
from foveate.pruners.holov import share_out
from tests.models.build import build, generate, inputs
from tests.pruners.encoder_tokens import best, encoder_tokens, kept

GRIDS = [[Grid(5, 6)], [Grid(3, 4, row_ends=1), Grid(2, 3)]]
COUNTS = (30, 21)


@pytest.mark.parametrize(
    ("layer", "block"), [(-2, -2), (-1, -1), (0, 0), (1, 0), (5, 4), ([-2, -5, 8], 7), (None, -1)]
)
def test_the_block_whose_output_is_used(layer, block):
    class Config:
        vision_feature_layer = layer

    assert used_block(Config()) == block


@pytest.mark.parametrize("method", ["fastervlm", "vispruner", "visionzip", "holov"])
@pytest.mark.parametrize(("family", "said"), [("llava", False), ("qwen2_5_vl", True)])
def test_the_report_says_where_there_is_no_class_token(method, family, said):
    model = build(family)
    with foveate.make(method, keep=0.3)(model) as pruned:
        generate(model, inputs(family, "one image"), 1)
    assert ("no class token" in str(pruned.report)) == said


def test_fastervlm():
    tokens = encoder_tokens(GRIDS)
    keep = foveate.FasterVLM(keep=7).select(tokens)
    for sample, number in enumerate(COUNTS):
        assert kept(keep, sample) == sorted(best(tokens.class_received[0][sample], 7, range(number)))


@pytest.mark.parametrize(("keep", "alpha"), [(20, 0.5), (8, 1.0), (11, 1.0), (12, 0.0)])
def test_hiprune(keep, alpha):
    tokens = encoder_tokens(GRIDS, blocks=2)
    found = foveate.HiPrune(keep=keep, alpha=alpha).select(tokens)
    # for each sample the columns of the tokens of each grid, without separators
    grids = [[[*range(30)]], [[0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13], [*range(15, 21)]]]
    widths = [[6], [4, 3]]
    for sample, number in enumerate(COUNTS):
        objects, last = (one[sample] for one in tokens.received)
        cells = [column for grid in grids[sample] for column in grid]
        anchors = best(objects, min(round(keep * alpha / 5), keep // 5), cells)
        chosen = set(anchors)
        for anchor in anchors:
            for grid, width in zip(grids[sample], widths[sample], strict=True):
                if anchor in grid:
                    cell = grid.index(anchor)
                    chosen |= {grid[min(max(cell + step, 0), len(grid) - 1)] for step in (-1, 1, -width, width)}
        chosen |= set(best(last, keep - len(chosen), [one for one in range(number) if one not in chosen]))
        assert kept(found, sample) == sorted(chosen)


def test_blocks_of_hiprune():
    llava, qwen = (foveate.HiPrune().resolved(build(family).config) for family in ("llava", "qwen2_5_vl"))
    assert llava.vision_attention(24) == (8, 22)
    assert qwen.vision_attention(32) == (15, 31)


@pytest.mark.parametrize("listed", [1, 2, 32])  # short lists run out of tokens that are left
@pytest.mark.parametrize("important", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("keep", [3, 11])
def test_vispruner(important, keep, listed, monkeypatch):
    monkeypatch.setattr(vispruner, "LISTED", listed)
    monkeypatch.setattr(vispruner, "ROWS", 4)
    tokens = encoder_tokens(GRIDS)
    found = foveate.VisPruner(keep=keep, important=important).select(tokens)
    for sample, number in enumerate(COUNTS):
        attention, rows = tokens.class_received[0][sample], tokens.vision[0][sample].double()
        order = best(attention, number, range(number))
        chosen, rest = order[: int(important * keep)], order[int(important * keep) :]
        while len(rest) > keep - len(chosen):
            even, odd = rest[0::2], rest[1::2]
            alike = {
                one: max((torch.cosine_similarity(rows[one], rows[other], dim=0).item() for other in odd), default=0)
                for one in even
            }
            leave = sorted(even, key=alike.get, reverse=True)[: min(8, len(rest) - keep + len(chosen))]
            rest = [one for one in even if one not in leave] + odd
        assert kept(found, sample) == sorted(chosen + rest)


@pytest.mark.parametrize(("keep", "contextual"), [(8, 10 / 64), (10, 0.5), (6, 0.0)])
def test_visionzip(keep, contextual):
    tokens = encoder_tokens(GRIDS)
    found = foveate.VisionZip(keep=keep, contextual=contextual).select(tokens)
    alone = foveate.VisionZip(keep=keep, contextual=contextual, merge=False).select(tokens)
    assert torch.equal(found.keep, alone.keep)
    assert alone.into is None
    assert found.how == "add"
    few = round(keep * contextual)
    for sample, number in enumerate(COUNTS):
        dominant = best(tokens.class_received[0][sample], keep - few, range(number))
        rest = [one for one in range(number) if one not in dominant]
        targets = [rest[place * (len(rest) // few)] for place in range(few)]
        assert kept(found.keep, sample) == sorted(dominant + targets)
        rows = tokens.vision[0][sample].double()
        groups = {target: [] for target in targets}
        for one in rest:
            if one not in targets and targets:
                groups[max(targets, key=lambda to, one=one: torch.cosine_similarity(rows[one], rows[to], dim=0))] += [
                    one
                ]
        for target, group in groups.items():
            for one in group:
                assert found.into[sample, one] == target
                assert found.weight[sample, one] == pytest.approx(1 / len(group))
        gone = {one for one in range(number) if one not in dominant + targets}
        assert gone == {one for group in groups.values() for one in group} or not few


def test_visionzips_published_shares():
    for k, few in ((64, 10), (128, 20), (192, 30)):
        assert round(k * foveate.VisionZip().contextual) == few


@pytest.mark.parametrize(("keep", "parts"), [(9, 4), (17, 4), (5, 16), (2, 1)])
def test_holov(keep, parts):
    """By the score as it is published, with the variance of cosines, which leaves each part's mean as it was."""
    tokens = encoder_tokens(GRIDS)
    tokens.class_received[0][:, :7] *= 20  # a part that has too few tokens for its share
    found = foveate.HoloV(keep=keep, parts=parts).select(tokens)
    for sample, number in enumerate(COUNTS):
        attention = tokens.class_received[0][sample].double()
        size, more = divmod(number, min(parts, number))
        pieces, start = [], 0
        for part in range(min(parts, number)):
            length = size + (part < more)
            pieces.append([*range(start, start + length)])
            start += length
        scores = []
        for piece in pieces:
            unit = torch.nn.functional.normalize(tokens.features[sample, piece].double(), dim=-1)
            cosine = unit @ unit.T
            spread = []
            for row in range(len(piece)):
                others = [cosine[row, other] for other in range(len(piece)) if other != row]
                mean = sum(others) / max(len(others), 1)
                spread.append(float(sum((one - mean) ** 2 for one in others) / max(len(others), 1)))
            mean = sum(spread) / len(spread)
            scale = float((1000 * attention[piece]).mean()) / mean if mean else 0.0
            scores.append(
                sum(1000 * float(attention[one]) + 0.09 * var * scale for one, var in zip(piece, spread, strict=True))
                / len(piece)
            )
        if min(len(piece) for piece in pieces) < 3:
            scores = [float(attention[piece].mean()) for piece in pieces]  # no variance of one cosine
        wanted: list[int] = []
        shares = [one / sum(scores) for one in scores]
        places = [min(int(keep * share), len(piece)) for share, piece in zip(shares, pieces, strict=True)]
        while sum(places) < keep:
            for part in sorted(range(len(shares)), key=shares.__getitem__, reverse=True):
                if places[part] < len(pieces[part]) and sum(places) < keep:
                    places[part] += 1
        for piece, place in zip(pieces, places, strict=True):
            wanted += best(attention, place, piece)
        assert kept(found, sample) == sorted(wanted)


def test_places_that_a_part_cannot_fill_go_to_others():
    assert share_out([9.0, 0.5, 0.3], [2, 3, 3], 6) == [2, 2, 2]
    assert share_out([0.0, 0.0], [1, 4], 4) == [1, 3]
    assert share_out([3.0, 2.0, 1.0], [5, 5, 5], 5) == [3, 2, 0]  # what rounding leaves: one each, the best first
    assert share_out([5.0, 1.0], [2, 9], 20) == [2, 9]


@pytest.mark.parametrize("method", ["anchorprune", "scope", "vispruner", "visionzip"])
def test_numbers_that_are_none_do_not_keep_it_from_ending(method, monkeypatch):
    monkeypatch.setattr(anchorprune, "WORTH", 0)
    tokens = encoder_tokens(GRIDS)
    tokens = dataclasses.replace(tokens, text=torch.randn(2, 3, 8))
    for states in (tokens.features, tokens.vision[0]):
        states[0, 5, 2], states[0, 6, 1] = torch.nan, torch.inf
    tokens.class_received[0][0, 7] = torch.nan
    found = foveate.make(method, keep=9).select(tokens)
    assert getattr(found, "keep", found).sum(-1).tolist() == [9, 9]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("hiprune", {"alpha": 1.5}),
        ("hiprune", {"depth": -1}),
        ("vispruner", {"important": True}),
        ("visionzip", {"contextual": 1.0}),
        ("holov", {"parts": 0}),
        ("fastervlm", {"block": 0.5}),
    ],
)
def test_options_that_make_no_sense(method, options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        foveate.make(method, **options)


def test_a_block_that_the_encoder_lacks():
    with pytest.raises(BudgetError, match="blocks of 0 to"), foveate.FasterVLM(block=7)(build("llava")):
        pass


@pytest.mark.parametrize("method", ["anchorprune", "fastervlm", "hiprune", "holov", "scope", "vispruner", "visionzip"])
def test_the_bench_times_them_where_images_come_encoded(method):
    """Without pixels, which a method that reads the encoder refuses."""
    model, batch = build("llava"), inputs("llava", "one image")
    pruner = foveate.make(method, keep=5)
    timed = pruner.for_bench(model, False)
    assert pruner.for_bench(model, True) is pruner
    shown = encoder_tokens(GRIDS)
    timed_with = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pruner), "choose", lambda self, tokens, k: timed_with.append(tokens) or tokens.valid)
        timed.choose(shown, torch.tensor([5, 5]))
    assert timed_with[0].vision[0] is shown.features  # where they are as wide
    given = {"attention_mask": batch["attention_mask"], "input_ids": batch["input_ids"]}
    with torch.no_grad(), timed(model) as pruned:
        model(**given)
    assert len(pruned.report.stages[0].kept[0]) == 5
    with torch.no_grad(), pytest.raises(VisionFeaturesError), pruner(model):
        model(**given)


@pytest.mark.parametrize(("block", "place"), [(None, 3), (-1, 3), (-3, 1), (0, 0), (2, 2)])
def test_a_block_is_counted_from_either_end(block, place):
    assert foveate.VisionZip(block=block).at(4) == place
