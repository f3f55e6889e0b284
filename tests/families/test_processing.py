"""load_processor: the same inputs with and without torchvision, and a plain word where nothing can be loaded."""

from __future__ import annotations

import json
import logging
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoProcessor, PreTrainedTokenizerFast
from transformers.utils import is_torchvision_available

import foveate
from foveate.errors import FoveateError, ModelNotReachable
from foveate.families.processors import explain_missing, load_processor
from tests.models.build import IMAGE, VIDEO, build
from tests.models.images import VISION_END, VISION_START
from tests.models.sizes import PAD

needs_no_torchvision = pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")

# transformers 5.4 has Qwen-VL's image processor on Pillow, yet asks for torchvision before it runs
pillow_needs_torchvision = getattr(transformers.Qwen2VLImageProcessorPil, "is_dummy", False)
needs_images = pytest.mark.skipif(pillow_needs_torchvision, reason="this transformers needs torchvision for images")

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>"]
VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|> <|image_pad|> <|vision_end|> "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
QWEN = {
    # model type: (its processor's class, its patch size)
    "qwen2_vl": ("Qwen2VLProcessor", 14),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", 14),
    "qwen3_vl": ("Qwen3VLProcessor", 16),
    "qwen3_vl_moe": ("Qwen3VLProcessor", 16),
}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def tokenizer(words: list[str] | None = None) -> PreTrainedTokenizerFast:
    words = words or [*SPECIAL, *VISION, "user", "assistant", "system", *[f"w{i}" for i in range(50)]]
    bare = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        padding_side="left",
        additional_special_tokens=[word for word in (*SPECIAL[4:], *VISION) if word in words],
    )


def qwen_folder(
    folder: Path, model_type: str, layout: str, words: PreTrainedTokenizerFast | None = None, patch: int | None = None
) -> Path:
    """A folder as the Hub has it (`old`: one file a part) or as transformers 5 saves it (`new`: one file for all)."""
    processor_class = QWEN[model_type][0]
    patch = patch or QWEN[model_type][1]
    (words or tokenizer()).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    image = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": (2 * patch) ** 2, "longest_edge": (16 * patch) ** 2},
    }
    if layout == "old":
        (folder / "preprocessor_config.json").write_text(json.dumps(image | {"processor_class": processor_class}))
    else:
        video = {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": patch}
        both = {"processor_class": processor_class, "image_processor": image, "video_processor": video}
        (folder / "processor_config.json").write_text(json.dumps(both))
    return folder


def messages(*pictures: Image.Image, text: str = "w1 w2") -> list[dict]:
    parts = [{"type": "image", "image": one} for one in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@pytest.fixture(params=["old", "new"])
def layout(request) -> str:
    return request.param


@pytest.fixture(params=list(QWEN))
def qwen(request, tmp_path, layout) -> Path:
    return qwen_folder(tmp_path / "model", request.param, layout)


def check_inputs(processor, inputs, counts: list[int]) -> None:
    """Every run of image tokens is as long as its grid says; types, mask and ids agree; patches are all there."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    grid = inputs["image_grid_thw"]
    assert (grid.prod(-1) // processor.image_processor.merge_size**2).tolist() == counts
    is_image = ids == processor.image_token_id
    assert torch.equal(inputs["mm_token_type_ids"], is_image.to(inputs["mm_token_type_ids"].dtype))
    assert not (is_image & (mask == 0)).any()
    runs = [len(run) for row in is_image for run in re.findall("1+", "".join(str(int(x)) for x in row))]
    assert runs == counts
    assert inputs["pixel_values"].shape[0] == grid.prod(-1).sum()


@needs_images
@needs_no_torchvision
def test_the_reason_this_exists(qwen):
    """If this fails, transformers has learnt to do it: take the fall-back out."""
    with pytest.raises(ImportError, match="(?i)torchvision"):
        AutoProcessor.from_pretrained(qwen)


@pytest.mark.skipif(not pillow_needs_torchvision, reason="this transformers needs no torchvision for images")
def test_too_old_for_images_without_torchvision(qwen):
    with pytest.raises(ImportError, match=r"install transformers>=5\.5, or torchvision"):
        load_processor(qwen)


@needs_images
def test_one_image(qwen):
    processor = load_processor(qwen)
    patch = processor.image_processor.patch_size
    inputs = processor(
        images=[picture(8 * patch, 6 * patch)],
        text="w5 <|vision_start|> <|image_pad|> <|vision_end|> w6",
        return_tensors="pt",
        return_mm_token_type_ids=True,
    )
    check_inputs(processor, inputs, [12])
    ids = processor.tokenizer.convert_tokens_to_ids
    want = [ids("w5"), ids("<|vision_start|>"), *[ids("<|image_pad|>")] * 12, ids("<|vision_end|>"), ids("w6")]
    assert inputs["input_ids"].tolist() == [want]


@needs_images
def test_chat_template_with_images_of_different_sizes_left_padded(qwen):
    processor = load_processor(qwen)
    patch = processor.image_processor.patch_size
    batch = [
        messages(picture(4 * patch, 4 * patch), picture(8 * patch, 4 * patch, 1)),
        messages(picture(10 * patch, 6 * patch, 2), text="w3"),
        messages(text="w4 w5 w6"),
    ]
    inputs = processor.apply_chat_template(
        batch,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        padding=True,
        return_mm_token_type_ids=True,
    )
    check_inputs(processor, inputs, [4, 8, 15])
    mask = inputs["attention_mask"]
    assert (mask.diff(dim=1) >= 0).all()  # padding on the left only
    assert mask[:, -1].all()
    assert mask[2, 0] == 0  # and there is some
    text = processor.apply_chat_template(batch, tokenize=False, add_generation_prompt=True)
    assert text[0].count("<|image_pad|>") == 2
    assert text[0].endswith("assistant ")


@needs_images
def test_chat_template_asks_for_nothing(qwen):
    """The call that README and docs show: mm_token_type_ids is there unasked, as the model needs it for positions."""
    processor = load_processor(qwen)
    patch = processor.image_processor.patch_size
    inputs = processor.apply_chat_template(
        messages(picture(4 * patch, 8 * patch)), tokenize=True, return_dict=True, return_tensors="pt"
    )
    check_inputs(processor, inputs, [8])


@needs_images
def test_text_alone(qwen):
    inputs = load_processor(qwen)(text=["w1 w2"], return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 2)
    assert "pixel_values" not in inputs


@needs_images
def test_options_reach_the_image_processor(tmp_path):
    folder = qwen_folder(tmp_path, "qwen2_5_vl", "old")
    small = load_processor(folder, size={"shortest_edge": 56 * 56, "longest_edge": 56 * 56})
    inputs = small(
        images=[picture(280, 280)], text="<|image_pad|>", return_tensors="pt", return_mm_token_type_ids=True
    )
    check_inputs(small, inputs, [4])


@needs_images
@pytest.mark.parametrize("model_type", QWEN)
def test_is_the_class_it_stands_for_and_saves_as_it(tmp_path, model_type, layout):
    processor = load_processor(qwen_folder(tmp_path / "model", model_type, layout))
    processor_class = getattr(transformers, QWEN[model_type][0])
    assert isinstance(processor, processor_class)
    processor.save_pretrained(tmp_path / "saved")
    again = load_processor(tmp_path / "saved")
    assert type(again) is type(processor)
    assert again.chat_template == TEMPLATE
    saved = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert saved["processor_class"] == processor_class.__name__
    assert saved["video_processor"]["patch_size"] == QWEN[model_type][1]  # kept for whoever has torchvision
    assert saved["video_processor"]["video_processor_type"] == "Qwen2VLVideoProcessor"
    copy = pickle.loads(pickle.dumps(processor))  # as a data loader's workers need it
    assert copy.image_token_id == processor.image_token_id


@needs_images
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_model_takes_what_it_gives(tmp_path, family):
    words = [f"w{i}" for i in range(128)]
    words[PAD], words[1], words[2] = "<pad>", "<unk>", "</s>"
    words[VISION_START], words[VISION_END], words[IMAGE], words[VIDEO] = VISION
    folder = qwen_folder(tmp_path, family, "new", tokenizer(words), patch=4)
    batch = [messages(picture(32, 16)), messages(picture(48, 40, 1), picture(16, 16, 2), text="w3 w4 w5")]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "padding": True}
    inputs = load_processor(folder).apply_chat_template(batch, add_generation_prompt=True, **options)
    with foveate.GreedyPrune(keep=0.5)(build(family)) as pruned:
        build(family).generate(**inputs, max_new_tokens=3, do_sample=False)
    assert pruned.report.stages[0].dense == [8, 34]
    assert [len(kept) for kept in pruned.report.stages[0].kept] == [4, 17]
    assert [[dense for _, dense in images] for images in pruned.report.stages[0].per_image] == [[8], [30, 4]]


@needs_images
@needs_no_torchvision
def test_leaves_nothing_behind(tmp_path):
    import transformers.processing_utils as utils

    before = (
        utils.ProcessorMixin.__init__,
        transformers.Qwen2_5_VLProcessor.__init__,
        vars(transformers.Qwen2VLProcessor).copy(),
    )
    load_processor(qwen_folder(tmp_path, "qwen2_5_vl", "old"))
    after = (
        utils.ProcessorMixin.__init__,
        transformers.Qwen2_5_VLProcessor.__init__,
        vars(transformers.Qwen2VLProcessor).copy(),
    )
    assert before == after
    with pytest.raises(ImportError, match="(?i)torchvision"):
        AutoProcessor.from_pretrained(tmp_path)


@needs_images
@needs_no_torchvision
def test_says_so_once(tmp_path, caplog):
    folder = qwen_folder(tmp_path, "qwen3_vl", "old")
    with caplog.at_level(logging.INFO, logger="foveate"):
        load_processor(folder)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("foveate")] == [
        f"torchvision is not installed: {folder} is loaded for images only, without videos"
    ]


@needs_images
@needs_no_torchvision
def test_videos_are_refused(tmp_path):
    processor = load_processor(qwen_folder(tmp_path, "qwen2_5_vl", "old"))
    with pytest.raises(ImportError, match="install torchvision"):
        processor(text="<|video_pad|>", videos=[np.zeros((4, 28, 28, 3), dtype=np.uint8)])


@pytest.mark.torchvision
@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
@pytest.mark.parametrize("model_type", QWEN)
def test_same_inputs_as_the_full_processor(tmp_path, monkeypatch, model_type, layout):
    folder = qwen_folder(tmp_path / "model", model_type, layout)
    full = load_processor(folder)
    assert type(full) is getattr(transformers, QWEN[model_type][0])
    with monkeypatch.context() as patch:
        patch.setattr("foveate.families.processors.is_torchvision_available", lambda: False)
        part = load_processor(folder)
    batch = [messages(picture(90, 61), picture(200, 120, 1)), messages(picture(50, 220, 2))]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "padding": True}
    want, got = full.apply_chat_template(batch, **options), part.apply_chat_template(batch, **options)
    assert want.keys() == got.keys()
    for key in want:
        if key == "pixel_values":  # Pillow and torchvision round a resize differently: by a few of 255 levels
            assert (got[key] - want[key]).abs().max() < 0.1
        else:
            assert torch.equal(got[key], want[key])

    part.save_pretrained(tmp_path / "saved")
    again = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(again) is type(full)
    assert again.video_processor.patch_size == full.video_processor.patch_size


def test_a_family_that_needs_no_torchvision(tmp_path):
    """LLaVA: what AutoProcessor gives, untouched."""
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer=tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    loaded = load_processor(str(tmp_path))
    assert type(loaded) is transformers.LlavaProcessor
    inputs = loaded(images=[picture(40, 30)], text="w1 <image> w2", return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 6)


@pytest.mark.parametrize("name", ["./no-such-folder", "/no/such/folder", "models/of/mine", "~/nothing"])
def test_no_such_folder(name):
    with pytest.raises(ModelNotReachable, match="there is no folder .* give a folder"):
        load_processor(name)


def test_no_such_model_without_a_network():
    with pytest.raises(ModelNotReachable, match="the Hub did not answer: check the network") as caught:
        load_processor("nobody/nothing", local_files_only=True)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, FoveateError)
    assert "\n" not in str(caught.value)
    assert "hf download nobody/nothing" in str(caught.value)


def test_empty_folder(tmp_path):
    with pytest.raises(ModelNotReachable, match="holds no model"):
        load_processor(tmp_path)


def test_an_error_about_files_that_are_there_passes_through(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    with pytest.raises(ValueError, match="Unrecognized processing class|no-such-type"):
        load_processor(tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("offline"), "the Hub did not answer"),
        (RepositoryNotFoundError.__new__(RepositoryNotFoundError), "no such model that you may read"),
    ],
)
def test_reasons(error, message):
    with pytest.raises(ModelNotReachable, match=message), explain_missing("a/b"):
        raise OSError("what transformers makes of it") from error


def test_a_full_disk_is_not_called_a_missing_model():
    with pytest.raises(OSError, match="No space left") as caught, explain_missing("a/b"):
        raise OSError(28, "No space left on device")
    assert not isinstance(caught.value, ModelNotReachable)


def test_public_name():
    assert foveate.load_processor is load_processor
