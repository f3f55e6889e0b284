"""Which runs of visual tokens belong to which image or video, where the number of tokens of each is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.families.grids import Grid, Run

Places = list[tuple[int, int, int]]


def take_turns(
    runs: Sequence[Run], lengths: Sequence[Sequence[int]], video_token: int
) -> list[tuple[int, int, Places]] | None:
    """Images and videos in prompt order; a video may take several runs, with timestamps between (Qwen3-VL).

    Parameters
    ----------
    lengths
        Tokens of each image, and of each video.

    Returns
    -------
    list or None
        For each: 0 for an image or 1 for a video, its number among those, and its (sample, start, length) places.
        None where runs and lengths do not go together.
    """
    if any(run.token is None for run in runs) and all(lengths):
        return None
    found: list[tuple[int, int, Places]] = []
    taken, left = [0, 0], 0
    for run in runs:
        start, end = run.start, run.start + run.length
        while start < end:
            if not left:
                kind = int(run.token == video_token if all(lengths) else not lengths[0])
                if taken[kind] == len(lengths[kind]):
                    return None
                left = lengths[kind][taken[kind]]
                found.append((kind, taken[kind], []))
                taken[kind] += 1
            step = min(left, end - start)
            found[-1][2].append((run.sample, start, step))
            start, left = start + step, left - step
    return found if not left and taken == [len(lengths[0]), len(lengths[1])] else None


def in_turn(
    runs: Sequence[Run], images: Sequence[tuple[Grid, ...]], videos: Sequence[tuple[Grid, ...]], video_token: int
) -> list[tuple[Grid, ...]] | None:
    """Grids of images and videos in prompt order; None where they and the runs do not go together."""
    kinds = images, videos
    lengths = [[sum(grid.length for grid in one) for one in kind] for kind in kinds]
    pieces = take_turns(runs, lengths, video_token)
    return None if pieces is None else [kinds[kind][number] for kind, number, _ in pieces]


def where_grids_lie(
    runs: Sequence[Run], grids: Sequence[Grid], features: Sequence[Tensor] | None = None
) -> list[tuple[int, Places, Grid]] | None:
    """Where each image lies, and its grid; None where images, runs and grids do not go together.

    Parameters
    ----------
    runs
        Unbroken runs of visual tokens in prompt order over the batch.
    grids
        Of the images as they were encoded, before the beams.
    features
        Of each image, in prompt order, where it is encoded; with beams those of a sample come again for each of them.

    Returns
    -------
    list or None
        For each image its sample, its (sample, start, length) places and its grid.
    """
    features = [torch.empty(grid.length, 0) for grid in grids] if features is None else features
    pieces = take_turns(runs, [[len(image) for image in features], []], -1)
    if pieces is None or not grids or len(pieces) % len(grids):
        return None
    beams = len(pieces) // len(grids)
    of_sample: dict[int, list[Places]] = {}
    for _, _, places in pieces:
        of_sample.setdefault(places[0][0], []).append(places)
    found: list[tuple[int, Places, Grid]] = []
    own: Sequence[Grid] = ()
    encoded: Sequence[Tensor] = ()  # of the sample whose beams follow
    first = 0
    for sample, images in of_sample.items():
        here = features[len(found) : len(found) + len(images)]
        if sample % beams == 0:
            own, encoded = grids[first : first + len(images)], here
            first += len(images)
        elif len(here) != len(encoded) or any(a is not b for a, b in zip(here, encoded, strict=True)):
            return None  # no beam, but another image
        if [grid.length for grid in own] != [sum(length for *_, length in places) for places in images]:
            return None
        found += [(sample, places, grid) for places, grid in zip(images, own, strict=True)]
    return found if first == len(grids) else None


def frames_of(kwargs: Mapping[str, Any], cells: int) -> tuple[int, int]:
    """Number of videos in the arguments of the base model's forward, and of frames in each, of `cells` tokens each."""
    encoded = (kwargs.get("mm_encoder_outputs") or {}).get("video")
    if encoded is not None:
        videos, length, _ = encoded.pooler_output.shape
        return videos, length // cells
    pixels = kwargs.get("pixel_values_videos")
    return (0, 0) if pixels is None else tuple(pixels.shape[:2])
