"""Qwen2-VL to Qwen3.5, and the Omni models' thinkers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.families.base import Family, LayerAdditions
from foveate.families.grids import Grid, Run
from foveate.families.turns import Places, take_turns
from foveate.families.vision_encoder import kept_sizes

KINDS = ("image", "video")


@dataclass(frozen=True)
class QwenVL(Family):
    """Differs from the default in its grids: time x height x width patches, merged in squares; a frame is a grid.

    `generate()` of current transformers hands the base model no sizes, only encoded images and the rotary positions
    made of the sizes: rows and columns are read from those.
    """

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        given = sizes_of(kwargs)
        encoded = kwargs.get("mm_encoder_outputs") or {}
        if any(sizes is not None for sizes in given):
            grids = _from_sizes(given, config.vision_config.spatial_merge_size)
            if not grids[0] or not grids[1]:
                return grids[0] or grids[1]
            pieces = take_turns(runs, [[_length(image) for image in kind] for kind in grids], config.video_token_id)
            return None if pieces is None else [grids[kind][number] for kind, number, _ in pieces]
        features = [getattr(encoded.get(kind), "pooler_output", None) for kind in KINDS]
        lengths = [[len(image) for image in images] if images is not None else [] for images in features]
        pieces = take_turns(runs, lengths, config.video_token_id)
        if pieces is None:
            return None
        positions = kwargs.get("position_ids")
        axes = (
            positions[-3:].cpu()
            if isinstance(positions, Tensor) and positions.ndim == 3 and len(positions) >= 3
            else None
        )
        return [_from_positions(axes, places) for _, _, places in pieces]

    def merge_patches(self, config: Any, output: Tensor, projected: Tensor) -> Tensor:
        # patches come in merge groups: those of a token stand side by side
        return output.view(len(projected), -1, output.shape[-1]).mean(1)


@dataclass(frozen=True)
class Qwen2_5VL(QwenVL):
    """Differs from its sisters in its vision encoder, which works window by window."""

    def vision_sizes(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
        return kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]

    def vision_order(
        self, config: Any, sizes: Tensor | None, projected: Tensor, given: Tensor, grids: Sequence[Grid]
    ) -> Tensor | None:
        if sizes is None or len(projected) != len(given):
            return None
        vision = config.vision_config
        window = vision.window_size // vision.spatial_merge_size // vision.patch_size
        order = _window_order(sizes.tolist(), vision.spatial_merge_size, window)
        return order.to(given.device) if len(order) == len(given) else None


def sizes_of(kwargs: Mapping[str, Any]) -> list[Tensor | None]:
    """(n, 3) time, height and width in patches of the images, and of the videos; also where they come encoded."""
    encoded = kwargs.get("mm_encoder_outputs") or {}
    given = [kwargs.get(f"{kind}_grid_thw") for kind in KINDS]
    return [_kept(encoded.get(kind)) if sizes is None else sizes for kind, sizes in zip(KINDS, given, strict=True)]


def _kept(output: Any) -> Tensor | None:
    """The sizes that were kept with what the encoder put out, for each of its features: beams repeat those."""
    sizes = kept_sizes(output)
    if sizes is None:
        return None
    numbers: dict[int, int] = {}
    order = [numbers.setdefault(one.data_ptr(), len(numbers)) for one in output.pooler_output]
    return sizes[order] if len(numbers) == len(sizes) else None


def _window_order(sizes: Sequence[Sequence[int]], merge: int, window: int) -> Tensor:
    """(N,) place in the encoder of each token, from (time, height, width) in patches of each image or video.

    The encoder takes the windows of a frame row by row, and the tokens of a window row by row.
    """
    orders, first = [], 0
    for time, high, wide in sizes:
        row, column = torch.arange(high // merge) // window, torch.arange(wide // merge) // window
        number = (row[:, None] * (len(column) + 1) + column).flatten()
        frame = torch.argsort(torch.argsort(number, stable=True))
        orders.append((frame + torch.arange(time)[:, None] * len(frame)).flatten() + first)
        first += time * len(frame)
    return torch.cat(orders)


def _length(grids: tuple[Grid, ...]) -> int:
    return sum(grid.length for grid in grids)


def _from_sizes(given: Sequence[Tensor | None], merge: int) -> list[list[tuple[Grid, ...]]]:
    """Grids of images and of videos from their (n, 3) sizes in patches."""
    there = [sizes for sizes in given if sizes is not None]
    sizes = [(Grid(high // merge, wide // merge),) * time for time, high, wide in torch.cat(there).tolist()]
    images = 0 if given[0] is None else len(given[0])
    return [sizes[:images], sizes[images:]]


def _from_positions(axes: Tensor | None, places: Places) -> tuple[Grid, ...]:
    """Grids of one image or video, from (3, B, L) rotary positions: time, height, width."""
    frames: list[Grid] = []
    for sample, start, length in places:
        found = () if axes is None else _frames(axes[:, sample, start : start + length])
        if not found:
            return (Grid(1, sum(piece[2] for piece in places), known=False),)
        frames += found
    return tuple(frames)


def _frames(axes: Tensor) -> tuple[Grid, ...]:
    """Frames of one size, one after another, in (3, n) positions; none if these are not positions of a grid."""
    time, high, wide = axes - axes[:, :1]
    count = torch.arange(len(high))
    width = int(((high == 0) & (wide == count)).long().cumprod(0).sum())
    height = int((high[::width] == count[: len(high[::width])]).long().cumprod(0).sum())
    cell = count % (height * width)
    fits = len(high) % (height * width) == 0 and not time[: height * width].any()
    if not fits or not torch.equal(high, cell // width) or not torch.equal(wide, cell % width):
        return ()
    return (Grid(height, width),) * (len(high) // (height * width))


QWEN2_5_VL = Qwen2_5VL("qwen2_5_vl", "Qwen2.5-VL", "Qwen/Qwen2.5-VL-7B-Instruct")


@dataclass(frozen=True)
class Qwen2VL(QwenVL):
    """Its `hidden_size` is the language model's."""

    def vision_width(self, config: Any) -> int:
        return int(config.vision_config.embed_dim)


QWEN2_VL = Qwen2VL("qwen2_vl", "Qwen2-VL", "Qwen/Qwen2-VL-7B-Instruct")


@dataclass(frozen=True)
class Qwen3VL(QwenVL):
    """Takes the deep-stack features out of the decoder's arguments: left there, they no longer fit the kept tokens."""

    def take_additions(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], LayerAdditions | None]:
        values = kwargs.get("deepstack_visual_embeds")
        if values is None:
            return kwargs, None
        rest = {**kwargs, "visual_pos_masks": None, "deepstack_visual_embeds": None}
        return rest, LayerAdditions(kwargs["visual_pos_masks"], list(values))


QWEN3_VL = Qwen3VL("qwen3_vl", "Qwen3-VL", "Qwen/Qwen3-VL-8B-Instruct")


QWEN3_VL_MOE = Qwen3VL("qwen3_vl_moe", "Qwen3-VL MoE", "Qwen/Qwen3-VL-30B-A3B-Instruct")


@dataclass(frozen=True)
class Qwen3_5(QwenVL):
    """Differs in its layers without `self_attn`: gated delta rules after a short convolution, both without bias."""

    def has_state(self, layer: nn.Module) -> bool:
        return hasattr(layer, "linear_attn")


QWEN3_5 = Qwen3_5("qwen3_5", "Qwen3.5", "Qwen/Qwen3.5-27B")


QWEN3_5_MOE = Qwen3_5("qwen3_5_moe", "Qwen3.5 MoE", "Qwen/Qwen3.5-35B-A3B")


def heard_ids(config: Any) -> tuple[int, ...]:
    """Ids of a sound's tokens, and of those that say where sounds and images begin: positions are counted by them."""
    names = ("audio_token_id", "audio_start_token_id", "vision_start_token_id")
    return tuple(value for name in names if isinstance(value := getattr(config, name, None), int))


@dataclass(frozen=True)
class Qwen2_5Omni(Qwen2_5VL):
    """Differs in the tokens of sounds, which are no visual tokens."""

    def reserved_ids(self, config: Any) -> tuple[int, ...]:
        return (*self.visual_ids(config), *heard_ids(config))


@dataclass(frozen=True)
class Qwen3Omni(Qwen3VL):
    """Differs in the tokens of sounds, which are no visual tokens."""

    def reserved_ids(self, config: Any) -> tuple[int, ...]:
        return (*self.visual_ids(config), *heard_ids(config))


QWEN2_5_OMNI = Qwen2_5Omni("qwen2_5_omni_thinker", "Qwen2.5-Omni", "Qwen/Qwen2.5-Omni-7B")
QWEN3_OMNI_MOE = Qwen3Omni("qwen3_omni_moe_thinker", "Qwen3-Omni", "Qwen/Qwen3-Omni-30B-A3B-Instruct")
