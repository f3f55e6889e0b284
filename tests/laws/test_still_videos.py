"""A film that stands still, on every family that takes videos: EVS keeps its first frame, VidCom2 favours no frame."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import foveate
from foveate.pruners import VisualTokens
from foveate.pruners.films import films
from tests.laws.test_laws import ONE_FRAME
from tests.models.build import WITH_VIDEOS, build, inputs


@dataclass(frozen=True, kw_only=True)
class Films:
    """Remembers each film's hidden states (T, P, D) and which of its tokens stay (T, P)."""

    found: list[tuple[Tensor, Tensor]] = field(default_factory=list, compare=False, repr=False)

    def select(self, tokens: VisualTokens) -> Tensor:
        keep = super().select(tokens)
        self.found.extend(
            (tokens.features[sample][columns], keep[sample][columns]) for sample, columns in films(tokens)
        )
        return keep


@dataclass(frozen=True, kw_only=True)
class SeenEVS(Films, foveate.EVS):
    """EVS whose choice is looked at."""


@dataclass(frozen=True, kw_only=True)
class SeenVidCom2(Films, foveate.VidCom2):
    """VidCom2 whose choice is looked at."""


def still(family: str) -> dict[str, Tensor]:
    """The batch of videos and images in which each frame of a video is its first, pixel by pixel."""
    batch = dict(inputs(family, "video"))
    pixels = batch["pixel_values_videos"].clone()
    if "video_grid_thw" in batch:
        sizes = batch["video_grid_thw"].tolist()
        parts = pixels.split([frames * high * wide for frames, high, wide in sizes])
        one = [
            part[: high * wide].repeat(frames, *[1] * (part.ndim - 1))
            for part, (frames, high, wide) in zip(parts, sizes, strict=True)
        ]
        pixels = torch.cat(one)
    elif pixels.ndim == 5:  # videos, frames, channels, height, width
        pixels[:] = pixels[:, :1]
    else:  # frames one after another in the last dimension, two of each video
        frames = pixels.chunk(len(batch["target_sizes_videos"]), -1)
        pixels = torch.cat([frames[number - number % 2] for number in range(len(frames))], -1)
    return {**batch, "pixel_values_videos": pixels}


def run(family: str, pruner: Films) -> list[tuple[Tensor, Tensor]]:
    model = build(family)
    with pruner(model), torch.no_grad():
        model(**still(family))
    return pruner.found


FAMILIES = [family for family in WITH_VIDEOS if family not in ONE_FRAME]


@pytest.mark.parametrize("keep", [0.2, 0.75])
@pytest.mark.parametrize("family", FAMILIES)
def test_evs_keeps_the_first_frame_and_then_the_order(family, keep):
    found = run(family, SeenEVS(keep=keep))
    assert len(found) == 2, "a video in each of two samples"
    for states, kept in found:
        frames, size, _ = states.shape
        assert frames > 1
        assert torch.equal(states, states[:1].expand_as(states))
        number = max(size, int(keep * frames * size))
        assert kept.flatten().tolist() == [True] * number + [False] * (frames * size - number)


@pytest.mark.parametrize("family", FAMILIES)
def test_vidcom2_keeps_the_same_places_of_each_frame(family):
    found = run(family, SeenVidCom2(keep=0.4))
    assert len(found) == 2
    for _, kept in found:
        assert 0 < kept[0].sum() < kept.shape[1]
        assert torch.equal(kept, kept[:1].expand_as(kept))


@pytest.mark.parametrize("family", [family for family in ONE_FRAME if family in WITH_VIDEOS])
@pytest.mark.parametrize("method", [SeenEVS, SeenVidCom2])
def test_a_video_of_one_frame_stays_whole(family, method):
    pruner, model = method(keep=0.3), build(family)
    with pruner(model) as pruned, torch.no_grad():
        model(**still(family))
    assert not pruner.found, "it counts as an image"
    assert [len(kept) for kept in pruned.report.stages[0].kept] == pruned.report.stages[0].dense
