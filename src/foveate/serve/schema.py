"""The body of a request, as OpenAI's chat completions have it; what would be ignored is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

Number = StrictInt | StrictFloat


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Url(_Strict):
    """Where an image or a video is."""

    url: StrictStr = Field(min_length=1)
    detail: Literal["auto", "low", "high"] | None = None  # every image is seen as its processor sees it


class TextPart(_Strict):
    """Text."""

    type: Literal["text"]
    text: StrictStr


class ImagePart(_Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: Url


class VideoPart(_Strict):
    """A video."""

    type: Literal["video_url"]
    video_url: Url


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | list[Part]
    name: StrictStr | None = None


class StreamOptions(_Strict):
    """What a stream has beside the answer."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool | None = None


class Pruning(_Strict):
    """How this request's visual tokens are pruned, within the operator's limits."""

    method: StrictStr | None = Field(None, max_length=64, description="A method of the server, or `dense`.")
    keep: Number | None = Field(None, description="A share of the visual tokens, such as 0.22, or a count.")


class ChatRequest(_Strict):
    """A chat completion that is asked for."""

    model: StrictStr
    messages: list[Message] = Field(min_length=1)
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[StrictInt, Field(ge=1)] | None = None
    stop: StrictStr | list[StrictStr] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    foveate: Pruning | None = None
    # taken, and without effect here
    user: StrictStr | None = None
    metadata: dict[str, Any] | None = None
    store: StrictBool | None = None
    safety_identifier: StrictStr | None = None
    prompt_cache_key: StrictStr | None = None
    service_tier: StrictStr | None = None
    # taken where they ask for nothing
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """An error."""

    error: ErrorDetail
