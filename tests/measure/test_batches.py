"""A batch in which samples have other numbers of images goes through processors that count them by sample."""

import transformers

from foveate.families import FAMILIES
from foveate.measure.check.check import check_model
from foveate.measure.loading import LoadedModel
from foveate.pruners import Random
from tests.families.test_grids_of_processors import words
from tests.families.test_processing import needs_images
from tests.measure.folders import picture
from tests.models.build import IMAGE, build
from tests.models.images import VISION_END, VISION_START

NAMED = {"<image>": IMAGE, "<start_of_image>": VISION_START, "<end_of_image>": VISION_END}


def gemma3():
    tokenizer = words(**NAMED)
    for name, word in (("image", "<image>"), ("boi", "<start_of_image>"), ("eoi", "<end_of_image>")):
        setattr(tokenizer, f"{name}_token", word)
        setattr(tokenizer, f"{name}_token_id", NAMED[word])
    cutter = transformers.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = transformers.Gemma3Processor(cutter, tokenizer, image_seq_length=16)
    return LoadedModel(
        "gemma3", build("gemma3"), processor, lambda question, images: "<start_of_image> " * images + question
    )


@needs_images
def test_images_belong_to_their_samples():
    inputs = gemma3().process(["w3", "w4 w5", "w6"], [[picture(0)], [], [picture(1), picture(2)]])
    assert (inputs["input_ids"] == IMAGE).sum(-1).tolist() == [16, 0, 32]
    assert len(inputs["pixel_values"]) == 3
    assert "pixel_values" not in gemma3().process(["w3"], [[]])


@needs_images
def test_images_that_see_themselves_in_both_directions_are_checked(monkeypatch):
    loaded = gemma3()
    process = LoadedModel.inputs

    def inputs(*args):  # the processor adds tokens that the tiny model has not
        found = process(*args)
        return {**found, "input_ids": found["input_ids"].clamp(max=127)}

    monkeypatch.setattr(LoadedModel, "inputs", inputs)
    results = check_model(loaded, [Random(keep=0.3)], FAMILIES["gemma3"], steps=2)
    assert [result.inputs for result in results] == ["one image", "two images", "a ragged batch"]
    assert [[law.holds for law in result.laws] for result in results] == [[True, True, None]] * 2 + [[True] * 3]
