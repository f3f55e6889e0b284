"""From messages to what the model reads: each request's prompt by itself, and batches of them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.families import family_of
from foveate.measure.loading import LoadedModel
from foveate.serve.errors import ApiError, bad
from foveate.serve.fetch import fetch
from foveate.serve.media import decode_image, decode_video, from_data_uri
from foveate.serve.schema import ChatRequest, ImagePart, Message, TextPart, Url
from foveate.serve.settings import Settings


@dataclass(eq=False)
class Prompt:
    """A request's prompt.

    Attributes
    ----------
    text
        With the placeholders that the processor expects.
    images, videos
        In the order in which they are named; a video is a list of frames.
    inputs
        What the processor makes of the prompt alone, on the CPU.
    ids
        (L,) token ids.
    visual
        Visual tokens among them.
    """

    text: str
    images: list[Image.Image]
    videos: list[list[Image.Image]]
    inputs: Any = field(repr=False)
    ids: Tensor
    visual: int


class Prompts:
    """Makes prompts and batches for one model; may be called from any thread.

    Parameters
    ----------
    loaded
        The model and its processor.
    settings
        The operator's.

    Attributes
    ----------
    context
        Positions that the model was made for.
    """

    def __init__(self, loaded: LoadedModel, settings: Settings) -> None:
        self.loaded, self.settings = loaded, settings
        self._lock = threading.Lock()  # fast tokenizers are changed by a call that pads
        config, family = loaded.model.config, family_of(loaded.model)
        self.context = int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31)
        self._visual = torch.tensor(sorted({*family.visual_ids(config), *family.video_ids(config)}))
        tokenizer = loaded.processor.tokenizer
        names = [getattr(loaded.processor, name, None) for name in ("image_token", "video_token", "audio_token")]
        names += tokenizer.convert_ids_to_tokens(self._visual.tolist())
        self._placeholders = sorted({name for name in names if isinstance(name, str) and name.strip()})

    def read(self, request: ChatRequest) -> Prompt:
        """Return the prompt of a request.

        Raises
        ------
        ApiError
            It breaks a limit, an image cannot be read, or the model's processor does not take it.
        """
        turns = request.messages
        if len(turns) > self.settings.max_messages:
            raise bad(f"{self.settings.max_messages} messages are allowed", "messages", "too_many_messages")
        self._check_text(turns)
        images, videos = self._media(turns)
        text = self._text(turns)
        inputs = self._process([text], [images], [videos])
        ids = inputs["input_ids"][0]
        most = min(self.settings.max_prompt, self.context - 1)
        if len(ids) > most:
            message = f"the prompt has {len(ids)} tokens with its visual ones; {most} are allowed"
            raise bad(message, "messages", "context_length_exceeded")
        visual = int(torch.isin(ids, self._visual).sum())
        if bool(images or videos) != bool(visual):
            raise bad("the messages' images are not those of the prompt that the chat template makes", "messages")
        return Prompt(text, images, videos, inputs, ids, visual)

    def batch(self, prompts: list[Prompt]) -> Any:
        """Return the inputs of the model, padded on the left, on its device and in its floating type.

        Raises
        ------
        RuntimeError
            A row is not what its request is alone.
        """
        inputs = prompts[0].inputs
        if len(prompts) > 1:
            inputs = self._process(
                [one.text for one in prompts], [one.images for one in prompts], [one.videos for one in prompts]
            )
            for row, mask, one in zip(inputs["input_ids"], inputs["attention_mask"], prompts, strict=True):
                if not torch.equal(row[mask.bool()], one.ids):
                    raise RuntimeError("a row of a batch differs from its prompt alone")
        model = self.loaded.model
        return inputs.to(model.device, dtype=model.dtype)

    def _check_text(self, turns: list[Message]) -> None:
        """Refuse texts that name an image which is not there: it would be taken for another's."""
        for turn in turns:
            for text in (*_texts(turn), "".join(_texts(turn))):  # templates put the parts together
                for name in self._placeholders:
                    if name in text:
                        raise bad(f"a text holds {name!r}, with which this model marks its images", "messages")
                try:
                    text.encode("utf-8")
                except UnicodeEncodeError:
                    raise bad("a text is not valid Unicode", "messages") from None

    def _media(self, turns: list[Message]) -> tuple[list[Image.Image], list[list[Image.Image]]]:
        parts = [part for turn in turns for part in _parts(turn) if not isinstance(part, TextPart)]
        if len(parts) > self.settings.max_images:
            raise bad(f"{self.settings.max_images} images and videos are allowed", "messages", "too_many_images")
        if any(turn.role != "user" for turn in turns for part in _parts(turn) if not isinstance(part, TextPart)):
            raise bad("images and videos belong to the role 'user'", "messages")
        images: list[Image.Image] = []
        videos: list[list[Image.Image]] = []
        for part in parts:
            if isinstance(part, ImagePart):
                images.append(decode_image(self._bytes(part.image_url), self.settings))
            else:
                if getattr(self.loaded.processor, "video_processor", None) is None:
                    raise bad("this model, or this server, takes no videos", "messages", "no_videos")
                videos.append(decode_video(self._bytes(part.video_url), self.settings))
        return images, videos

    def _bytes(self, source: Url) -> bytes:
        scheme = source.url[:8].lower()
        if scheme.startswith("data:"):
            return from_data_uri(source.url, self.settings.max_image_bytes)
        if scheme.startswith(("http://", "https://")):
            return fetch(source.url, self.settings)
        raise bad("an image is a data URI, or a URL of http or https where that is allowed", "messages", "invalid_url")

    def _text(self, turns: list[Message]) -> str:
        """Use the model's own chat template; without one, one prompt of its kind after the other."""
        if not getattr(self.loaded.processor, "chat_template", None):
            return self._plain(turns)
        listed = [{"role": _role(turn), "content": _content(turn)} for turn in turns]
        try:
            return str(self.loaded.processor.apply_chat_template(listed, add_generation_prompt=True))
        except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AssertionError) as error:
            raise self._template_error(error) from None
        except Exception as error:
            if type(error).__module__.startswith("jinja2"):  # a template may refuse an order of roles
                raise self._template_error(error) from None
            raise

    def _template_error(self, error: Exception) -> ApiError:
        return bad("the model's chat template does not take these messages: check the order of roles", "messages")

    def _plain(self, turns: list[Message]) -> str:
        text, before = "", ""
        for turn in turns:
            words = "\n".join(_texts(turn))
            if turn.role == "assistant":
                text += f" {words} "
            elif turn.role == "user":
                number = sum(not isinstance(part, TextPart) for part in _parts(turn))
                text += self.loaded.prompt(before + words, number)
                before = ""
            else:
                before += f"{words}\n"
        if not text or turns[-1].role != "user":
            raise bad("the last message is one of the role 'user'", "messages")
        return text

    def _process(self, texts: list[str], images: list[Any], videos: list[Any]) -> Any:
        processor = self.loaded.processor
        start = getattr(processor.tokenizer, "bos_token", None)
        given: dict[str, Any] = {"images": images} if any(images) else {}
        if any(videos):
            # frames are drawn already
            films = [np.stack([np.asarray(frame) for frame in film]) for own in videos for film in own]
            given |= {"videos": films, "do_sample_frames": False}
        try:
            with self._lock:
                return processor(
                    text=texts,
                    **given,
                    padding=len(texts) > 1,  # alone it needs none, and some tokenizers have no padding token
                    padding_side="left",
                    return_tensors="pt",
                    # a prompt that brings its own start token must not get a second one
                    add_special_tokens=not (start and texts[0].startswith(start)),
                )
        except (ValueError, IndexError, ZeroDivisionError) as error:
            if len(texts) > 1:
                raise RuntimeError("a batch is refused whose prompts were taken alone") from error
            raise bad("the model's processor does not take these messages: check their images", "messages") from None


def _parts(turn: Message) -> list[Any]:
    return [] if isinstance(turn.content, str) else turn.content


def _texts(turn: Message) -> list[str]:
    if isinstance(turn.content, str):
        return [turn.content]
    return [part.text for part in turn.content if isinstance(part, TextPart)]


def _role(turn: Message) -> str:
    return "system" if turn.role == "developer" else turn.role


def _content(turn: Message) -> Any:
    if isinstance(turn.content, str):
        return [{"type": "text", "text": turn.content}]
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image" if isinstance(part, ImagePart) else "video"}
        for part in turn.content
    ]
