"""What the engine must know of a model family; the default finds it in any `AutoModelForImageTextToText`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedModelError
from foveate.families.grids import Grid, Run
from foveate.families.vision_encoder import VisionParts, average_squares, find_vision_parts

MERGED = (
    "with images merged into inputs_embeds, the visual tokens of this model cannot be told from the text around them, "
    "which mm_token_type_ids marks as well: pass input_ids, or embeddings of the ids alone"
)


@dataclass(frozen=True)
class Parts:
    """The pieces of a model that the engine hooks.

    Attributes
    ----------
    base
        Module that receives `input_ids` and images and calls the decoder.
    decoder
        The language model without its head.
    layers
        Its decoder layers.
    attention
        The self-attention module of each layer; None for a layer that has a running state in its place.
    rotary
        Module that makes `position_embeddings` from `position_ids`.
    visual_ids
        Placeholder token ids that stand for visual tokens.
    more_rotary
        Modules like it, that make the tables of some of the layers.
    marked_around
        Whether `mm_token_type_ids` marks text around the visual tokens as well.
    """

    base: nn.Module
    decoder: nn.Module
    layers: nn.ModuleList
    attention: tuple[nn.Module | None, ...]
    rotary: nn.Module
    visual_ids: tuple[int, ...]
    more_rotary: tuple[nn.Module, ...] = ()
    marked_around: bool = False


@dataclass(frozen=True)
class LayerAdditions:
    """Features that a family adds to the visual tokens after its first layers (deep-stack).

    Attributes
    ----------
    mask
        (B, L) bool, the visual tokens of the dense prompt.
    values
        One (number of true entries, D) tensor a layer, from layer 0.
    """

    mask: Tensor
    values: list[Tensor]


@dataclass(frozen=True)
class Family:
    """A model family; a subclass or instance is its difference from this default.

    Attributes
    ----------
    model_type
        `config.model_type` of the models.
    title
        Name for people.
    example
        A Hub id.
    answer_type
        What `token_type_ids` are for the tokens of an answer.
    projects_later
        Whether the projector runs with the language model, and not where `generate()` has the images encoded.
    token_inputs
        Arguments of the decoder layers, beside those of any model, that have one entry a token: name and axis of the
        tokens, the batch on the axis before. They are cut with the tokens; tokens that a method adds get zeros.
    has_streams
        Whether decoder layers hand on several states for each token; `shown_states` says what methods see of them.
    projects_each
        Whether the projector may be called for each image of a call of the encoder by itself.
    wants_sizes
        Whether `image_grids` must know `vision_sizes` of the call that encoded the images: see `kept_sizes`.
    """

    answer_type: ClassVar[int] = 0
    projects_later: ClassVar[bool] = False
    token_inputs: ClassVar[Mapping[str, int]] = MappingProxyType({})
    has_streams: ClassVar[bool] = False
    projects_each: ClassVar[bool] = False
    wants_sizes: ClassVar[bool] = False

    model_type: str
    title: str
    example: str

    def parts(self, model: Any) -> Parts:
        """Find the pieces.

        Raises
        ------
        UnsupportedModelError
            Naming each piece that is missing.
        """
        base = getattr(model, "base_model", model)
        decoder = self.decoder(model)
        layers = getattr(decoder, "layers", None)
        rotary = getattr(decoder, "rotary_emb", None)
        attention = tuple(getattr(layer, "self_attn", None) for layer in layers or ())
        ids = self.visual_ids(model.config)
        found = tuple(module if isinstance(module, nn.Module) else None for module in attention)
        without = [layer for layer, module in zip(layers or (), found, strict=True) if module is None]
        missing = [
            what
            for what, there in (
                ("a decoder with `layers` (get_decoder())", isinstance(layers, nn.ModuleList)),
                ("`self_attn` in each decoder layer", len(without) < len(found) and all(map(self.has_state, without))),
                ("`rotary_emb` in the decoder", isinstance(rotary, nn.Module)),
                ("`image_token_id` in the config", bool(ids)),
            )
            if not there
        ]
        if missing:
            raise UnsupportedModelError(f"{type(model).__name__} cannot be pruned: it lacks {'; '.join(missing)}")
        return Parts(
            base, cast("nn.Module", decoder), cast("nn.ModuleList", layers), found, cast("nn.Module", rotary), ids
        )

    def decoder(self, model: Any) -> Any:
        """The language model without its head; None if it is not found."""
        return model.get_decoder() if hasattr(model, "get_decoder") else None

    def has_state(self, layer: nn.Module) -> bool:
        """Whether a decoder layer has, in place of attention, a state that runs along the sequence.

        Linear attention, convolutions. Such a layer must take a (B, L) mask that makes the inputs of padding zero, and
        with inputs of zero leave a state of zero as it is.
        """
        return False

    def kv_sources(self, parts: Parts) -> tuple[int, ...]:
        """For each decoder layer, the one whose keys and values its attention reads: itself, or one before it.

        Raises
        ------
        UnsupportedModelError
            When a layer reads what no layer of this model makes.
        """
        makers: dict[Any, int] = {}
        sources = []
        for number, attention in enumerate(parts.attention):
            kind = getattr(attention, "layer_type", None)
            if not getattr(attention, "is_kv_shared_layer", False):
                makers[kind] = number
            elif kind not in makers:
                raise UnsupportedModelError(
                    f"decoder layer {number} reads keys and values that no layer of this model makes, which foveate "
                    "cannot cut"
                )
            sources.append(makers[kind])
        return tuple(sources)

    def scaled_rows(self, attention: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]] | None:
        """A linear map of an attention that scales what comes out of it by each row's place; None: there is none.

        For an attention that counts places by the rows it is given. Returned are the module, with one row a token, and
        the scale as a function of positions in the conversation, which nowhere falls.
        """
        return None

    def shown_states(self, hidden: Tensor) -> Tensor:
        """(B, n, D) for methods to look at, of what one decoder layer hands to the next; tokens on the axis -2."""
        return hidden

    def visual_ids(self, config: Any) -> tuple[int, ...]:
        """Ids of the image and video placeholder tokens."""
        names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
        return tuple(sorted({value for name in names if isinstance(value := getattr(config, name, None), int)}))

    def reserved_ids(self, config: Any) -> tuple[int, ...]:
        """Ids that the model reads in another way in a prompt with images than in an answer: the laws speak none."""
        return self.visual_ids(config)

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        """Grids of each image or video, in prompt order over the batch, tokens in prompt order too; None: unknown.

        Images of one size are the default: each is a square of tokens.

        Parameters
        ----------
        config
            The model's config.
        kwargs
            Keyword arguments of the base model's forward: raw pixels, or, inside `generate()` of current
            transformers, the images already encoded (`mm_encoder_outputs`).
        runs
            Unbroken runs of visual tokens in prompt order over the batch.
        """
        encoded = kwargs.get("mm_encoder_outputs") or {}
        if encoded.get("video") is not None:
            return None
        if encoded.get("image") is not None:
            features = encoded["image"].pooler_output
            each = isinstance(features, (list, tuple)) or features.ndim == 3
            return [(Grid.square(len(image)),) for image in features] if each else None
        pixels, visual_tokens = kwargs.get("pixel_values"), sum(run.length for run in runs)
        if isinstance(pixels, Tensor) and pixels.ndim == 4 and visual_tokens % pixels.shape[0] == 0:
            return [(Grid.square(visual_tokens // pixels.shape[0]),)] * pixels.shape[0]
        return None

    def place(self, image: tuple[Grid, ...], size: tuple[int, int], processor: Any) -> tuple[Grid, ...]:
        """An image's grids with the regions that its size tells where its tokens do not.

        Parameters
        ----------
        image
            Its grids.
        size
            Its width and height in pixels, as the processor was given it.
        processor
            The model's.
        """
        return image

    def take_additions(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], LayerAdditions | None]:
        """Take features that the decoder would add between layers out of its arguments; the engine then adds them."""
        return kwargs, None

    def vision_parts(self, model: Any) -> VisionParts:
        """Find the vision encoder, its blocks and the projector after it.

        Raises
        ------
        UnsupportedModelError
            Naming each piece that is missing.
        """
        return find_vision_parts(model)

    def vision_blocks(self, model: Any) -> nn.ModuleList:
        """Blocks of the vision encoder, from the first; raises `UnsupportedModelError` if they are not found."""
        return self.vision_parts(model).blocks

    def class_token(self, encoder: nn.Module) -> int | None:
        """Index of the class token in the sequences of the vision encoder; None where it has none."""
        names = {name.rpartition(".")[2] for name, _ in encoder.named_parameters()}
        return 0 if names & {"class_embedding", "cls_token"} else None

    def vision_width(self, config: Any) -> int:
        """C, the width of the vision encoder's blocks, from the model's config."""
        return int(config.vision_config.hidden_size)

    def vision_sizes(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
        """What `vision_order` must know of the images in a call of the encoder, (images, ...), from its arguments."""
        return None

    def projector_sizes(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
        """The same for encoders that are not told, from the arguments of the projector."""
        return None

    def inserted(self, model: Any, projected: Tensor) -> Tensor:
        """What the language model is given for (M, C) visual tokens that the projector put out: just these.

        C are the first channels, as many as the engine compares.
        """
        return projected

    def merge_patches(self, config: Any, output: Tensor, projected: Tensor) -> Tensor:
        """Features (M, C) of the visual tokens, in the encoder's order, from what a block put out in one call.

        Parameters
        ----------
        config
            The model's config.
        output
            Features of patches: (tiles, patches, C) by default, perhaps with a class token in front.
        projected
            What the projector then made of that call's images: (tiles, tokens, D), M tokens in all.

        Raises
        ------
        UnsupportedModelError
            When the numbers of patches and of tokens do not go together.
        """
        return average_squares(output, projected.shape[-2])

    def merge_call(self, config: Any, output: Tensor, projected: Tensor, sizes: Tensor | None) -> Tensor:
        """`merge_patches`, for families that must know `vision_sizes` of the call."""
        return self.merge_patches(config, output, projected)

    def vision_order(
        self, config: Any, sizes: Tensor | None, projected: Tensor, given: Tensor, grids: Sequence[Grid]
    ) -> Tensor | None:
        """For each visual token of the prompt, (N,) long, which of the encoder's it is; -1 for separators.

        Parameters
        ----------
        config
            The model's config.
        sizes
            `vision_sizes` of the calls, joined.
        projected
            (M, D) visual tokens in the encoder's order.
        given
            (N, D) visual tokens as the language model is given them, in prompt order, videos after all images. For
            what nothing but comparing can tell: the engine compares the whole of it afterwards.
        grids
            Where the N lie, in prompt order.

        Returns
        -------
        Tensor or None
            None where they do not go together.
        """
        return torch.arange(len(projected), device=given.device) if len(projected) == len(given) else None

    def video_ids(self, config: Any) -> tuple[int, ...]:
        """Ids of the placeholder tokens whose videos are encoded after the images."""
        found = (getattr(config, name, None) for name in ("video_token_id", "video_token_index"))
        return tuple(sorted({value for value in found if isinstance(value, int)}))

    @property
    def has_additions(self) -> bool:
        """True where `take_additions` takes something."""
        return type(self).take_additions is not Family.take_additions


def visual_mask(parts: Parts, kwargs: Mapping[str, Any]) -> Tensor | None:
    """(B, L) bool, which prompt positions hold visual tokens; None for a decode step.

    `mm_token_type_ids` has the last word: a sampled answer may contain a placeholder id that is no image.

    Raises
    ------
    UnsupportedModelError
        When they cannot be told from the text around them.
    """
    ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    tokens = ids if ids is not None else embeds
    if tokens is None or tokens.shape[1] == 1:
        return None
    types = kwargs.get("mm_token_type_ids")
    if ids is not None:
        mask = torch.isin(ids, torch.tensor(parts.visual_ids, device=ids.device))
        return mask & (types > 0) if types is not None and types.shape == ids.shape else mask
    if types is not None and not parts.marked_around:
        return types > 0
    embed: nn.Module = cast("Any", parts.base).get_input_embeddings()
    placeholder = embed(torch.tensor(parts.visual_ids, device=tokens.device))
    mask = (tokens[:, :, None] == placeholder).all(-1).any(-1)
    if types is not None and bool((types > 0).any()) and not bool(mask.any()):
        raise UnsupportedModelError(MERGED)
    return mask
