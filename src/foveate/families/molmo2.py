"""Molmo 2: an image is shown small, then large, with a text token after each row; all images see one another.

That they do, in both directions, is in the mask that the model makes from `mm_token_type_ids`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.families.base import Family, Parts
from foveate.families.grids import Grid, Run
from foveate.families.turns import Places, take_turns


@dataclass(frozen=True)
class Molmo2(Family):
    """Differs from the default in its grids, its second rotary embedding and in how patches become visual tokens.

    `generate()` of current transformers hands the base model no grids, only encoded images: there the tokens between
    the rows tell how long these are. The small image and the frames of a video may lack them, but are squares.
    """

    def parts(self, model: Any) -> Parts:
        found = super().parts(model)
        other: Any = found.decoder
        return dataclasses.replace(found, more_rotary=(other.rotary_emb_unscaled,), marked_around=True)

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        images, videos = kwargs.get("image_grids"), kwargs.get("video_grids")
        encoded = kwargs.get("mm_encoder_outputs") or {}
        if encoded:
            kind = "image" if encoded.get("image") is not None else "video"
            lengths = [len(one) for one in encoded[kind].pooler_output]
            pieces = take_turns(runs, [lengths, []], -1)
            return None if pieces is None else [_from_rows(places, kind == "video") for _, _, places in pieces]
        if images is not None:
            return [
                (Grid(*size[:2]), Grid(*size[2:])) if all(size[2:]) else (Grid(*size[:2]),) for size in images.tolist()
            ]
        return None if videos is None else [(Grid(high, wide),) * frames for frames, high, wide in videos.tolist()]

    def projector_sizes(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
        """(tokens, most) long, the patches of the call that each token is made of; -1 where it has fewer."""
        return kwargs["pooled_patches_idx"] if "pooled_patches_idx" in kwargs else args[1]

    def merge_call(self, config: Any, output: Tensor, projected: Tensor, sizes: Tensor | None) -> Tensor:
        if sizes is None:
            return super().merge_call(config, output, projected, sizes)
        patches = output.flatten(0, -2)
        there = sizes >= 0
        some = there.any(-1)
        found = patches[sizes[some].clamp(min=0)] * there[some][..., None].to(patches.dtype)
        return found.sum(1) / there[some].sum(-1, keepdim=True).to(patches.dtype)

    def inserted(self, model: Any, projected: Tensor) -> Tensor:
        """The features are added to the embedding of the placeholder."""
        token = torch.tensor(model.config.image_token_id)
        embed = model.get_input_embeddings()
        return projected + embed(token.to(embed.weight.device))[: projected.shape[-1]].to(projected)


def _from_rows(places: Places, video: bool) -> tuple[Grid, ...]:
    """Grids of an image or a video whose rows of tokens lie at these (sample, start, length) places."""
    grids: list[list[int]] = []
    end = None
    for place in places:
        if end == (place[0], place[1] - 1):
            grids[-1].append(place[2])
        else:
            grids.append([place[2]])
        end = place[0], place[1] + place[2]
    found = []
    for number, rows in enumerate(grids):
        if len(rows) == 1 and (video or not number):
            found.append(Grid.square(rows[0]))
        elif len(rows) > 1 and len({*rows}) == 1:
            found.append(Grid(len(rows), rows[0]))
        else:
            return (Grid(1, sum(length for _, _, length in places), known=False),)
    return tuple(found)


MOLMO2 = Molmo2("molmo2", "Molmo 2", "allenai/Molmo2-8B")
