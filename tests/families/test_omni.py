"""Sounds beside images and between the frames of a video: their tokens stay, and the visual ones are found."""

from __future__ import annotations

import pytest
import torch

from foveate import Random
from foveate.engine.arguments import cache_of
from foveate.families import Grid
from foveate.testing import check_laws
from tests.families.test_grids import shown
from tests.laws.methods import METHODS
from tests.models import TINY
from tests.models.build import build, generate
from tests.models.images import IMAGE, SIDE, VIDEO, VISION_END, VISION_START
from tests.models.omni import MELS, SOUND, SOUND_END, SOUND_START, omni_film, omni_inputs, omni_picture
from tests.models.sizes import PAD

FAMILIES = [family for family in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker") if family in TINY]
pytestmark = pytest.mark.skipif(not FAMILIES, reason="this transformers has no such model")
# frames of a sound, and the tokens that it makes: worked out by hand; in Qwen3-Omni's encoder the padding of a shorter
# sound reaches into it, so that the dense model already gives it other features in a batch than alone
LENGTHS = {"qwen2_5_omni_thinker": [(30, 7), (20, 5)], "qwen3_omni_moe_thinker": [(50, 7), (50, 7)]}
CHOSEN = ("fastv", "greedyprune compacted", "btp", "glimpseprune", "glimpseprune two tokens", "ladder")


def heard(family, rows):
    """Inputs of rows of text (lists of ids), pictures, films and numbers of sounds, left padded."""
    generator = torch.Generator().manual_seed(7)
    sounds, seen, words = [], [], []
    for row in rows:
        ids, shown_here = [], []
        for part in row:
            if isinstance(part, int):
                frames, tokens = LENGTHS[family][part]
                sounds.append(torch.randn(MELS, frames, generator=generator))
                ids += [SOUND_START, *[SOUND] * tokens, SOUND_END]
            elif isinstance(part, list):
                ids += part
            else:
                one, sound = part
                shown_here.append(one)
                if sound is None:
                    ids += one.ids
                else:
                    sounds.append(torch.randn(MELS, LENGTHS[family][sound][0], generator=generator))
                    ids += between(LENGTHS[family][sound][1])
        words.append(ids)
        seen.append(shown_here)
    longest = max(map(len, words))
    batch = {
        "input_ids": torch.tensor([[PAD] * (longest - len(ids)) + ids for ids in words]),
        "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in words]),
        **omni_inputs(seen),
    }
    if sounds:
        most = max(sound.shape[1] for sound in sounds)
        batch["input_features"] = torch.stack(
            [torch.nn.functional.pad(sound, (0, most - sound.shape[1])) for sound in sounds]
        )
        batch["feature_attention_mask"] = torch.tensor(
            [[1] * sound.shape[1] + [0] * (most - sound.shape[1]) for sound in sounds]
        )
    return batch


def between(tokens):
    """A video of two frames a second apart, four sound tokens a second: after each frame its second is heard."""
    frame = [VIDEO] * 16
    middle = [*frame, *[SOUND] * 4, *frame, *[SOUND] * (tokens - 4)]
    return [VISION_START, SOUND_START, *middle, SOUND_END, VISION_END]


def pictures():
    generator = torch.Generator().manual_seed(3)
    return [(omni_picture(number, generator, False), None) for number in range(2)], omni_film(generator)


def beside():
    """Rows with sounds and images."""
    (small, large), _ = pictures()
    return [[[5, 6], 0, small, [7]], [[8], large, [9, 10], 1, [11]], [1, [12, 13]]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", CHOSEN)
def test_laws_with_sounds_beside_images(family, method):
    rows = beside()
    samples = alone(family, rows)
    for law in check_laws(build(family), heard(family, rows), METHODS[method], samples=samples):
        law.require()


def alone(family, rows):
    """Inputs of each row, with the sounds that it has in the batch."""
    batch, found, first = heard(family, rows), [], 0
    for row in rows:
        one = heard(family, [row])
        count = len(one.get("input_features", ()))
        if count:
            mask = batch["feature_attention_mask"][first : first + count]
            most = int(mask.sum(-1).max())
            one["input_features"] = batch["input_features"][first : first + count, :, :most]
            one["feature_attention_mask"] = mask[:, :most]
        first += count
        found.append(one)
    return found


def video_rows():
    (small, _), film = pictures()
    return [[[5, 6], (film, 0), [7]], [[8], small, [9, 10], (film, 1), [11]]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", CHOSEN)
def test_laws_with_sounds_between_frames(family, method):
    rows = video_rows()
    batch = heard(family, rows) | {"use_audio_in_video": True}
    samples = [one | {"use_audio_in_video": True} for one in alone(family, rows)]
    for law in check_laws(build(family), batch, METHODS[method], samples=samples):
        law.require()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["generate", "forward"])
def test_frames_are_found_between_sounds(family, how):
    batch = heard(family, video_rows()) | {"use_audio_in_video": True}
    tokens = shown(build(family), batch, how)[0]
    assert tokens.grids_known
    assert tokens.grids == ((SIDE, SIDE), (Grid(4, 6), SIDE, SIDE))
    for row, ids in enumerate(batch["input_ids"]):
        places = tokens.position[row, tokens.valid[row]]
        assert places.tolist() == ((ids == IMAGE) | (ids == VIDEO)).nonzero().flatten().tolist()
        assert tokens.row[row, tokens.valid[row]][-16:].tolist() == [cell // 4 for cell in range(16)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [beside, video_rows])
def test_every_token_of_a_sound_stays(family, rows):
    batch = heard(family, rows())
    if rows is video_rows:
        batch["use_audio_in_video"] = True
    visual = (batch["input_ids"] == IMAGE) | (batch["input_ids"] == VIDEO)
    with Random(keep=3, layer=2)(build(family)) as pruned:
        cache = cache_of(generate(build(family), batch, 1))
    assert pruned.report.stages[0].dense == visual.sum(-1).tolist()
    left = batch["attention_mask"].sum(-1) - visual.sum(-1) + visual.sum(-1).clamp(max=3)
    assert cache.layers[5].keys.shape[2] == int(left.max())
