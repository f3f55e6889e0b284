"""EVS and VidCom2 against their rules, token by token; what is no video stays whole."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import foveate
from foveate.errors import BudgetError
from foveate.families import Grid
from foveate.pruners.films import films
from tests.pruners.visual_tokens import visual_tokens

FRAME = Grid(3, 4)
TWO = [FRAME, FRAME, dataclasses.replace(FRAME, after=1), Grid(2, 2)], [Grid(2, 2), FRAME, FRAME]
IMAGES = [0, 0, 0, 1], [0, 1, 2]  # the second sample's frames are images of their own


def video_tokens():
    """A video of three frames and an image; and three images."""
    tokens = visual_tokens([list(row) for row in TWO])
    for sample, (grids, images) in enumerate(zip(TWO, IMAGES, strict=True)):
        number = [image for grid, image in zip(grids, images, strict=True) for _ in range(grid.length)]
        tokens.image[sample, : len(number)] = torch.tensor(number)
    return tokens


def kept(pruner, tokens) -> list[int]:
    """The tokens of the one video; all else must be whole."""
    keep = pruner.select(tokens)
    assert torch.equal(keep[0, 36:], tokens.valid[0, 36:])
    assert torch.equal(keep[1], tokens.valid[1])
    return keep[0, :36].nonzero()[:, 0].tolist()


def test_where_videos_are():
    ((sample, columns),) = films(video_tokens())
    assert sample == 0
    assert columns.tolist() == [[*range(12)], [*range(12, 24)], [*range(24, 36)]]


def test_columns_pass_over_the_separators_of_rows():
    ended = Grid(2, 2, row_ends=1)
    tokens = visual_tokens([[ended, ended]])
    tokens.image.zero_()
    ((_, columns),) = films(tokens)
    assert columns.tolist() == [[0, 1, 3, 4], [6, 7, 9, 10]]


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.8])
def test_evs(keep):
    tokens = video_tokens()
    rows = tokens.features[0].double()
    change = {
        token: 1 - float(rows[token] @ rows[token - 12] / rows[token].norm() / rows[token - 12].norm())
        for token in range(12, 36)
    }
    number = max(12, math.floor(36 * keep))
    best = sorted(change, key=change.get, reverse=True)[: number - 12]
    assert kept(foveate.EVS(keep=keep), tokens) == sorted([*range(12), *best])


@pytest.mark.parametrize(("keep", "number"), [(0.2, 12), (0.5, 18)])
def test_evs_of_a_film_that_stands_still_keeps_the_first_frame_and_then_the_order(keep, number):
    tokens = video_tokens()
    tokens.features[0, 12:24] = tokens.features[0, 24:36] = tokens.features[0, :12]
    assert kept(foveate.EVS(keep=keep), tokens) == [*range(number)]


def test_evs_of_a_film_that_comes_to_rest_goes_by_order_from_there():
    tokens = video_tokens()
    tokens.features[0, 24:36] = tokens.features[0, 12:24]
    assert kept(foveate.EVS(keep=0.8), tokens) == [*range(28)]


@pytest.mark.parametrize("keep", [0.05, 0.4, 0.9])
def test_vidcom2(keep):
    tokens = video_tokens()
    tokens.features[0, 12:24] += 1.5  # a frame that stands out
    rows = tokens.features[0, :36].double()
    quiet = sorted(range(8), key=lambda channel: float(rows[:, channel].var()))[:4]
    rows = rows[:, quiet] / rows[:, quiet].norm(dim=1, keepdim=True)

    def likeness(row, mean):
        return sum(math.exp(-float((row - mean).square().sum()) / (2 * 2.0**power)) for power in (-3, -2, -1, 0, 1))

    video = [likeness(row, rows.mean(0)) for row in rows]
    frames = [range(12), range(12, 24), range(24, 36)]
    unlike = [-sum(video[token] for token in frame) / 12 for frame in frames]
    powers = [math.exp((one - max(unlike)) / 0.01) for one in unlike]
    wanted = []
    for frame, power in zip(frames, powers, strict=True):
        number = max(1, round(min(1, keep * (1 + power / sum(powers) - 1 / 3)) * 12))
        mean = rows[frame.start : frame.stop].mean(0)
        wanted += sorted(frame, key=lambda token, mean=mean: video[token] + likeness(rows[token], mean))[:number]
    assert kept(foveate.VidCom2(keep=keep), tokens) == sorted(wanted)


@pytest.mark.parametrize("method", [foveate.EVS, foveate.VidCom2])
def test_counts_are_refused(method):
    with pytest.raises(BudgetError, match="a share in .0, 1. here, no count"):
        method(keep=64)
