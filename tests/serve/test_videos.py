"""Videos in MP4 and WebM: decoded within limits, and answered as by the library without a server."""

from __future__ import annotations

import io

import numpy as np
import openai
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import foveate
from tests.models.build import build
from tests.models.images import IMAGE, VIDEO, VISION_END, VISION_START
from tests.models.sizes import PAD
from tests.serve.conftest import data_uri, running

pytest.importorskip("fastapi")
av = pytest.importorskip("av")

from foveate.measure.loading import load_model  # noqa: E402
from foveate.serve.errors import ApiError  # noqa: E402
from foveate.serve.media import decode_video  # noqa: E402
from foveate.serve.settings import Settings  # noqa: E402

SETTINGS = Settings(served_name="x", max_pixels=10_000, max_frames=4)
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }} "
    "{% else %}<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>{% endif %}{% endfor %}{% endfor %}assistant "
)


def film(frames: int, kind: str = "mp4", codec: str = "mpeg4", size: tuple[int, int] = (64, 48)) -> bytes:
    """Each frame has a brightness of its own."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as made:
        stream = made.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for at in range(frames):
            shade = np.full((size[1], size[0], 3), 20 + 200 * at // max(frames - 1, 1), dtype=np.uint8)
            made.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        made.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "mpeg4"), ("webm", "libvpx")])
def test_frames_at_even_distances(kind, codec):
    found = decode_video(film(11, kind, codec), SETTINGS)
    assert [(one.mode, one.size) for one in found] == [("RGB", (64, 48))] * 4
    shades = [np.asarray(one).mean() for one in found]
    assert np.allclose(shades, [20 + 200 * at // 10 for at in (0, 3, 7, 10)], atol=8)
    assert len(decode_video(film(3), SETTINGS)) == 3


def without(data: bytes, what: bytes) -> bytes:
    return data.replace(what, b"x" * len(what))


WRONG = {
    "truncated": (film(9)[:-400], "broken or truncated"),
    "nothing inside": (film(9)[:40], "broken or truncated"),
    "no index": (without(film(9), b"moov"), "broken or truncated"),
    "too long": (film(401), "2 to 400 frames"),
    "one frame": (film(1), "2 to 400 frames"),
    "too large": (film(3, size=(160, 80)), "10000 are allowed in one"),
    "another codec": (film(5, "matroska", "ffv1"), "codec"),
    "another container": (film(5, "avi"), "no format that is taken"),
}


@pytest.mark.parametrize("name", WRONG)
def test_others_are_refused_in_one_line(name):
    data, message = WRONG[name]
    with pytest.raises(ApiError, match=message) as error:
        decode_video(data, SETTINGS)
    assert error.value.status == 400
    assert "\n" not in error.value.message


def test_too_many_pixels_in_all():
    with pytest.raises(ApiError, match="100 times as many in all"):
        decode_video(film(260, size=(96, 80)), Settings(served_name="x", max_pixels=10_000, max_frames=32))


@pytest.mark.slow
def test_bytes_that_were_changed():
    rng, seen = np.random.default_rng(0), {True: 0, False: 0}
    for number in range(300):
        data = bytearray(film(6, *(("mp4", "mpeg4"), ("webm", "libvpx"))[number % 2], size=(32, 32)))
        for at in rng.integers(12, len(data), 6):
            data[at] = int(rng.integers(256))
        try:
            decode_video(bytes(data), SETTINGS)
            seen[True] += 1
        except ApiError:
            seen[False] += 1
    assert min(seen.values()) > 10


def save_qwen(folder):
    """A random Qwen2.5-VL with the processor of its kind."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil, Qwen2VLVideoProcessor

    marks = {
        IMAGE: "<|image_pad|>",
        VIDEO: "<|video_pad|>",
        VISION_START: "<|vision_start|>",
        VISION_END: "<|vision_end|>",
    }
    names = {PAD: "<pad>", 1: "<unk>", 2: "</s>", **marks}
    names |= {at: f"word{at}" for at in range(128) if at not in names}
    words = Tokenizer(models.WordLevel({name: at for at, name in names.items()}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks.values())})
    patches = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 64, "max_pixels": 48 * 64}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessorPil(**patches), tokenizer, Qwen2VLVideoProcessor(**patches), chat_template=TEMPLATE
    )
    processor.save_pretrained(folder)
    build("qwen2_5_vl").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("join", [False, True])
def test_the_answer_is_that_of_the_library(tmp_path, join):
    pytest.importorskip("torchvision")
    loaded = load_model(str(save_qwen(tmp_path)), "cpu")
    loaded.model.generation_config.eos_token_id = 10_000  # no token of the model
    data = film(11)
    frames = decode_video(data, Settings(served_name="x", max_frames=6))
    expected, kept = {}, {}
    for words in ("word5 word6", "word7"):
        batch = loaded.inputs([words], [[]], [[frames]])
        with foveate.GreedyPrune(keep=0.3)(loaded.model) as pruned:
            out = loaded.model.generate(**batch, max_new_tokens=8, do_sample=False)
        (prefill,) = pruned.report.prefills
        dense = int((batch["input_ids"] == VIDEO).sum())
        kept[words] = {"dense": dense, "kept": len(prefill.stages[-1].kept[0])}
        expected[words] = loaded.processor.tokenizer.decode(out[0, -8:], skip_special_tokens=True)
    part = {"type": "video_url", "video_url": {"url": data_uri(data).replace("image/png", "video/mp4")}}
    with running(loaded, keep=0.3, max_frames=6, join=join) as server:
        ask = server.client().chat.completions.create
        for words in expected:
            content = [part, {"type": "text", "text": words}]
            messages = [{"role": "user", "content": content}]
            found = ask(model="tiny", temperature=0, max_tokens=8, messages=messages)
            assert found.choices[0].message.content == expected[words]
            assert found.usage.model_extra["visual_tokens"] == kept[words]
        for name in ("truncated", "one frame", "another codec"):
            broken = {"type": "video_url", "video_url": {"url": data_uri(WRONG[name][0])}}
            with pytest.raises(openai.BadRequestError):
                ask(model="tiny", messages=[{"role": "user", "content": [broken]}])
