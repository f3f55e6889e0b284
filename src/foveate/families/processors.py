"""`AutoProcessor` that also works without torchvision, for images.

transformers builds the processors of Qwen2-VL, Qwen2.5-VL and Qwen3-VL only with a video processor, and every video
processor needs torchvision. Whoever shows them images alone needs neither: here the same classes stand again without
the video half. They keep their names, so that a folder they save is one that any `AutoProcessor` loads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, AutoProcessor, ProcessorMixin
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor

from foveate.errors import ModelNotReachable

__all__ = ["explain_missing", "load_processor"]

logger = logging.getLogger(__name__)


class _ImagesOnly(ProcessorMixin):
    """A Qwen-VL processor without its video processor; everything else is inherited."""

    # what the folder says about videos: nothing here reads it, but it must not be lost on saving
    video_settings: dict[str, Any] | None = None

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any):
        # Both the base of the Qwen classes and newer versions of it read these names; the Qwen classes set them in the
        # very __init__ that wants the video processor, which is why it is not called.
        for token, default in {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        }.items():
            text = getattr(tokenizer, token, None) or default
            setattr(self, token, text)
            setattr(
                self, f"{token}_id", getattr(tokenizer, f"{token}_id", None) or tokenizer.convert_tokens_to_ids(text)
            )
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        if videos is not None:
            raise ImportError(
                "this processor was loaded without torchvision and knows images only; install torchvision"
            )
        return super().__call__(images=images, text=text, **kwargs)

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        settings = super().to_dict(*args, **kwargs)
        settings.pop("video_settings", None)
        if self.video_settings is not None:
            settings["video_processor"] = self.video_settings
        return settings


class Qwen2VLProcessor(_ImagesOnly, transformers.Qwen2VLProcessor):
    """Qwen2-VL's processor, images only."""


class Qwen2_5_VLProcessor(_ImagesOnly, transformers.Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor, images only."""


class Qwen3VLProcessor(_ImagesOnly, transformers.Qwen3VLProcessor):
    """Qwen3-VL's processor, images only."""


# by the class that a folder names, and by the model type, for folders that name none
IMAGES_ONLY: dict[str, type[_ImagesOnly]] = {
    "Qwen2VLProcessor": Qwen2VLProcessor,
    "Qwen2_5_VLProcessor": Qwen2_5_VLProcessor,
    "Qwen3VLProcessor": Qwen3VLProcessor,
    "qwen2_vl": Qwen2VLProcessor,
    "qwen2_5_vl": Qwen2_5_VLProcessor,
    "qwen3_vl": Qwen3VLProcessor,
    "qwen3_vl_moe": Qwen3VLProcessor,
    "qwen3_5": Qwen3VLProcessor,
    "qwen3_5_moe": Qwen3VLProcessor,
}
# the first that fits: GatedRepoError is a RepositoryNotFoundError
WHY_MISSING: dict[type[Exception], str] = {
    GatedRepoError: ("{name!r} is gated: request access on its page on the Hub, then log in with `hf auth login`"),
    RevisionNotFoundError: "the Hub has {name!r}, but not in the revision asked for: check `revision`",
    RepositoryNotFoundError: (
        "{name!r} is no folder here, and the Hub has no such model that you may read: check the name, and for a "
        "private model log in with `hf auth login`"
    ),
    LocalEntryNotFoundError: (
        "{name!r} is no folder here and not in the Hub's cache, and the Hub did not answer: check the network (and "
        "HF_HUB_OFFLINE), or fetch it elsewhere with `hf download {name} --local-dir FOLDER` and give FOLDER"
    ),
    HFValidationError: (
        "{name!r} is neither a folder here nor the form of a Hub id, such as 'Qwen/Qwen2.5-VL-3B-Instruct'"
    ),
}
# what says where files lie; the rest of from_pretrained's options say how to process
WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def load_processor(name_or_folder: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Load a model's processor: `AutoProcessor`, or its images-only half where torchvision is missing.

    Parameters
    ----------
    name_or_folder
        A Hub id, or a folder written by `save_pretrained`.
    **kwargs
        Handed to `from_pretrained`: `revision`, `token`, `size`, …

    Returns
    -------
    ProcessorMixin
        With torchvision, what `AutoProcessor` gives. Without it, for Qwen2-VL, Qwen2.5-VL and Qwen3-VL, an instance of
        the same class that takes no videos; the rest of the families need no torchvision in the first place.

    Raises
    ------
    ModelNotReachable
        There is no such folder, or the Hub did not answer or has no such model.
    ImportError
        Something other than torchvision is missing; or torchvision is, and transformers is older than 5.5.
    """
    with explain_missing(name_or_folder):
        images_only = None if is_torchvision_available() else _images_only(name_or_folder, **kwargs)
        if images_only is None:
            return AutoProcessor.from_pretrained(name_or_folder, **kwargs)
        if getattr(transformers.Qwen2VLImageProcessorPil, "is_dummy", False):
            raise ImportError(
                f"transformers {transformers.__version__} needs torchvision for the images of {name_or_folder}: "
                "install transformers>=5.5, or torchvision"
            )
        processor = images_only.from_pretrained(name_or_folder, **kwargs)
        processor.video_settings = _video_settings(name_or_folder, **kwargs)
    logger.warning("torchvision is not installed: %s is loaded for images only, without videos", name_or_folder)
    return processor


@contextmanager
def explain_missing(name_or_folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the many errors of a `from_pretrained` that finds nothing into one sentence that says what to do.

    Raises
    ------
    ModelNotReachable
        From the error that it replaces. Errors about files that were found pass through.
    """
    name = os.fspath(name_or_folder)
    if not os.path.exists(name) and _looks_like_a_path(name):
        raise ModelNotReachable(
            f"there is no folder {name!r}: give a folder that save_pretrained wrote, or a Hub id such as "
            "'Qwen/Qwen2.5-VL-3B-Instruct'"
        )
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ModelNotReachable):
            raise
        reason = _why_missing(name, error)
        if reason is None:
            raise
        raise ModelNotReachable(reason) from error


def _looks_like_a_path(name: str) -> bool:
    path = Path(name)
    return path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2 or name.endswith(os.sep)


def _why_missing(name: str, error: BaseException) -> str | None:
    """One sentence on why nothing was found, or None: something was found and `error` is about that."""
    if os.path.isdir(name):
        if any(Path(name).glob("*.json")):
            return None
        return f"the folder {name!r} holds no model: it has none of the *.json files that save_pretrained writes"
    chain = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None and earlier not in chain:
        chain.append(earlier)
    for kind, reason in WHY_MISSING.items():
        if any(isinstance(link, kind) for link in chain):
            return reason.format(name=name)
    return None


def _where(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key in WHERE}


def _images_only(name_or_folder: str | os.PathLike[str], **kwargs: Any) -> type[_ImagesOnly] | None:
    where = _where(kwargs)
    named, _ = ProcessorMixin.get_processor_dict(name_or_folder, **where)
    if (processor_class := named.get("processor_class")) is not None:
        return IMAGES_ONLY.get(processor_class)
    try:
        return IMAGES_ONLY.get(AutoConfig.from_pretrained(name_or_folder, **where).model_type)
    except (OSError, ValueError):  # no config.json, or of a model that transformers does not know
        return None


def _video_settings(name_or_folder: str | os.PathLike[str], **kwargs: Any) -> dict[str, Any] | None:
    try:
        settings, _ = BaseVideoProcessor.get_video_processor_dict(name_or_folder, **_where(kwargs))
    except OSError:  # it says nothing about videos
        return None
    if (image_type := settings.pop("image_processor_type", None)) is not None:
        # older folders have one file for both, which names the image processor
        settings.setdefault("video_processor_type", image_type.replace("ImageProcessor", "VideoProcessor"))
    settings.pop("processor_class", None)
    return settings
