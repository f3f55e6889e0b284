"""SparseVLM against its rule, token by token; and what a method is shown of rotary positions and of its own past."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import foveate
from foveate.engine import attach
from foveate.engine.tap_hooks import turns
from foveate.errors import BudgetError, UnsupportedModelError
from foveate.families import Grid, family_of
from foveate.pruners import Selection
from foveate.pruners.btp.stages import mean_tokens
from foveate.pruners.sparsevlm import decay, raters
from tests.laws.methods import Ladder
from tests.models.build import build, inputs
from tests.pruners.encoder_tokens import best, kept
from tests.pruners.visual_tokens import visual_tokens

TEXT = (6, 3)
HEADS, DEPTH = 4, 32
GRIDS = [[Grid(9, 10)], [Grid(3, 4)]]


def angles(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables of 8 channels for positions (B, N), each angle twice."""
    turned = places[..., None] * 10_000.0 ** -(torch.arange(4) / 4)
    both = torch.cat([turned, turned], -1)
    return both.cos(), both.sin()


def shown(layer: int, grids=GRIDS):
    tokens = visual_tokens(grids, heads=HEADS)
    number, there = tokens.valid.shape[1], torch.arange(6) < torch.tensor(TEXT)[:, None]
    attention = torch.rand(2, HEADS, 6, number) * torch.rand(1, HEADS, 1, 1)
    return dataclasses.replace(
        tokens,
        layer=layer,
        attention=attention.masked_fill(~tokens.valid[:, None, None] | ~there[:, None, :, None], 0),
        text=torch.randn(2, 6, 8).masked_fill(~there[..., None], 0),
        rotary=angles(tokens.position),
        text_rotary=angles(number + torch.arange(6.0).expand(2, -1)),
    )


def rated(tokens, sample: int) -> list[int]:
    """The raters, by the rule."""
    number, words = int(tokens.present[sample]), TEXT[sample]
    given = [0.0] * words
    for one in range(number):
        products = [float(tokens.features[sample, one] @ tokens.text[sample, word]) for word in range(words)]
        total = sum(map(math.exp, products))
        given = [so_far + math.exp(one) / total / number for so_far, one in zip(given, products, strict=True)]
    return [word for word in range(words) if given[word] > sum(given) / words]


def scores(tokens, sample: int, version: int, heads: int) -> list[float]:
    number, found = int(tokens.present[sample]), {}
    for head in range(HEADS):
        for word in rated(tokens, sample):
            for one in range(number):
                value = float(tokens.attention[sample, head, word, one])
                if version == 2:
                    apart = tokens.valid.shape[1] + word - one
                    value /= max(1e-3, sum(2 * math.cos(apart / 10_000 ** (i / 4)) for i in range(4)) / 8**0.5)
                found[head, word, one] = value
    total = {head: sum(value for (other, _, _), value in found.items() if other == head) for head in range(HEADS)}
    chosen = best(total, heads if version == 2 else HEADS, range(HEADS))
    worth = [0.0] * number
    for (head, _, one), value in found.items():
        worth[one] += value * (head in chosen)
    return worth


@pytest.mark.parametrize(("version", "heads"), [(2, 2), (2, 3), (1, 2)])
@pytest.mark.parametrize("layer", [3, 7, 16])
def test_it_keeps_what_the_raters_attend_to(version, heads, layer):
    tokens = shown(layer)
    method = foveate.SparseVLM(version=version, heads=heads, depth=DEPTH, schedule=128)
    first = method.select(dataclasses.replace(tokens, layer=0))
    assert torch.equal(first.keep, tokens.valid)
    found = method.select(dataclasses.replace(tokens, carried=first.carry))
    share = {2: (238, 108, 60), 1: (303, 110, 36)}[version][(3, 7, 16).index(layer)] / 576
    for sample, number in enumerate((90, 12)):
        assert first.carry[sample].nonzero()[:, 0].tolist() == rated(tokens, sample)
        k = max(1, round(number * share))
        worth = scores(tokens, sample, version, heads)
        if version == 2:
            assert kept(found, sample) == sorted(best(worth, k, range(number)))
            continue
        recycled = int(0.3 * (number - k)) + 1
        clusters = min(recycled // 10 + 1, k // 2)
        stay = best(worth, k - clusters, range(number))
        among = sorted(best(worth, recycled + clusters, [one for one in range(number) if one not in stay]))
        centres, goes = peaks(tokens.features[sample].double(), among, clusters)
        assert kept(found.keep, sample) == sorted(stay + centres)
        assert {one: int(to) for one, to in enumerate(found.into[sample]) if to >= 0} == goes


def peaks(points, among: list[int], number: int) -> tuple[list[int], dict[int, int]]:
    """Centres and the centre of each other token, by density peaks."""
    if not number:
        return [], {}
    pairs = [(one, to) for one in among for to in among]
    apart = {(one, to): float((points[one] - points[to]).norm()) / points.shape[1] ** 0.5 for one, to in pairs}
    density = {
        one: math.exp(-sum(d * d for d in sorted(apart[one, to] for to in among)[:number]) / number) for one in among
    }
    away = {
        one: min(
            (apart[one, to] for to in among if (density[to], one) > (density[one], to)), default=max(apart.values())
        )
        for one in among
    }
    centres = best({one: density[one] * away[one] for one in among}, number, among)
    return centres, {one: min(centres, key=lambda to: apart[one, to]) for one in among if one not in centres}


@pytest.mark.parametrize("version", [1, 2])
def test_more_tokens_than_are_compared_at_a_time(version):
    tokens = shown(3, [[Grid(40, 40)], [Grid(20, 30)]])
    method = foveate.SparseVLM(version=version, depth=DEPTH, schedule=64, heads=None)
    carried = method.select(dataclasses.replace(tokens, layer=0)).carry
    found = method.select(dataclasses.replace(tokens, carried=carried))
    if version == 2:
        assert found.sum(-1).tolist() == [183, 69]
        return
    assert found.keep.sum(-1).tolist() == [183, 69]
    for sample, (number, k) in enumerate(((1600, 183), (600, 69))):
        recycled = int(0.3 * (number - k)) + 1
        goes = {one: int(to) for one, to in enumerate(found.into[sample]) if to >= 0}
        centres = {*goes.values()}
        among = [*goes, *centres]
        points = tokens.features[sample].double()
        assert len(goes) == recycled
        assert 1 < len(centres) <= recycled // 10 + 1
        assert all(found.keep[sample, one] for one in centres)
        near = torch.cdist(points[[*goes]], points[[*centres]]).amin(-1)
        to = (points[[*goes]] - points[[*goes.values()]]).norm(dim=-1)
        torch.testing.assert_close(to, near)
        assert len({*among}) == len(among)


def test_without_text_behind_the_image_all_scores_are_alike():
    tokens = dataclasses.replace(shown(3), text=torch.zeros(2, 6, 8))
    assert not raters(tokens).any()
    one_word = torch.zeros(2, 6, 8)
    one_word[:, 0] = 1
    assert raters(dataclasses.replace(tokens, text=one_word)).tolist() == [[True, *[False] * 5]] * 2


def test_decay_is_what_rotary_positions_make_of_ones():
    cos, sin = angles(torch.tensor([[0.0, 3.0, 50.0, 51.0, 90.0]]))
    ones = torch.ones(1, 1, 5, 8)
    query, key = apply_rotary_pos_emb(ones, ones, cos, sin)
    expected = (query @ key.mT)[0] / 8**0.5
    found = decay((cos, sin), (cos, sin))[0]
    torch.testing.assert_close(found, expected[0].clamp(min=1e-3))
    assert (expected < 0.5 * expected.max()).any()


@dataclass(frozen=True, kw_only=True)
class Carrying(Ladder):
    """The ladder's stages, from what each of which the next is told how many tokens it was shown."""

    name: ClassVar[str] = "carrying"
    seen: list = field(default_factory=list, compare=False)

    def wants_rotary(self, layer):
        return True

    def wants_text(self, layer):
        return True

    def select(self, tokens):
        self.seen.append(tokens)
        return Selection(super().select(tokens), carry=tokens.present if tokens.layer < 5 else None)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_stage_is_shown_rotary_positions_and_what_the_last_one_left(family):
    model, batch, tables = build(family), inputs(family, "ragged with text only"), []
    layer = family_of(model).parts(model).layers[0]

    def enters(module, args, kwargs):
        tables.append(kwargs["position_embeddings"])

    handle = layer.register_forward_pre_hook(enters, with_kwargs=True)
    method = Carrying()
    with attach(model, method) as pruned, torch.no_grad():
        model(**batch)
        model(**batch)
        records = pruned._hooks.attachment.history.records
        assert {stage.selection.carry for one in records for stage in one.stages} == {None}
    handle.remove()
    assert [one.carried is None for one in method.seen] == [True, False, False] * 2
    for before, after in zip(method.seen[:3], method.seen[1:3], strict=False):
        assert torch.equal(after.carried, before.present)
    for tokens in method.seen[:3]:
        for table, visible, text in zip(tables[0], tokens.rotary, tokens.text_rotary, strict=True):
            for row, valid in enumerate(tokens.valid):
                table_row = table[row if len(table) > 1 else 0]
                assert torch.equal(visible[row, valid], table_row[tokens.position[row, valid]])
                behind = (tokens.text[row] != 0).any(-1)
                if behind.any():
                    end = table_row[batch["input_ids"].shape[1] - 1]
                    assert torch.equal(text[row, behind][-1], end)
                assert not text[row, ~behind].any()
            assert not visible[~tokens.valid].any()


def test_a_model_without_rotary_positions_is_refused():
    with pytest.raises(UnsupportedModelError, match="rotary positions"):
        turns(None, 5, "sparsevlm")
    with pytest.raises(UnsupportedModelError, match="rotary positions"):
        turns((torch.ones(1, 4, 8),) * 2, 5, "sparsevlm")
    turned = torch.polar(torch.ones(1, 5, 4), torch.rand(1, 5, 4))
    assert torch.equal(turns(turned, 5, "sparsevlm")[1], turned.imag)
    axes = torch.rand(3, 2, 5, 8)
    torch.testing.assert_close(turns((axes, axes), 5, "sparsevlm")[0], axes.mean(0))


@pytest.mark.parametrize("options", [{"heads": 0}, {"schedule": 100}, {"version": 3}, {"keep": 0}])
def test_options_that_make_no_sense(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        foveate.SparseVLM(**options)


@pytest.mark.parametrize("version", [1, 2])
def test_the_published_stages_and_a_mean(version):
    made = foveate.SparseVLM(version=version)
    assert [(stage.layer, round(stage.keep * 576)) for stage in made.stages(32)] == [
        (3, 300),
        (7, 200),
        (16, {1: 110, 2: 118}[version]),
    ]
    config = build("llava").config
    with pytest.raises(BudgetError, match="sparsevlm"):
        made.with_mean(0.01, config)
    mean = made.with_mean(0.5, config)
    assert mean.layers(6) == (0, 1, 2, 3)


@pytest.mark.parametrize("keep", [None, 1.0, 0.3])
def test_scaled_stages(keep):
    config = build("llava").config
    depth = config.text_config.num_hidden_layers
    made = foveate.SparseVLM(keep=keep)
    before = foveate.SparseVLM(keep=None if keep == 1.0 else keep).stages(depth)
    left = [dataclasses.replace(one, keep=0.8 * one.keep) for one in before]
    assert made.scaled(0.8, config).keep == pytest.approx(mean_tokens(left, depth))
