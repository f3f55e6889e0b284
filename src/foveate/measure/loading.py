"""A model by name, its processor, and how a question is put to it."""

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from foveate.errors import FoveateError, ModelNotReachable, UnsupportedModelError

TINY, TINY_MANY = "tiny", "tiny-many"
EMBEDDED = (TINY, TINY_MANY)  # the second: trained further, on clips and large images
Videos = list[list[tuple[Image.Image, ...]]]  # of each sample, each as its frames


class LoadError(FoveateError, ValueError):
    """A model was named, or a device or type asked for, that is not available; the message says what is."""


class InputError(FoveateError, ValueError):
    """An image or a question that a model's processor refuses."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer.

    Parameters
    ----------
    name
        As it was asked for: `tiny`, `tiny-many`, a Hub id or a folder.
    model, processor
        Of transformers.
    prompt
        `(question, number of images) -> prompt text`.
    video_prompt
        `(question, number of images, number of videos) -> prompt text`; `None` where the model sees no videos.
    """

    name: str
    model: Any
    processor: Any
    prompt: Callable[[str, int], str]
    video_prompt: Callable[[str, int, int], str] | None = None

    def inputs(self, questions: list[str], images: list[list[Image.Image]], videos: Videos | None = None) -> Any:
        """Return the processed batch, padded on the left, on the model's device and in its floating type.

        Raises
        ------
        InputError
            The processor refuses an image or a question; the message says why.
        """
        return self.process(questions, images, videos).to(self.model.device, dtype=self.model.dtype)

    def process(self, questions: list[str], images: list[list[Image.Image]], videos: Videos | None = None) -> Any:
        """Return the processed batch, padded on the left, on the CPU and as the processor makes it.

        Raises
        ------
        InputError
            The processor refuses an image or a question; the message says why.
        """
        if videos is None or not any(videos):
            texts = [self.prompt(question, len(own)) for question, own in zip(questions, images, strict=True)]
            more: dict[str, Any] = {}
        elif self.video_prompt is None:
            raise InputError(f"{self.name} takes no videos")
        else:
            shown = zip(questions, images, videos, strict=True)
            texts = [self.video_prompt(question, len(own), len(films)) for question, own, films in shown]
            # the frames are drawn already
            frames = [[np.stack([np.asarray(one) for one in film]) for film in films] for films in videos]
            more = {"videos": frames, "do_sample_frames": False}
        start = getattr(self.processor.tokenizer, "bos_token", None)
        try:
            return self.processor(
                text=texts,
                images=images if any(images) else None,  # by sample: from a flat list some processors cannot infer it
                padding=len(texts) > 1,  # alone it needs none, and some tokenizers have no padding token
                padding_side="left",
                return_tensors="pt",
                # a prompt that brings its own start token must not get a second one
                add_special_tokens=not (start and texts[0].startswith(start)),
                **more,
            )
        except (ValueError, ImportError) as error:  # ImportError: videos without torchvision
            raise InputError(f"the processor of {self.name} refuses this: {_line(error)}") from error


def load_model(name: str, device: str = "auto", dtype: str = "auto", any_family: bool = False) -> LoadedModel:
    """Return a model, its processor and its prompt, by name.

    Parameters
    ----------
    name
        `tiny` or `tiny-many` for the embedded model, else a Hub id or a folder.
    device
        `auto`, `cpu`, `cuda`, `mps`, …
    dtype
        `auto` (as stored; float32 on a CPU for the embedded model), `float32`, `bfloat16` or `float16`.
    any_family
        Take a model of a family that is not listed, too.

    Raises
    ------
    ModelNotReachable
        No such folder, and the Hub did not answer or has no such model.
    UnsupportedModelError
        A model of a family that foveate does not know.
    LoadError
        The device or the type does not exist here, or transformers cannot make a model of the files.
    """
    place, kind = device_named(device), dtype_named(dtype)
    if name in EMBEDDED:
        from foveate import tiny

        try:
            model, processor = tiny.load(kind if isinstance(kind, torch.dtype) else torch.float32, name == TINY_MANY)
        except FileNotFoundError as error:
            raise LoadError(f"the embedded model is not here: {_line(error)}") from error
        return LoadedModel(name, model.to(place).eval(), processor, _tiny_prompt)
    from transformers import AutoConfig, AutoModelForImageTextToText

    from foveate.families.processors import explain_missing, load_processor

    # a Hub that does not answer is asked once: left to itself, transformers asks for each of ten files, six times each
    local = not os.path.isdir(name) and not hub_answers()
    try:
        processor = load_processor(name, local_files_only=local)
        with explain_missing(name):
            if not any_family:
                _check_family(AutoConfig.from_pretrained(name, local_files_only=local))
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=kind, local_files_only=local)
    except ModelNotReachable:
        raise
    except (OSError, ValueError, ImportError) as error:  # found, but not what it should be
        raise LoadError(f"transformers cannot load '{name}' for images and text: {_line(error)}") from error
    model = model.to(place).eval()
    return LoadedModel(
        name,
        model,
        processor,
        lambda question, images: _prompt(processor, question, images),
        lambda question, images, videos: _prompt(processor, question, images, videos),
    )


def _check_family(config: Any) -> None:
    """Refuse a model that cannot be pruned before its weights are fetched."""
    from foveate.families import FAMILIES
    from foveate.families.refused import REFUSED

    if config.model_type not in FAMILIES:
        why = f": {REFUSED[config.model_type]}" if config.model_type in REFUSED else ""
        raise UnsupportedModelError(
            f"a model of type '{config.model_type}' is not supported{why}; foveate knows {', '.join(FAMILIES)}"
        )


def hub_answers(timeout: float = 6.0) -> bool:
    """Say whether the Hub can be reached at all; never asked where the environment says to stay offline."""
    from huggingface_hub import constants, is_offline_mode

    if is_offline_mode():
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout):
            return True
    except urllib.error.HTTPError:  # an answer, if not a kind one
        return True
    except (OSError, ValueError):
        return False


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def device_named(name: str) -> torch.device:
    """Return a device; `auto` is the accelerator, if there is one.

    Raises
    ------
    LoadError
        There is no such device here.
    """
    if name == "auto":
        # a build of torch for CUDA names it as its accelerator on a machine without a GPU, too
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:  # torch without CUDA raises AssertionError
        raise LoadError(f"no device '{name}' here: {_line(error)}") from error
    if device.type == "meta":
        raise LoadError("a model on the device 'meta' has no weights, and answers nothing")
    return device


def check_place(device: str, dtype: str = "auto") -> None:
    """Refuse a device or floating type that is not here, before anything else is done.

    Raises
    ------
    LoadError
        As `device_named` and `dtype_named`.
    """
    device_named(device)
    dtype_named(dtype)


def dtype_named(name: str) -> torch.dtype | str:
    """Return a floating type, or `auto` as it is.

    Raises
    ------
    LoadError
        There is no such floating type.
    """
    if name == "auto":
        return name
    dtype = getattr(torch, name, None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise LoadError(f"no floating type '{name}': use auto, float32, bfloat16 or float16")
    return dtype


def _tiny_prompt(question: str, images: int) -> str:
    from foveate import tiny

    return str(tiny.prompt(question)).replace("<image>", "<image>" * images)


def _prompt(processor: Any, question: str, images: int, videos: int = 0) -> str:
    """Use the model's own chat template; without one, the form that most early models were trained with."""
    if getattr(processor, "chat_template", None):
        shown = [{"type": "image"}] * images + [{"type": "video"}] * videos
        messages = [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}]
        return str(processor.apply_chat_template(messages, add_generation_prompt=True))
    tokens = (
        getattr(processor, "image_token", "<image>") * images + getattr(processor, "video_token", "<video>") * videos
    )
    return f"USER: {tokens}\n{question} ASSISTANT:"
