"""Each law, and the removal tests, must fail when the engine is broken on purpose."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from foveate import tensors as gather
from foveate.engine import cut as stage
from foveate.engine import layer_hooks, layer_inputs, layout
from foveate.engine import masks as mask
from foveate.engine.cache import PrunedLayer
from foveate.families import Family, Grid, llava_next, llava_onevision, pixtral
from foveate.families import qwen as qwen2_5_vl
from foveate.families.idefics import Idefics3
from foveate.families.qwen import Qwen3VL
from foveate.pruners import Random
from foveate.testing.laws import ALONE, KEEP_ALL, MASKED
from tests.engine import test_removal
from tests.families import test_families, test_grids
from tests.laws import test_generate_preencoded, test_laws


def law(name, family, layout, method):
    return lambda: test_laws.laws(family, "sdpa", layout, method)[name].require()


def rotary_of_the_first_rows(monkeypatch):
    """Kept tokens get the positions of the first tokens."""
    monkeypatch.setattr(
        layer_inputs,
        "gather_rotary",
        lambda tables, index: gather.gather_rotary(tables, torch.arange(index.shape[1]).expand_as(index)),
    )


def padding_is_visible(monkeypatch):
    """Slots of shorter samples are attended to."""
    monkeypatch.setattr(layer_inputs, "pick_mask", lambda *args: None)


def physical_cache_lengths(monkeypatch):
    """The cache reports what it holds, so masks and positions of the answer come out too short."""
    monkeypatch.setattr(PrunedLayer, "get_seq_length", DynamicLayer.get_seq_length)
    monkeypatch.setattr(PrunedLayer, "get_mask_sizes", DynamicLayer.get_mask_sizes)


def features_of_other_layers_left_in_place(monkeypatch):
    """Deep-stack features stay with the decoder, which no longer has their tokens."""
    monkeypatch.setattr(Qwen3VL, "take_additions", Family.take_additions)
    monkeypatch.setattr(Qwen3VL, "has_additions", False)


def the_report_lies(monkeypatch):
    """Other tokens leave than the report says."""
    align = gather.align_right
    monkeypatch.setattr(stage, "align_right", lambda keep, length: align(keep.roll(1, -1), length))


def gathering_is_not_exact(monkeypatch):
    """Hidden states change by one rounding step on the way."""
    pick = gather.gather_positions
    monkeypatch.setattr(
        stage,
        "gather_positions",
        lambda tensor, index, dim: pick(tensor, index, dim) * (1 + torch.finfo(torch.float32).eps),
    )


def padding_counts_as_text(monkeypatch):
    """The mean text token depends on how long the other samples are."""
    monkeypatch.setattr(stage, "_others", lambda forward, prompt, dense_positions, visual, leaving: ~visual)


def the_draw_depends_on_the_row(monkeypatch):
    """A sample's choice depends on its place in the batch."""

    def choose(self, tokens, k):
        score = torch.arange(tokens.valid.numel()).view_as(tokens.valid) * 7.0
        return (
            stage.torch.zeros_like(tokens.valid).scatter(1, score.sin().argsort(-1)[:, : int(k.min())], True)
            & tokens.valid
        )

    monkeypatch.setattr(Random, "choose", choose)


def nothing_leaves(monkeypatch):
    """Pruning is reported but every token goes on."""

    def cut(hidden, forward, prompt, *args):
        stage.cut(hidden, dataclasses.replace(forward), dataclasses.replace(prompt), *args)
        return hidden, False

    monkeypatch.setattr(layer_hooks, "cut", cut)


def images_are_runs(monkeypatch):
    """Neighbouring images are taken for one."""
    monkeypatch.setattr(layout, "_rows", lambda counts, images: None)


def hidden_slots_show(monkeypatch):
    """The additive mask of the eager backend is not picked but cut off."""
    pick = mask.pick_mask

    def broken(dense, rows, slots, *args):
        picked = pick(dense, rows, slots, *args)
        return None if dense is None else dense[:, :, -rows.shape[1] :, -slots.shape[1] :].expand_as(picked)

    monkeypatch.setattr(layer_inputs, "pick_mask", broken)


def rows_are_columns(monkeypatch):
    """Tokens get the row of their column."""
    places = layout._places
    monkeypatch.setattr(layout, "_places", lambda images: places(images)[[0, 1, 3, 2]])


def grids_lie_on_their_side(monkeypatch):
    """Height and width of an image are taken for each other."""
    from_sizes = qwen2_5_vl._from_sizes
    monkeypatch.setattr(
        qwen2_5_vl, "_from_sizes", lambda given, merge: from_sizes([_turned(one) for one in given], merge)
    )


def _turned(sizes):
    return None if sizes is None else sizes[:, [0, 2, 1]]


def images_come_before_videos(monkeypatch):
    """All images are placed first, whatever the prompt says."""

    def in_turn(runs, lengths, video_token):
        pieces = take_turns(runs, lengths, video_token)
        return sorted(pieces, key=lambda piece: piece[0])

    take_turns = qwen2_5_vl.take_turns
    monkeypatch.setattr(qwen2_5_vl, "take_turns", in_turn)


def newlines_lie_on_the_grid(monkeypatch):
    """A row of the large image is one token longer."""
    monkeypatch.setattr(
        llava_next, "Grid", lambda height, width, row_ends=0, known=True: Grid(height, width + row_ends, known=known)
    )


def crops_are_images(monkeypatch):
    """Every crop counts as an image."""
    monkeypatch.setattr(Idefics3, "image_grids", lambda self, config, kwargs, runs: [(Grid(4, 4),) for _ in runs])


def rows_of_an_image_are_one(monkeypatch):
    """Tokens between the rows of an image are not looked at."""
    monkeypatch.setattr(pixtral, "_from_rows", lambda places: Grid(1, sum(length for _, _, length in places)))


def nothing_stands_behind_an_image(monkeypatch):
    """The newline behind an image that shares its prompt is not counted."""
    monkeypatch.setattr(
        llava_onevision, "Grid", lambda *size, row_ends=0, after=0, **options: Grid(*size, row_ends=row_ends)
    )


def every_mask_is_causal(monkeypatch):
    """That the tokens of an image see one another in both directions is lost where tokens are."""
    pick = mask.pick_mask

    def causal(dense, rows, slots, *args):
        picked = pick(dense, rows, slots, *args)
        return picked & (slots[:, None, :] <= rows[:, :, None])[:, None] if picked is not None else None

    monkeypatch.setattr(layer_inputs, "pick_mask", causal)


def places(family, shape, how="generate"):
    return lambda: test_grids.test_a_method_sees_where_each_token_lies(family, shape, how)


CASES = [
    (rotary_of_the_first_rows, law(MASKED, "llava", "one image", "fastv")),
    (rotary_of_the_first_rows, law(MASKED, "qwen2_5_vl", "two images", "random")),
    (
        rotary_of_the_first_rows,
        lambda: test_removal.test_layers_see_short_sequences_at_their_old_positions("qwen3_vl"),
    ),
    (padding_is_visible, law(MASKED, "llava", "ragged", "ladder")),
    (padding_is_visible, law(ALONE, "qwen2_5_vl", "ragged", "fastv")),
    (hidden_slots_show, law(MASKED, "qwen3_vl", "ragged", "greedyprune")),
    (physical_cache_lengths, law(MASKED, "llava", "ragged", "random")),
    (physical_cache_lengths, lambda: test_removal.test_second_turn_on_a_pruned_cache(0)),
    (features_of_other_layers_left_in_place, law(MASKED, "qwen3_vl", "two images", "random")),
    (the_report_lies, law(MASKED, "llava", "one image", "divprune")),
    (gathering_is_not_exact, law(KEEP_ALL, "llava", "ragged", "greedyprune")),
    (padding_counts_as_text, law(ALONE, "llava", "ragged", "greedyprune relax")),
    (the_draw_depends_on_the_row, law(ALONE, "llava", "ragged", "random")),
    (nothing_leaves, lambda: test_removal.test_kv_cache_lengths_per_layer("llava", "sdpa")),
    (
        nothing_leaves,
        lambda: test_generate_preencoded.test_generate_shortens_the_cache("qwen2_5_vl", "ragged", Random(keep=0.3)),
    ),
    (images_are_runs, lambda: test_families.test_per_image_counts("llava", "adjacent images", "generate")),
    (rows_are_columns, places("llava", "ragged")),
    (rows_are_columns, lambda: test_grids.test_rotary_positions_run_along_rows_and_columns("qwen2_5_vl", "video")),
    (grids_lie_on_their_side, places("qwen2_vl", "two images", "forward")),
    (images_come_before_videos, places("qwen3_vl", "video")),
    (images_come_before_videos, places("qwen2_5_vl", "video", "forward")),
    (newlines_lie_on_the_grid, places("llava_next", "one image")),
    (newlines_lie_on_the_grid, lambda: test_grids.test_llava_next_packs_as_the_grids_say((640, 480), False)),
    (crops_are_images, places("smolvlm", "two images")),
    (rows_of_an_image_are_one, places("pixtral", "two images")),
    (rows_of_an_image_are_one, places("mistral3", "one image")),
    (nothing_stands_behind_an_image, places("llava_onevision", "ragged")),
    (every_mask_is_causal, law(MASKED, "gemma3", "one image", "fastv")),
    (every_mask_is_causal, law(MASKED, "paligemma", "ragged", "random mid")),
]


@pytest.mark.parametrize(("broken", "check"), CASES, ids=[f"{case[0].__name__}-{n}" for n, case in enumerate(CASES)])
def test_a_broken_engine_is_caught(broken, check, monkeypatch):
    check()
    broken(monkeypatch)
    with pytest.raises((AssertionError, IndexError, RuntimeError, ValueError)):
        check()
