"""Outputs of the vision encoder's blocks, as a method is shown them at each visual token."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.engine import attach
from foveate.errors import BudgetError, UnsupportedModelError
from foveate.families import Family, family_of
from foveate.pruners import Pruner
from foveate.pruners.by_image import by_image
from tests.laws.methods import METHODS
from tests.models import TINY
from tests.models.build import ATTENTIVE, IMAGE, LAYOUTS, SEEING, build, generate, inputs, single
from tests.models.images import SIZED
from tests.vision_probe import MIXED_UP, TILED, VIDEOS_LINE_UP, Look, hooked, looked

PACKED = [*(family for family, tiny in TINY.items() if tiny.packed or tiny.codes), "step3p7"]
REORDERING = ("llava_next", "granite_vision", "llava_next_video", "llava_onevision", "mistral3")
WINDOWED = ("qwen2_5_vl", "qwen2_5_omni_thinker", "exaone4_5")


def by_hand(family, output):
    """What one block put out for a batch of images, as features of visual tokens in the encoder's order."""
    if family.startswith(SIZED):
        return torch.stack([group.mean(0) for group in output.split(4)])
    if family == "pixtral":
        return output[0]
    if family == "llama4":  # the class token comes last
        output = output[0].roll(1, 1)
    if output.ndim == 4:  # (tiles, rows, columns, C)
        output = output.flatten(1, 2)
    side = {16: 4, 17: 4, 65: 8, 64: 8, 256: 16}[output.shape[1]]
    step = side // 4
    grid = output[:, -side * side :].view(len(output), side, side, -1)
    return torch.stack(
        [
            tile[row : row + step, column : column + step].mean((0, 1))
            for tile in grid
            for row in range(0, side, step)
            for column in range(0, side, step)
        ]
    )


@pytest.mark.oldest
@pytest.mark.parametrize("family", sorted({*SEEING} - {*REORDERING, *WINDOWED, *PACKED}))  # see families
@pytest.mark.parametrize("how", ["generate", "forward"])
@pytest.mark.parametrize("blocks", [(2, 0), (0, 1, 2), (1,), (1, 1)])
def test_outputs_of_the_blocks_asked_for_in_their_order(family, how, blocks):
    model, batch, outputs = build(family), inputs(family, "ragged with text only"), {}
    handles = [
        block.register_forward_hook(lambda _, args, out, number=number: outputs.update({number: out}))
        for number, block in enumerate(family_of(model).vision_blocks(model))
    ]
    with hooked(*handles):
        first, second = looked(model, batch, how, blocks=blocks)
    flat = (batch["input_ids"] == IMAGE).flatten().cumsum(0).view_as(batch["input_ids"]) - 1
    assert (second.valid.sum(-1) < first.valid.sum(-1)).any()
    for tokens in (first, second):
        assert len(tokens.vision) == len(blocks)
        for ours, number in zip(tokens.vision, blocks, strict=True):
            expected = by_hand(family, outputs[number])
            assert ours.shape == (*tokens.valid.shape, 32)
            for row, valid in enumerate(tokens.valid):
                places = flat[row, tokens.position[row, valid]]
                torch.testing.assert_close(ours[row, valid], expected[places])
                assert not ours[row, ~valid].any()


@pytest.mark.oldest
@pytest.mark.parametrize("family", SEEING)
@pytest.mark.parametrize("layout", ["ragged", "ragged with text only", "video"])
@pytest.mark.parametrize("how", ["generate", "forward"])
def test_batch_equals_its_samples_alone(family, layout, how):
    if layout == "video" and family not in VIDEOS_LINE_UP:
        pytest.skip("no videos that line up")
    model = build(family)
    together = looked(model, inputs(family, layout), how)
    for row in range(len(LAYOUTS[layout])):
        for ours, theirs in zip(looked(model, single(family, layout, row), how), together, strict=False):
            for mine, its in zip(ours.vision, theirs.vision, strict=True):
                torch.testing.assert_close(mine[0, ours.valid[0]], its[row, theirs.valid[row]], atol=1e-5, rtol=0)


@pytest.mark.oldest
@pytest.mark.parametrize("family", SEEING)
@pytest.mark.parametrize("layout", ["one image", "ragged with text only", "video"])
def test_generate_equals_forward_and_beams_repeat_rows(family, layout):
    if layout == "video" and family not in VIDEOS_LINE_UP:
        pytest.skip("no videos that line up")
    if family in MIXED_UP and (layout != "one image" or family in (*TILED, "llama4")):
        pytest.skip("generate() of this transformers mixes up the images of beams")
    if (family, layout) == ("perception_lm", "video"):
        pytest.skip("the frames of a beam are encoded in another order than they are given: refused")
    model, batch = build(family), inputs(family, layout)
    forward = looked(model, batch, "forward")[0]
    for how, copies in (("generate", 1), ("beams", 2)):
        for ours, theirs in zip(looked(model, batch, how)[0].vision, forward.vision, strict=True):
            torch.testing.assert_close(ours, theirs.repeat_interleave(copies, 0), atol=1e-5, rtol=0)
    look = Look()
    with attach(model, look):
        generate(model, batch, 2, do_sample=True, num_return_sequences=3)
    torch.testing.assert_close(look.seen[0].vision[0], forward.vision[0].repeat_interleave(3, 0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", [one for one in ATTENTIVE if one in SEEING])
def test_with_tokens_of_the_methods_own_and_a_compacted_cache(family):
    class Glimpse(Look):
        def extra_tokens(self, model):
            return torch.linspace(-1, 1, 2 * 64).view(2, 64)

    model, batch = build(family), inputs(family, "ragged")
    look = Glimpse(compact_cache=True)
    with attach(model, look):
        generate(model, batch, 2)
    for ours, theirs in zip(look.seen, looked(model, batch), strict=True):
        assert torch.equal(ours.position, theirs.position)
        assert all(torch.equal(mine, its) for mine, its in zip(ours.vision, theirs.vision, strict=True))


def test_images_of_their_own_have_theirs():
    tokens = looked(build("llava"), inputs("llava", "ragged"))[0]
    seen = 0
    for images in by_image(tokens):
        for place, valid, mine in zip(images.place, images.tokens.valid, images.tokens.vision[1], strict=True):
            assert torch.equal(mine[valid], tokens.vision[1].flatten(0, 1)[place[valid]])
            assert not mine[~valid].any()
            seen += int(valid.sum())
    assert seen == int(tokens.valid.sum())


@pytest.mark.parametrize("family", [one for one in ATTENTIVE if one in SEEING])
def test_other_methods_are_shown_none_and_hook_nothing(family):
    model, batch, seen = build(family), inputs(family, "one image"), []

    class Other(Look):
        vision_layers = Pruner.vision_layers

        def select(self, tokens):
            seen.append(tokens.vision)
            return tokens.valid

    generate(model, batch, 1)  # transformers hooks a model itself the first time that it runs
    parts = family_of(model).vision_parts(model)
    modules = [parts.encoder, *parts.encoder.modules(), parts.projector]

    def count():
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)

    before = count()
    others = [pruner for pruner in METHODS.values() if not pruner.vision_layers(len(parts.blocks))]
    assert len(others) > 10
    sizes = 2 * family_of(model).wants_sizes  # a hook that keeps them; the encoder is counted twice
    for pruner in (*others, Other(), Look(blocks=())):
        with attach(model, pruner):
            assert count() == before + sizes
            if isinstance(pruner, Other):
                generate(model, batch, 1)
    assert seen == [(), ()]
    with attach(model, Look()):
        assert count() > before + sizes
    assert count() == before


@pytest.mark.parametrize("blocks", [(3,), (-1, 0), (0, 1, 7)])
def test_blocks_that_are_not_there(blocks):
    with pytest.raises(BudgetError, match="blocks of 0 to 2"):
        attach(build("llava"), Look(blocks=blocks))
    attach(build("llava"), Look()).detach()


def test_an_encoder_that_is_not_found():
    class Elephant(Family):
        def vision_parts(self, model):
            return super().vision_parts(torch.nn.Linear(1, 1))

    with pytest.raises(UnsupportedModelError, match=r"vision encoder of Linear was not found"):
        attach(build("llava"), Look(), family=Elephant("llava", "", ""))
    attach(build("llava"), foveate.Random(), family=Elephant("llava", "", "")).detach()
