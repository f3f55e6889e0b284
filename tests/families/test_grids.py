"""Where each visual token lies: what a method sees, against plain loops and against the models' own arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from foveate import BTP, Random
from foveate.engine import attach
from foveate.engine.arguments import cache_of, with_cache
from foveate.families import FAMILIES, Family, Grid, Run, find_runs
from foveate.pruners import Pruner
from foveate.pruners.by_image import by_image
from foveate.testing.reference import prompt_positions
from tests.models.build import (
    BUILDERS,
    IMAGE,
    LAYOUTS,
    UNPLACED,
    WITH_VIDEOS,
    build,
    generate,
    inputs,
    pictures,
    visual,
)
from tests.models.images import VISION_END, VISION_START


@dataclass(frozen=True, kw_only=True)
class Probe(Pruner):
    """Keeps every third token before layer 1, all of them before layer 3, and all that it was shown."""

    name: ClassVar[str] = "probe"
    paper: ClassVar[str] = "test"
    summary: ClassVar[str] = "test"
    seen: list = field(default_factory=list)

    def layers(self, depth):
        return (1, 3)

    def select(self, tokens):
        self.seen.append(tokens)
        third = torch.arange(tokens.valid.shape[1]) % 3 == 1
        return tokens.valid & (third if tokens.layer == 1 else torch.tensor(True))


def shown(model, batch, how="generate", family=None):
    probe = Probe()
    with attach(model, probe, family=family), torch.no_grad():
        if how == "forward":
            model(**batch)
        else:
            generate(model, batch, 1, num_beams=2 if how == "beams" else 1)
    return probe.seen


def by_hand(seen):
    """(image, grid, row, column) of each visual token of a sample, from its images' grids."""
    places, number = [], 0
    for image, one in enumerate(seen):
        for grid in one.grids:
            for row in range(grid.height):
                places += [(image, number, row, column) for column in range(grid.width)]
                places += [(image, -1, -1, -1)] * grid.row_ends
            places += [(image, -1, -1, -1)] * grid.after
            number += 1
    return places


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        (family, layout)
        for family in BUILDERS
        for layout in LAYOUTS
        if layout != "no image"
        if layout != "video" or family in WITH_VIDEOS
    ],
)
@pytest.mark.parametrize("how", ["generate", "forward", "beams"])
def test_a_method_sees_where_each_token_lies(family, layout, how):
    if how == "beams" and family.startswith("glm") and layout != "one image":
        pytest.skip("generate() of this transformers mixes up the images of beams")
    if how == "beams" and family == "llama4":
        pytest.skip("generate() of this transformers does not repeat the images of beams")
    if how != "forward" and family in UNPLACED:
        pytest.skip("generate() takes away what says how many rows an image has")
    batch = inputs(family, layout)
    samples, there = pictures(family, layout), visual(batch)
    first, second = shown(build(family), batch, how)
    beams = 2 if how == "beams" else 1
    for tokens in (first, second):
        assert tokens.grids_known
        assert tokens.grids == tuple(
            tuple(grid for one in sample for grid in one.grids) for sample in samples for _ in range(beams)
        )
        for row in range(len(samples) * beams):
            places = by_hand(samples[row // beams])
            position = there[row // beams].nonzero().flatten().tolist()
            assert len(places) == len(position)
            expected = dict(zip(position, places, strict=True))
            valid = tokens.valid[row]
            fields = (tokens.image, tokens.grid, tokens.row, tokens.column)
            found = list(zip(*(one[row, valid].tolist() for one in fields), strict=True))
            assert found == [expected[place] for place in tokens.position[row, valid].tolist()]
            assert all((one[row, ~valid] == -1).all() for one in fields)
    assert (second.valid.sum(-1) < first.valid.sum(-1)).any()


def test_an_image_of_its_own_has_its_grids():
    tokens = shown(build("idefics3"), inputs("idefics3", "ragged with text only"))[0]
    found = []
    for images in by_image(tokens):
        mine = images.tokens
        assert mine.dense.tolist() == mine.present.tolist() == mine.valid.sum(-1).tolist()
        assert 2 * int(mine.dense.min()) >= int(mine.dense.max())
        for row, valid in enumerate(mine.valid):
            place, sample = images.place[row, valid], int(images.place[row, 0]) // tokens.valid.shape[1]
            found += place.tolist()
            assert (mine.image[row, valid] == mine.image[row, 0]).all()
            for name in ("position", "row", "column"):
                assert torch.equal(getattr(mine, name)[row, valid], getattr(tokens, name).flatten()[place])
            pairs = {*zip(mine.grid[row, valid].tolist(), tokens.grid.flatten()[place].tolist(), strict=True)}
            assert all((new < 0) == (old < 0) for new, old in pairs)
            pairs = sorted(pair for pair in pairs if pair[0] >= 0)
            assert mine.grids[row] == tuple(mine.grids[row][new] for new, _ in pairs)
            assert all(mine.grids[row][new] is tokens.grids[sample][old] for new, old in pairs)
    assert sorted(found) == tokens.valid.flatten().nonzero()[:, 0].tolist()


@pytest.mark.parametrize("family", BUILDERS)
def test_a_prompt_that_ends_inside_an_image(family):
    """The tokens that come after the last one are not there to be pruned, but the grid is as large as it is."""
    batch = inputs(family, "one image")
    labels = batch["input_ids"].clone()
    last = int(visual(batch)[0].nonzero().flatten()[-3])
    labels[:, : last + 1] = -100  # as if the answer began two tokens before the image ends
    tokens = shown(build(family), {**batch, "labels": labels}, "forward")[0]
    places = by_hand(pictures(family, "one image")[0])
    assert tokens.grids == (pictures(family, "one image")[0][0].grids,)
    assert list(zip(tokens.grid[0].tolist(), tokens.row[0].tolist(), tokens.column[0].tolist(), strict=True)) == [
        place[1:] for place in places[:-3]
    ]


@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_a_second_turn_with_other_images(family):
    model = build(family)
    first, second = inputs(family, "one image"), inputs(family, "two images")
    probe = Probe()
    with attach(model, probe), torch.no_grad():
        cache = cache_of(model(**first, use_cache=True))
        mask = torch.cat([first["attention_mask"], second["attention_mask"]], -1)
        model(**{**second, "attention_mask": mask}, **with_cache(model, cache))
    tokens, (seen,) = probe.seen[2], pictures(family, "two images")
    past = first["input_ids"].shape[1]
    assert tokens.grids == (tuple(grid for one in seen for grid in one.grids),)
    assert tokens.position[0].tolist() == (visual(second)[0].nonzero().flatten() + past).tolist()
    assert tokens.row[0].tolist() == [place[2] for place in by_hand(seen)]


class Unknown(Family):
    def image_grids(self, config, kwargs, runs):
        return None


def test_an_unknown_layout_is_one_row_a_run_and_is_said():
    model, batch = build("internvl"), inputs("internvl", "ragged")
    family = Unknown("internvl", "", "")
    tokens = shown(model, batch, family=family)[0]
    assert not tokens.grids_known
    assert tokens.grids == (
        (Grid(1, 48, known=False),),
        (Grid(1, 16, known=False), Grid(1, 32, known=False)),
        (Grid(1, 48, known=False),),
    )
    assert tokens.column[1].tolist() == [*range(16), *range(32)]
    for pruner, said in ((BTP(stages=[(1, 0.5, 0.5)]), True), (Random(keep=0.5), False)):
        for given in (family, None):
            with attach(model, pruner, family=given) as pruned:
                generate(model, batch, 1)
            assert any("single row of tokens" in note for note in pruned.report.notes) == (said and given is not None)


def test_runs():
    ids = torch.tensor([[7, 90, 90, 91, 5, 90], [90, 90, 3, 4, 90, 90]])
    there = (ids >= 90) & torch.tensor([[True] * 6, [True] * 5 + [False]])
    assert find_runs(there, ids) == [
        Run(0, 1, 2, 90, 7),
        Run(0, 3, 1, 91, 90),
        Run(0, 5, 1, 90, 5),
        Run(1, 0, 2, 90, None),
        Run(1, 4, 1, 90, 4),
    ]
    assert find_runs(there, None) == [Run(0, 1, 3), Run(0, 5, 1), Run(1, 0, 2), Run(1, 4, 1)]


def test_lengths():
    grid = Grid(3, 4, row_ends=1, after=2)
    assert (grid.cells, grid.length) == (12, 17)
    assert Grid.square(16) == Grid(4, 4)
    assert Grid.square(17) == Grid(1, 17, known=False)


# -- the models' own arithmetic

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SIZES = [(336, 336), (480, 640), (640, 480), (1000, 100), (100, 1000), (333, 777), (17, 16), (2000, 1999), (641, 427)]


def packed(config, size):
    """Features of an image of this size that say (grid, row, column), packed by the model; newlines say -1."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    high, wide = LARGE[size]
    cell = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(-1, 2)
    crops = [torch.nn.functional.pad(cell, (1, 0), value=0)]
    for down in range(high):
        for across in range(wide):
            there = cell + torch.tensor([down * side, across * side])
            crops.append(torch.nn.functional.pad(there, (1, 0), value=1))
    (features,), _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config),
        [torch.stack(crops).float()],
        torch.tensor([size]),
        "default",
        image_newline=torch.full((3,), -1.0),
    )
    return features


# crops down and across that fit each size best, worked out by hand from the pinpoints
LARGE = dict(zip(SIZES, [(1, 2), (2, 2), (2, 2), (3, 1), (1, 3), (1, 3), (1, 2), (2, 2), (2, 2)], strict=True))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("encoded", [False, True], ids=["sizes", "features"])
def test_llava_next_packs_as_the_grids_say(size, encoded):
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=336, patch_size=14), image_grid_pinpoints=PINPOINTS
    )
    features = packed(config, size)
    given = {"image_sizes": torch.tensor([size])}
    if encoded:
        given = {"mm_encoder_outputs": {"image": SimpleNamespace(pooler_output=[features])}}
    (image,) = FAMILIES["llava_next"].image_grids(config, given, [Run(0, 0, len(features))])
    assert sum(grid.length for grid in image) == len(features)
    expected = torch.tensor([place[1:] for place in by_hand([SimpleNamespace(grids=image)])])
    large = features[:, 0] == 1
    padding = torch.where(large[:, None], features[large].amin(0), torch.zeros(3))
    padding[:, 0] = 0
    assert torch.equal(features - padding, expected.float())


def test_llava_next_features_with_newlines_out_of_step_are_not_guessed_at():
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=32, patch_size=8))
    features = torch.randn(40, 3)
    features[20] = features[39]  # the first row would be 4 long, but then the rows do not fill the image
    given = {"mm_encoder_outputs": {"image": SimpleNamespace(pooler_output=[features])}}
    (image,) = FAMILIES["llava_next"].image_grids(config, given, [Run(0, 0, 40)])
    assert image == (Grid(1, 40, known=False),)


@pytest.mark.parametrize("family", ["internvl", "idefics3", "smolvlm", "aya_vision", "cohere2_vision"])
def test_a_crop_comes_out_of_the_pixel_shuffle_row_by_row(family):
    model = build(family).model
    cell = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1)[None]
    if family == "internvl":
        out = model.pixel_shuffle(cell, scale_factor=model.config.downsample_ratio).reshape(16, 4, 2)
    elif family in ("aya_vision", "cohere2_vision"):
        out = model.multi_modal_projector.pixel_shuffle(cell.view(1, 64, 2)).reshape(16, 4, 2)
    else:
        out = model.connector.pixel_shuffle(cell.view(1, 64, 2), model.config.scale_factor).view(16, 4, 2)
    corner = out.amin(1) / 2
    assert corner.tolist() == [[row, column] for row in range(4) for column in range(4)]


@pytest.mark.parametrize(
    "family",
    [family for family in WITH_VIDEOS if hasattr(build(family).model, "get_rope_index") and family != "minicpmv4_7"],
)
@pytest.mark.parametrize("layout", ["ragged", "video"])
def test_rotary_positions_run_along_rows_and_columns(family, layout):
    model, batch = build(family), inputs(family, layout)
    axes = prompt_positions(model, batch, 0)[1:].long()
    tokens = shown(model, batch, "forward")[0]
    for sample in range(len(batch["input_ids"])):
        for number in range(len(tokens.grids[sample])):
            mine = tokens.grid[sample] == number
            places = tokens.position[sample, mine]
            high, wide = axes[1:, sample, places]
            assert torch.equal(high - high.min(), tokens.row[sample, mine])
            assert torch.equal(wide - wide.min(), tokens.column[sample, mine])


@pytest.mark.parametrize("encoded", [False, True], ids=["sizes", "features"])
def test_qwen_images_of_several_frames_and_single_rows(encoded):
    config = SimpleNamespace(
        video_token_id=91, vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)
    )
    sizes = torch.tensor([[1, 2, 12], [3, 4, 6], [1, 12, 2], [2, 2, 2]])
    lengths = (sizes.prod(-1) // 4).tolist()
    ids = [word for length in lengths for word in (VISION_START, *[IMAGE] * length, VISION_END)]
    ids = torch.tensor([ids])
    given = {"image_grid_thw": sizes}
    if encoded:
        axes, _ = build("qwen2_5_vl").model.get_rope_index(ids, (ids == IMAGE).int(), image_grid_thw=sizes)
        features = SimpleNamespace(pooler_output=torch.zeros(sum(lengths), 3).split(lengths))
        given = {"position_ids": axes, "mm_encoder_outputs": {"image": features}}
    runs = find_runs(ids == IMAGE, ids)
    assert FAMILIES["qwen2_5_vl"].image_grids(config, given, runs) == [
        (Grid(1, 6),),
        (Grid(2, 3),) * 3,
        (Grid(6, 1),),
        (Grid(1, 1),) * 2,
    ]
    if encoded:  # positions of text, or none
        for positions in (torch.arange(ids.shape[1]).expand(3, 1, -1), None):
            given["position_ids"] = positions
            grids = FAMILIES["qwen2_5_vl"].image_grids(config, given, runs)
            assert grids == [(Grid(1, length, known=False),) for length in lengths]
