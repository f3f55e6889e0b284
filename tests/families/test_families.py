"""What differs between the families: image boundaries, deep-stack features, parts."""

from __future__ import annotations

import pytest
import torch

from foveate import GreedyPrune, Random, errors
from foveate.engine.layout import lay_out
from foveate.engine.prompt import last_prompt_token
from foveate.families import FAMILIES, Grid, family_of, find_runs, visual_mask
from tests.models.build import (
    ABSENT,
    BUILDERS,
    IMAGE,
    VARIANTS,
    WITH_VIDEOS,
    build,
    build_anew,
    generate,
    inputs,
    pictures,
)

CROPS_APART = ("idefics3", "smolvlm")


def test_every_listed_family_has_a_tiny_model():
    assert set(FAMILIES) == (set(BUILDERS) | ABSENT) - set(VARIANTS)


@pytest.mark.parametrize("family", BUILDERS)
def test_parts(family):
    model = build(family)
    parts = family_of(model).parts(model)
    assert parts.base is model.base_model
    inside = dict.fromkeys(CROPS_APART, "text_model") | {"llama4": "language_model.model"}
    assert parts.decoder is model.base_model.get_submodule(inside.get(family, "language_model"))
    assert len(parts.layers) == len(parts.attention) == 6
    assert IMAGE in parts.visual_ids


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        (family, layout)
        for family in BUILDERS
        for layout in ("two images", "ragged", "ragged with text only", "adjacent images", "video")
        if layout != "video" or family in WITH_VIDEOS
    ],
)
@pytest.mark.parametrize("how", ["generate", "forward"])
def test_per_image_counts(family, layout, how):
    """Images are told apart also where no text stands between them."""
    model, batch = build(family), inputs(family, layout)
    with Random(keep=0.5)(model) as pruned, torch.no_grad():
        if how == "generate":
            generate(model, batch, 1)
        else:
            model(**batch)
    stage = pruned.report.stages[0]
    for kept, dense, split, seen in zip(
        stage.kept, stage.dense, stage.per_image, pictures(family, layout), strict=True
    ):
        assert sum(number for number, _ in split) == len(kept)
        assert [number for _, number in split] == [sum(grid.length for grid in one.grids) for one in seen]
        assert sum(number for _, number in split) == dense
    images = sum(map(len, stage.per_image))
    assert (
        images == {"two images": 2, "ragged": 4, "ragged with text only": 3, "adjacent images": 2, "video": 4}[layout]
    )


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("keep", [0.25, 5])
def test_budget_per_image(family, keep):
    model, batch = build(family), inputs(family, "ragged")
    with GreedyPrune(keep=keep, per="image")(model) as pruned:
        generate(model, batch, 1)
    for split in pruned.report.stages[0].per_image:
        for kept, dense in split:
            assert kept == (5 if keep == 5 else round(0.25 * dense))


def test_beams_repeat_rows_but_not_images():
    model, batch = build("llava"), inputs("llava", "ragged with text only")
    with Random(keep=0.5)(model) as pruned:
        generate(model, batch, 2, num_beams=2)
    assert [len(split) for split in pruned.report.stages[0].per_image] == [2, 2, 0, 0, 1, 1]


def test_image_numbers():
    visual = torch.tensor([[0, 1, 1, 1, 0, 1], [1, 1, 0, 0, 0, 0]]).bool()

    def numbers(*lengths):
        runs = find_runs(visual, None)
        return lay_out(visual, runs, [(Grid(1, length),) for length in lengths] or None).places[0].tolist()

    assert numbers(1, 3, 2) == [[-1, 0, 1, 1, -1, 1], [0, 0, -1, -1, -1, -1]]
    assert numbers() == [[-1, 0, 0, 0, -1, 1], [0, 0, -1, -1, -1, -1]]
    assert numbers(3, 3) == numbers()


def test_last_prompt_token():
    tokens = torch.zeros(2, 5)
    prompt = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]).bool()
    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, -100, -100, -100, -100]])
    assert last_prompt_token(5, None, None, tokens).tolist() == [4, 4]
    assert last_prompt_token(5, prompt, None, tokens).tolist() == [2, 4]
    assert last_prompt_token(5, prompt, labels, tokens).tolist() == [1, 4]
    labels[:, 0] = 2  # nothing is asked for the first token
    assert last_prompt_token(5, prompt, labels, tokens).tolist() == [1, 4]
    labels[:, 1] = 2
    assert last_prompt_token(5, prompt, labels, tokens).tolist() == [0, 0]


def test_visual_mask_trusts_token_types_and_finds_embeddings():
    model = build("llava")
    parts = family_of(model).parts(model)
    ids = torch.tensor([[5, IMAGE, IMAGE, 7, IMAGE]])
    types = torch.tensor([[0, 1, 1, 0, 0]])  # the last one was sampled
    assert visual_mask(parts, {"input_ids": ids}).tolist() == [[False, True, True, False, True]]
    assert visual_mask(parts, {"input_ids": ids, "mm_token_type_ids": types}).tolist() == [
        [False, True, True, False, False]
    ]
    embeds = model.get_input_embeddings()(ids)
    assert visual_mask(parts, {"inputs_embeds": embeds}).tolist() == [[False, True, True, False, True]]
    assert visual_mask(parts, {"input_ids": ids[:, :1]}) is None


@pytest.mark.parametrize("family", ["paligemma", "paligemma2"])
def test_paligemma_without_token_types_is_refused(family):
    model, batch = build(family), inputs(family, "two images")
    del batch["token_type_ids"]
    with Random(keep=0.5)(model), torch.no_grad():
        for how in (lambda: model(**batch), lambda: generate(model, batch, 1)):
            with pytest.raises(errors.UnsupportedModelError, match="only with token_type_ids"):
                how()
        generate(model, inputs(family, "no image"), 1)


def test_deep_stack_features_follow_the_kept_tokens():
    """Where attention and MLP add nothing, each kept token holds what it holds in the dense run: its own features."""
    model, batch = build_anew("qwen3_vl", "sdpa"), inputs("qwen3_vl", "two images")
    decoder, seen = model.get_decoder(), {}
    with torch.no_grad():
        for layer in decoder.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for keep in (1.0, 0.5):
            with Random(keep=keep, layer=0)(model) as pruned:
                handle = decoder.layers[3].register_forward_pre_hook(
                    lambda _, args, keep=keep: seen.update({keep: args[0][0]})
                )
                model(**batch)
                handle.remove()
    stay = batch["input_ids"][0] != IMAGE
    stay[pruned.report.stages[0].kept[0]] = True
    assert seen[0.5].shape[0] == int(stay.sum()) < seen[1.0].shape[0]
    assert torch.equal(seen[0.5], seen[1.0][stay])
