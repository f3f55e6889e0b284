"""DART against its rule, pivot by pivot; and the text that a method is shown."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch

import foveate
from foveate.engine import attach
from foveate.errors import BudgetError
from foveate.families import Grid
from foveate.pruners import Pruner
from tests.models.build import build, generate, inputs, visual
from tests.pruners.encoder_tokens import kept
from tests.pruners.visual_tokens import visual_tokens

TEXT = (6, 2)


def tokens_with_keys():
    tokens = visual_tokens([[Grid(5, 6)], [Grid(3, 4)]])
    number, there = tokens.valid.shape[1], torch.arange(6) < torch.tensor(TEXT)[:, None]
    return dataclasses.replace(
        tokens,
        keys=torch.randn(2, 2, number, 5).masked_fill(~tokens.valid[:, None, :, None], 0),
        text_keys=torch.randn(2, 2, 6, 5).masked_fill(~there[:, None, :, None], 0),
        text=torch.randn(2, 6, 8).masked_fill(~there[..., None], 0),
    )


@pytest.mark.parametrize(("visual_pivots", "text_pivots"), [(4, 4), (2, 0), (1, 0), (1, 3)])
@pytest.mark.parametrize("keep", [2, 9, 11])
def test_it_keeps_what_is_least_like_the_pivots(visual_pivots, text_pivots, keep):
    tokens = tokens_with_keys()
    found = foveate.DART(keep=keep, visual_pivots=visual_pivots, text_pivots=text_pivots).select(tokens)
    for sample, number in enumerate((30, 12)):

        def largest(keys, count, among, sample=sample):
            size = {one: float(keys[sample, :, one].double().abs().sum()) for one in among}
            return sorted(sorted(size, key=size.get, reverse=True)[:count])

        chosen = largest(tokens.keys, min(visual_pivots, keep), range(number))
        text = largest(tokens.text_keys, text_pivots, range(TEXT[sample]))
        pivots = [tokens.features[sample, one] for one in chosen] + [tokens.text[sample, one] for one in text]
        left = keep - len(chosen)
        for turn, pivot in enumerate(pivots):
            share = left // len(pivots) + (left % len(pivots) if turn == len(pivots) - 1 else 0)
            rest = [one for one in range(number) if one not in chosen]
            cosine = {one: torch.cosine_similarity(tokens.features[sample, one], pivot, dim=0) for one in rest}
            chosen += sorted(rest, key=cosine.get)[:share]
        assert kept(found, sample) == sorted(chosen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading(Pruner):
    """Keeps every token before layers 0 and 2, and the text that it was shown."""

    name: ClassVar[str] = "reading"
    seen: list = dataclasses.field(default_factory=list, compare=False)

    def layers(self, depth):
        return (0, 2)

    def wants_text(self, layer):
        return True

    def select(self, tokens):
        self.seen.append(tokens.text)
        return tokens.valid


def test_the_text_behind_the_image_is_shown():
    model, batch = build("llava"), inputs("llava", "ragged with text only")
    reading = Reading()
    with attach(model, reading):
        generate(model, batch, 1)
    assert [len(reading.seen), reading.seen[0].shape[-1]] == [2, 64]
    words = batch["attention_mask"].bool() & ~visual(batch) & (visual(batch).cumsum(-1) > 0)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    for row, shown in enumerate(reading.seen[0]):
        wanted = embeds[row, words[row]]
        assert torch.equal(shown[: len(wanted)], wanted)
        assert not shown[len(wanted) :].any()


@pytest.mark.parametrize("options", [{"visual_pivots": 0}, {"text_pivots": -1}, {"visual_pivots": 2.0}, {"layer": 0}])
def test_options_that_make_no_sense(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        foveate.DART(**options)
