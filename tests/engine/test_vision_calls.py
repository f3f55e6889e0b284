"""Which calls of the vision encoder a prompt is made of, and that nothing of them stays behind."""

from __future__ import annotations

import gc
import inspect
import threading
import weakref
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

import foveate
from foveate.engine import attach
from foveate.engine.arguments import cache_of, with_cache
from foveate.engine.vision_features import MOST_CALLS, VisionFeatures
from foveate.errors import VisionFeaturesError
from foveate.families import family_of
from tests.models.build import SEEING, build, build_anew, feed_forward, generate, inputs
from tests.models.images import SIZED
from tests.threads import at_once
from tests.vision_probe import ENCODES_FIRST, VIDEOS_LINE_UP, Look, hooked, looked, run

ROTARY_BY_SIZE = (*SIZED, "paddleocr", "minicpmv4_7")  # a later turn needs position ids
encodes_first = pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers takes no encoded images")


def recorded(handle):
    return handle._hooks.attachment.vision._seen.calls


def encode(model, batch):
    """Images and videos of a batch, encoded as `generate()` does it."""
    base, given = model.base_model, {key: value for key, value in batch.items() if key not in TEXT}
    found = {}
    with torch.no_grad():
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if pixels in given:
                mine = {key: value for key, value in given.items() if KINDS.get(key, kind) == kind}
                found[kind] = getattr(base, f"get_{kind}_features")(**mine, return_dict=True)
    return found


TEXT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
KINDS = {
    "pixel_values": "image",
    "image_grid_thw": "image",
    "image_sizes": "image",
    "batch_num_images": "image",
    "pixel_values_videos": "video",
    "video_grid_thw": "video",
    "target_sizes": "image",
    "target_sizes_videos": "video",
}


def without_pixels(batch, encoded):
    return {**{key: batch[key] for key in TEXT if key in batch}, "mm_encoder_outputs": encoded}


@encodes_first
@pytest.mark.parametrize("family", SEEING)
@pytest.mark.parametrize("layout", ["ragged with text only", "video"])
def test_encoded_beforehand(family, layout):
    if layout == "video" and family not in VIDEOS_LINE_UP:
        pytest.skip("no videos that line up")
    if layout == "video" and family == "perception_lm":
        pytest.skip("it has no function for videos of its own")
    model, batch = build(family), inputs(family, layout)
    before, look = encode(model, batch), Look()
    with attach(model, look), torch.no_grad():
        with pytest.raises(VisionFeaturesError, match="were not seen: encode the image while the pruner is attached"):
            model(**without_pixels(batch, before))
        given = without_pixels(batch, encode(model, batch))
        for _ in range(2):  # without a cache, as `generate(use_cache=False)` does
            model(**given, use_cache=False)
        generate(model, batch, 1)
        given = without_pixels(batch, encode(model, batch))
        text = model.config.get_text_config()
        model(**given, **with_cache(model, DynamicCache(config=text)))
        with pytest.raises(VisionFeaturesError, match="were not seen"):
            model(**given, **with_cache(model, DynamicCache(config=text)))  # a prompt takes what was seen with it
    assert len(look.seen) == 8
    for tokens in look.seen[2::2]:
        for ours, theirs in zip(tokens.vision, look.seen[0].vision, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@encodes_first
@pytest.mark.parametrize("family", SEEING)
def test_features_of_another_image_are_no_stand_in(family):
    """As many tokens, but not the same: an error, and the next prompt is right again."""
    model, batch, other = build(family), inputs(family, "two images"), inputs(family, "two images", seed=9)
    assert batch["input_ids"].shape == other["input_ids"].shape
    expected, look = looked(model, batch), Look()
    with attach(model, look), torch.no_grad():
        mine = encode(model, batch)
        encode(model, other)
        if family_of(model).projects_later:  # what is projected then says by itself which image it is of
            model(**without_pixels(batch, mine))
            assert torch.equal(look.seen[0].vision[0], expected[0].vision[0])
            look.seen.clear()
        else:
            with pytest.raises(VisionFeaturesError, match="not those that the vision encoder made"):
                model(**without_pixels(batch, mine))
        assert not look.seen
        generate(model, batch, 1)
    assert torch.equal(look.seen[0].vision[0], expected[0].vision[0])


@encodes_first
@pytest.mark.parametrize("family", SEEING)
def test_calls_for_another_image_are_not_taken_for_its_own(family):
    """It was encoded before the pruner was attached, and something else since."""
    model, batch, other = build(family), inputs(family, "two images"), inputs(family, "two images", seed=9)
    before, look = encode(model, batch), Look()
    with attach(model, look), torch.no_grad():
        encode(model, other)
        with pytest.raises(VisionFeaturesError, match="were not seen"):
            model(**without_pixels(batch, before))
    assert not look.seen


@pytest.mark.parametrize("family", SEEING)
def test_calls_that_led_nowhere_are_passed_over(family):
    """Something failed between encoding and prefill: what was recorded then is not in the way."""
    model, batch, other = build(family), inputs(family, "ragged"), inputs(family, "one image", seed=9)
    for how in ("generate", "forward"):
        expected, look = looked(model, batch, how), Look()
        with attach(model, look):
            encode(model, other)
            encode(model, batch)
            encode(model, other)
            run(model, batch, how)
        for ours, theirs in zip(look.seen[0].vision, expected[0].vision, strict=True):
            assert torch.equal(ours, theirs)


@encodes_first
def test_images_may_be_encoded_one_by_one():
    model, batch = build("qwen2_5_vl"), inputs("qwen2_5_vl", "two images")
    expected, look, pixels = looked(model, batch, "forward"), Look(), batch["pixel_values"].split([96, 144])
    with attach(model, look), torch.no_grad():
        parts = [
            model.model.get_image_features(one, size[None], return_dict=True)
            for one, size in zip(pixels, batch["image_grid_thw"], strict=True)
        ]
        whole = parts[0]
        whole.pooler_output = [image for part in parts for image in part.pooler_output]
        model(**without_pixels(batch, {"image": whole}), image_grid_thw=batch["image_grid_thw"])
    torch.testing.assert_close(look.seen[0].vision, expected[0].vision, atol=1e-5, rtol=0)


@pytest.mark.oldest
@pytest.mark.parametrize("family", [family for family in SEEING if family != "ernie4_5_vl_moe"])  # which cannot
def test_without_a_cache_every_step_is_a_prompt(family):
    """`generate()` then encodes once and prefills often."""
    if family == "llama4" and not ENCODES_FIRST:
        pytest.skip("its function for images asks for more than the images in this transformers")
    calls = 2 if family == "step3p7" else 1  # whole images, and their tiles
    model, batch, look = build(family), inputs(family, "ragged"), Look(cuts=(3,))
    with attach(model, look) as handle:
        generate(model, batch, 3, use_cache=False)
        assert len(look.seen) == 3
        for tokens in look.seen[1:]:
            assert all(torch.equal(a, b) for a, b in zip(tokens.vision, look.seen[0].vision, strict=True))
        assert len(recorded(handle)) == ENCODES_FIRST * calls
        encode(model, inputs(family, "one image", seed=9))
        assert len(recorded(handle)) == calls  # those of the other prompt are gone
        generate(model, inputs(family, "one image", seed=9), 1)
        assert not recorded(handle)
    assert torch.equal(look.seen[3].vision[0], looked(model, inputs(family, "one image", seed=9))[0].vision[0])


@pytest.mark.oldest
@pytest.mark.parametrize(
    "family", [family for family in SEEING if not family.startswith((*SIZED, "paddleocr", "minicpmv4_7"))]
)
def test_a_second_turn_takes_its_own(family):
    model = build(family)
    first, second = inputs(family, "one image"), inputs(family, "two images", seed=3)
    look = Look()
    with attach(model, look), torch.no_grad():
        cache = cache_of(model(**first, use_cache=True))
        mask = torch.cat([first["attention_mask"], second["attention_mask"]], -1)
        model(**{**second, "attention_mask": mask}, **with_cache(model, cache))
    assert torch.equal(look.seen[2].vision[0], looked(model, second, "forward")[0].vision[0])


@pytest.mark.parametrize("family", SEEING)
def test_a_prompt_given_as_embeddings(family):
    model, batch = build(family), inputs(family, "two images")
    expected, look = looked(model, batch), Look()
    rest = {key: value for key, value in batch.items() if key != "input_ids"}
    rest["inputs_embeds"] = model.get_input_embeddings()(batch["input_ids"])
    with attach(model, look), torch.no_grad():
        if "inputs_embeds" in inspect.signature(model.prepare_inputs_for_generation).parameters:
            generate(model, rest, 1)
        else:  # transformers' own `generate()` takes none
            model(**rest)
    torch.testing.assert_close(look.seen[0].vision, expected[0].vision, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", SEEING)
def test_half_precision(family):
    """Only places are worked out by comparing, and those are exact in any type."""
    model = build_anew(family, "sdpa").to(torch.bfloat16)
    batch = inputs(family, "ragged")
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in batch.items()}
    for how in ("generate", "forward"):
        for ours, theirs in zip(looked(model, half, how), looked(build(family), batch, how), strict=True):
            assert ours.vision[0].dtype == torch.bfloat16
            torch.testing.assert_close(ours.vision[1].float(), theirs.vision[1], atol=0.3, rtol=0.05)


@pytest.mark.parametrize("family", SEEING)
@pytest.mark.parametrize("reentrant", [True, False])
def test_training_with_gradient_checkpointing(family, reentrant):
    model, batch = build_anew(family, "sdpa"), inputs(family, "ragged")
    expected = looked(build(family), batch, "forward")[0]
    model.train()
    for module in model.modules():  # as `Trainer` has it, whatever the name of the method that does it
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=reentrant)
    look = Look(cuts=(3,))
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    with attach(model, look) as handle:
        for given in (labels, labels, batch["input_ids"]):  # of the last, nothing may be dropped
            model(**batch, labels=given, use_cache=False).loss.backward()
            assert not recorded(handle)
    assert len(look.seen) == 2
    for tokens in look.seen:
        for ours, theirs in zip(tokens.vision, expected.vision, strict=True):
            assert not ours.requires_grad
            width = ours.shape[1]  # labels end the prompt earlier
            torch.testing.assert_close(ours, theirs[:, :width], atol=1e-4, rtol=0)


# -- nothing stays behind


@pytest.mark.parametrize("family", SEEING)
def test_nothing_is_kept_after_a_prompt_an_error_or_detaching(family):
    model, batch = build(family), inputs(family, "ragged")

    def fail(*_):
        raise ZeroDivisionError

    class Faulty(Look):
        def select(self, tokens):
            raise ZeroDivisionError

    for look in (Look(), Faulty()):
        with attach(model, look) as handle:
            for how in ("generate", "forward"):
                try:
                    run(model, batch, how)
                except ZeroDivisionError:
                    assert isinstance(look, Faulty)
                assert not recorded(handle)
    for module in (feed_forward(model, 0), family_of(model).vision_parts(model).projector):
        with attach(model, Look()) as handle, hooked(module.register_forward_hook(fail)):
            vision = handle._hooks.attachment.vision
            for how in ("forward", "generate"):
                with pytest.raises(ZeroDivisionError):
                    run(model, batch, how)
                if how == "forward":
                    assert not recorded(handle)
        assert not vision._seen.calls
    with attach(model, Look()) as handle:
        encode(model, batch)
        output = weakref.ref(recorded(handle)[-1].blocks[2])
    gc.collect()
    assert output() is None
    assert handle.report.prefills == ()


def test_whoever_only_encodes_does_not_fill_the_memory():
    model, batch = build("llava"), inputs("llava", "one image")
    with attach(model, Look()) as handle:
        for _ in range(MOST_CALLS + 5):
            encode(model, batch)
        assert len(recorded(handle)) == MOST_CALLS
        generate(model, batch, 1)
        assert not recorded(handle)


def test_a_text_prompt_in_between_takes_nothing():
    model, batch, look = build("qwen3_vl"), inputs("qwen3_vl", "one image"), Look()
    with attach(model, look):
        generate(model, inputs("qwen3_vl", "no image"), 2)
        generate(model, batch, 2)
    assert len(look.seen) == 2


@pytest.mark.parametrize("family", SEEING)
def test_two_threads_on_one_model(family):
    model = build(family)
    layouts = ["one image", "two images", "ragged", "adjacent images"]
    alone = {layout: looked(model, inputs(family, layout))[0].vision for layout in layouts}
    local = threading.local()

    class Separate(Look):
        def select(self, tokens):
            if tokens.layer == 1:
                local.seen.append(tokens.vision)
            return super().select(tokens)

    with attach(model, Separate()):

        def work(layout):
            local.seen = []
            for _ in range(3):
                generate(model, inputs(family, layout), 2)
            return local.seen

        together = at_once(work, layouts)
    for layout in layouts:
        assert len(together[layout]) == 3
        for vision in together[layout]:
            assert all(torch.equal(a, b) for a, b in zip(vision, alone[layout], strict=True))


def test_features_at_places():
    values = torch.arange(6.0).view(3, 2)
    features = VisionFeatures((values, -values), torch.tensor([[-1, 2, 0, -1], [1, -1, -1, -1]]), (2, 0), (), 3)
    (first, second), received = features.at(torch.tensor([[1, 2, 3, -1], [0, -1, 1, 9]]), Look())
    assert received == ()
    assert first.tolist() == [[[4, 5], [0, 1], [0, 0], [0, 0]], [[2, 3], [0, 0], [0, 0], [0, 0]]]
    assert torch.equal(second, -first)


def test_the_embedded_model():
    import numpy as np

    model, processor = foveate.tiny.load()
    image = foveate.tiny.make_scene(np.random.default_rng(3)).pil()
    given = processor(images=[image], text=foveate.tiny.prompt("how many circles are there?"), return_tensors="pt")
    depth = len(foveate.families.family_of(model).vision_blocks(model))
    look = Look(blocks=tuple(range(depth)))
    with attach(model, look):
        model.generate(**given, max_new_tokens=2)
    tokens = look.seen[0]
    assert len(tokens.vision) == depth
    assert {one.shape[:2] for one in tokens.vision} == {tokens.valid.shape}
