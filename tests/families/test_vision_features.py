"""What the vision encoder put out for each visual token: against codes planted in the encoder, and against the model's
own way from the encoder to the language model."""

from __future__ import annotations

import functools

import pytest
import torch

from foveate import errors
from foveate.families import Family, family_of
from foveate.families.qwen import _window_order
from foveate.families.vision_encoder import average_squares
from tests.models import TINY
from tests.models.build import AVERAGED, LAYOUTS, SEEING, WITH_VIDEOS, build, inputs, pictures, visual
from tests.models.images import LLAVA_NEXT_SIZES, SIZED
from tests.vision_probe import ENCODES_FIRST, MIXED_UP, TILED, hooked, looked

CASES = [
    (family, layout)
    for family in SEEING
    for layout in LAYOUTS
    if layout != "no image"
    if layout != "video" or family in WITH_VIDEOS
    if (family, layout) not in AVERAGED
]
# patches along the side of a token; all the others: 2
MERGED = dict.fromkeys(
    (
        "llava",
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "pixtral",
        "paligemma",
        "paligemma2",
        "vipllava",
        "deepseek_vl",
    ),
    1,
) | {family: tiny.merged for family, tiny in TINY.items()}
PACKED = ("mistral3", "pixtral", *(family for family, tiny in TINY.items() if tiny.packed))
WITHOUT_CLASS_TOKEN = (
    *(family for family in TINY if family != "llama4"),
    "idefics3",
    "smolvlm",
    "llava_onevision",
    "paligemma",
    "paligemma2",
    "gemma3",
    "deepseek_vl",
    "aya_vision",
    "cohere2_vision",
)
GROUPED = ("qwen", "exaone")  # their patches come in merge groups, one after another
HOWS = pytest.mark.parametrize("how", ["generate", "forward", "beams"])


def one_by_one(family, layout):
    """Whether images that are repeated one by one are also repeated sample by sample."""
    return layout == "one image" and family not in ("llava_next", "granite_vision", "llama4", *TILED)


# -- codes: each patch says which grid it lies on, in which row, in which column


def code(number, high, wide):
    """(high * wide, 3) patches of grid `number` in raster order."""
    rows, columns = torch.arange(high).repeat_interleave(wide), torch.arange(wide).repeat(high)
    return torch.stack([torch.full_like(rows, number), rows, columns], -1).float()


def codes(family, samples):
    """What the encoder takes for patches, as its processor orders them: for each call, (..., 3)."""
    images = [[one for sample in samples for one in sample if one.video == video] for video in (False, True)]
    numbers = {id(one): number for number, one in enumerate(images[0] + images[1])}
    if family in TINY and TINY[family].codes:
        made = functools.partial(TINY[family].codes, code=lambda one, *shape: code(numbers[id(one)], *shape))
        return [call for kind in filter(None, images) for call in made(kind)]
    if family.startswith(SIZED):  # each frame in groups of 2 x 2 patches
        calls = []
        for kind in filter(None, images):
            frames = []
            for one in kind:
                time, high, wide = one.size
                frame = code(numbers[id(one)], high, wide).view(high // 2, 2, wide // 2, 2, 3).transpose(1, 2)
                frames += [frame.reshape(-1, 3)] * time
            calls.append(torch.cat(frames))
        return calls
    if family in PACKED:  # one row of all
        merged, calls = MERGED.get(family, 2), []
        for kind in filter(None, images):
            rows = [
                code(numbers[id(one)], merged * grid.height, merged * grid.width).repeat(
                    one.size[0] if one.video else 1, 1
                )
                for one in kind
                for grid in one.grids
            ]
            calls.append(torch.cat(rows)[None])
        return calls
    if family == "step3p7":  # the whole of each, then the tiles
        grids = [(numbers[id(one)], grid) for one in images[0] for grid in one.grids]
        sides = (16, 8)
        calls = [[code(number, side, side) for number, grid in grids if 4 * grid.height == side] for side in sides]
        return [torch.stack(call) for call in calls if call]
    tiles = []
    for number, one in enumerate(images[0]):
        side = 4 * MERGED.get(family, 2)
        if len(one.grids) == 2 and one.grids[1].row_ends:  # the tiles behind the first are cut out of one grid
            size, crops, _ = LLAVA_NEXT_SIZES[number % 3]
            down, across = (2, 2) if crops == 4 else ((1, 2) if size[0] < size[1] else (2, 1))
            large = code(number, down * side, across * side).view(down, side, across, side, 3).transpose(1, 2)
            tiles += [code(number, side, side), *large.reshape(-1, side * side, 3)]
        else:
            tiles += [code(number, side, side)] * len(one.grids)
    tiles = torch.stack(tiles)
    calls = [tiles]
    if family == "llava_next_video" and images[1]:
        calls.append(torch.stack([code(numbers[id(one)], 4, 4) for one in images[1] for _ in one.grids]))
    if family in WITHOUT_CLASS_TOKEN:
        return calls
    if family == "llama4":  # where it comes last
        return [torch.nn.functional.pad(call, (0, 0, 0, 1), value=-99) for call in calls]
    return [torch.nn.functional.pad(call, (0, 0, 1, 0), value=-99) for call in calls]


# rows and columns of padding above and left of LLaVA-NeXT's large grids, worked out by hand
PADDING = [(1, 0), (0, 0), (0, 1)]


def planted(family, model, samples):
    """Hooks that plant the codes and let every block pass them on as they are."""
    calls = codes(family, samples)

    def plant(hidden):
        found = next(one for one in calls if one[..., 0].numel() == hidden[..., 0].numel()).view(*hidden.shape[:-1], 3)
        return torch.nn.functional.pad(found, (0, hidden.shape[-1] - 3))

    blocks = family_of(model).vision_blocks(model)
    if family == "llama4":  # whose blocks are called by keywords

        def begin(module, args, kwargs):
            return args, {**kwargs, "hidden_state": plant(kwargs["hidden_state"])}

        def go_on(module, args, kwargs, out):
            return (kwargs["hidden_state"], *out[1:])

        handles = [block.register_forward_hook(go_on, with_kwargs=True) for block in blocks]
        return [blocks[0].register_forward_pre_hook(begin, with_kwargs=True), *handles]
    handles = [block.register_forward_hook(lambda _, args, out: args[0]) for block in blocks]
    handles += TINY[family].between(model) if family in TINY else []
    if family.startswith(GROUPED):  # before the encoder's own reordering; positions are added to nothing
        encoder = model.model.visual
        handles.append(encoder.patch_embed.register_forward_hook(lambda _, args, out: plant(out)))
        if family.startswith("qwen3"):
            handles.append(encoder.pos_embed.register_forward_hook(lambda _, args, out: torch.zeros_like(out)))
    else:
        handles.append(blocks[0].register_forward_pre_hook(lambda _, args: (plant(args[0]), *args[1:])))
    return handles


@pytest.mark.oldest
@pytest.mark.parametrize(("family", "layout"), CASES)
@HOWS
def test_each_token_gets_the_mean_of_its_own_patches(family, layout, how):
    model, samples = build(family), pictures(family, layout)
    if how == "beams" and not ENCODES_FIRST:
        pytest.skip("generate() of this transformers encodes every image for each beam")
    if family in MIXED_UP and how == "beams" and not one_by_one(family, layout):
        pytest.skip("generate() of this transformers mixes up the images of beams")
    if (family, layout, how) == ("perception_lm", "video", "beams"):
        pytest.skip("generate() repeats its videos for beams before they are encoded, and its images afterwards")
    with hooked(*planted(family, model, samples)):
        stages = looked(model, inputs(family, layout), how)
    images = [one for sample in samples for one in sample if not one.video]
    videos = [one for sample in samples for one in sample if one.video]
    numbers = {id(one): number for number, one in enumerate(images + videos)}
    beams = 2 if how == "beams" else 1
    assert len(stages) == 2
    for tokens in stages:
        for row, valid in enumerate(tokens.valid):
            sample = samples[row // beams]
            for output in tokens.vision:
                found = output[row, valid, :3].tolist()
                for token, column in enumerate(valid.nonzero().flatten().tolist()):
                    if int(tokens.grid[row, column]) < 0:
                        assert found[token] == [0, 0, 0]
                        continue
                    seen = sample[int(tokens.image[row, column])]
                    number = numbers[id(seen)]
                    merged = 2 if seen.video and family not in TINY else MERGED.get(family, 2)
                    place = [int(tokens.row[row, column]), int(tokens.column[row, column])]
                    if tokens.grids[row][int(tokens.grid[row, column])].row_ends:
                        place = [a + b for a, b in zip(place, PADDING[number % 3], strict=True)]
                    assert found[token] == [number, *(merged * one + (merged - 1) / 2 for one in place)]
                assert (output[row, ~valid] == 0).all()


# -- the model's own way: the projector is made to average the patches of a token, and the model does the rest

# the block whose output the projector gets; all the others: the last
INTO_PROJECTOR = dict.fromkeys(("llava", "llava_next", "llava_next_video", "vipllava"), 1)


NORMED = ("paligemma", "paligemma2", "gemma3", "deepseek_vl", "cohere2_vision")


def averaging(family, model):
    """Hooks that make the projector's output, in its first channels, the mean of the patches it was given."""

    def average(module, args, out):
        patches = args[0]
        if family.startswith(GROUPED):
            mean = patches.view(-1, 4, patches.shape[-1]).mean(1)
        elif family == "mistral3":
            sizes = [(high // 4, wide // 4) for high, wide in args[1].tolist()]
            images = patches.split([high * wide for high, wide in sizes])
            squares = [
                image.view(high // 2, 2, wide // 2, 2, -1).mean((1, 3)).flatten(0, 1)
                for image, (high, wide) in zip(images, sizes, strict=True)
            ]
            mean = torch.cat(squares)
        elif family in ("gemma3", "aya_vision", "cohere2_vision"):
            mean = patches.view(-1, 4, 2, 4, 2, 32).mean((2, 4)).flatten(1, 2)
        else:
            mean = patches.unflatten(-1, (-1, 32)).mean(-2)
        return torch.nn.functional.pad(mean, (0, out.shape[-1] - 32))

    if family in TINY and TINY[family].average:
        return TINY[family].average(model)
    projector = family_of(model).vision_parts(model).projector
    if family.startswith("glm"):  # a convolution makes one of four patches, before the projector
        down, norm = model.model.visual.downsample, model.model.visual.post_layernorm
        return [
            norm.register_forward_hook(lambda _, args, out: args[0]),
            down.register_forward_hook(
                lambda _, args, out: torch.nn.functional.pad(args[0].mean((2, 3)), (0, 32))[..., None, None]
            ),
            projector.register_forward_hook(lambda _, args, out: args[0]),
        ]
    if family == "llama4":  # an MLP makes one of four patches, before the projector
        return [
            model.vision_model.layernorm_post.register_forward_hook(lambda _, args, out: args[0]),
            model.vision_model.vision_adapter.mlp.register_forward_hook(average),
            projector.register_forward_hook(
                lambda _, args, out: torch.nn.functional.pad(args[0][..., :32], (0, out.shape[-1] - 32))
            ),
        ]
    if family in ("idefics3", "smolvlm"):
        norm = model.model.vision_model.post_layernorm
        return [
            norm.register_forward_hook(lambda _, args, out: args[0].contiguous()),
            projector.modality_projection.register_forward_hook(average),
        ]
    handles = [projector.register_forward_hook(average)]
    if family in NORMED:  # a norm stands between the last block and the projector
        norm = next(one for name, one in model.named_modules() if name.endswith("post_layernorm"))
        handles.append(norm.register_forward_hook(lambda _, args, out: args[0]))
    return handles


def own_way(family, model, batch, how):
    """What a method is shown first, and (B, L, 32) what the language model got."""
    given = []

    def keep(module, args, kwargs):
        given.append(kwargs["inputs_embeds"][..., :32])

    handles = averaging(family, model)
    handles.append(model.get_decoder().register_forward_pre_hook(keep, with_kwargs=True))
    with hooked(*handles):
        tokens = looked(model, batch, how, blocks=(INTO_PROJECTOR.get(family, 2),))[0]
    return tokens, given[0]


@pytest.mark.oldest
@pytest.mark.parametrize(("family", "layout"), CASES)
@HOWS
def test_the_model_lines_them_up_alike(family, layout, how):
    model, batch = build(family), inputs(family, layout)
    if family in MIXED_UP and how == "beams" and not one_by_one(family, layout):
        pytest.skip("generate() of this transformers mixes up the images of beams")
    if (family, layout, how) == ("perception_lm", "video", "beams"):
        pytest.skip("generate() repeats its videos for beams before they are encoded, and its images afterwards")
    tokens, given = own_way(family, model, batch, how)
    (output,) = tokens.vision
    assert int(tokens.valid.sum()) == int(visual(batch).sum()) * (2 if how == "beams" else 1)
    for row, valid in enumerate(tokens.valid):
        expected = given[row][tokens.position[row, valid]].clone()
        expected[tokens.grid[row, valid] < 0] = 0  # newlines are no output of the encoder
        torch.testing.assert_close(output[row, valid], expected, atol=1e-6, rtol=0)
        assert len(expected.unique(dim=0)) >= len(expected) - int((tokens.grid[row, valid] < 0).sum())


# (height, width) in pixels: both lie in 4 x 8 tokens, the first in two tiles, the second in four, half of them padding
ALIKE = [(30, 60), (36, 60)]


@pytest.mark.parametrize("sizes", [(0,), (1,), (0, 1), (1, 0), (0, 1, 1, 0), (1, 1, 0)])
@HOWS
def test_llava_next_tells_tiles_apart_that_make_the_same_grid(sizes, how):
    generator = torch.Generator().manual_seed(5)
    tiles = [torch.randn((3, 5)[one], 3, 32, 32, generator=generator) for one in sizes]
    ids = [3, 4, *[90] * (16 + 4 * 9), 5, 6]
    batch = {
        "input_ids": torch.tensor([ids] * len(sizes)),
        "attention_mask": torch.ones(len(sizes), len(ids), dtype=torch.long),
        "pixel_values": torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True),
        "image_sizes": torch.tensor([ALIKE[one] for one in sizes]),
    }
    tokens, given = own_way("llava_next", build("llava_next"), batch, how)
    beams = 2 if how == "beams" else 1
    assert len(tokens.valid) == beams * len(sizes)
    assert all(grids[1].height == 4 for grids in tokens.grids)
    for row in range(len(tokens.valid)):
        expected = given[row][tokens.position[row]].masked_fill((tokens.grid[row] < 0)[:, None], 0)
        torch.testing.assert_close(tokens.vision[0][row], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("family", "layout"), AVERAGED)
@pytest.mark.parametrize("how", ["generate", "forward"])
def test_averaged_tokens_are_refused(family, layout, how):
    with pytest.raises(errors.UnsupportedModelError, match="averages") as caught:
        looked(build(family), inputs(family, layout), how)
    assert "\n" not in str(caught.value)


# -- pieces


@pytest.mark.oldest
@pytest.mark.parametrize("family", SEEING)
def test_blocks_are_found(family):
    model = build(family)
    blocks = family_of(model).vision_blocks(model)
    called = []
    handles = [
        block.register_forward_hook(lambda *_, number=number: called.append(number))
        for number, block in enumerate(blocks)
    ]
    with hooked(*handles), torch.no_grad():
        model(**inputs(family, "one image"))
    assert called == [0, 1, 2] * (len(called) // 3)  # once more where tiles are encoded apart
    assert called


def test_missing_pieces_are_named():
    class Model(torch.nn.Module):
        pass

    with pytest.raises(errors.UnsupportedModelError, match=r"get_encoder.*blocks.*projector") as caught:
        Family("elephant", "Elephant", "").vision_blocks(Model())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("patches", [16, 17])
@pytest.mark.parametrize("tokens", [16, 4, 1])
def test_squares(patches, tokens):
    output = torch.randn(3, patches, 5)
    side = int((16 // tokens) ** 0.5)
    grid = output[:, patches - 16 :].view(3, 4, 4, 5)
    expected = [
        grid[tile, row : row + side, column : column + side].mean((0, 1))
        for tile in range(3)
        for row in range(0, 4, side)
        for column in range(0, 4, side)
    ]
    torch.testing.assert_close(average_squares(output, tokens), torch.stack(expected))


@pytest.mark.parametrize(("patches", "tokens"), [(18, 16), (15, 16), (16, 3), (16, 2), (18, 4), (16, 0)])
def test_squares_that_do_not_fit(patches, tokens):
    with pytest.raises(errors.UnsupportedModelError, match="do not line up"):
        average_squares(torch.randn(2, patches, 5), tokens)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 8])
def test_window_order(window):
    """Against loops: windows of a frame row by row, and in each its tokens row by row."""
    sizes = [(1, 8, 12), (2, 14, 6), (1, 2, 2), (3, 6, 18)]
    in_windows, first = [], 0
    for time, high, wide in sizes:
        high, wide = high // 2, wide // 2
        for frame in range(time):
            for top in range(0, high, window):
                for left in range(0, wide, window):
                    for row in range(top, min(top + window, high)):
                        for column in range(left, min(left + window, wide)):
                            in_windows.append(first + (frame * high + row) * wide + column)
        first += time * high * wide
    order = _window_order(sizes, 2, window).tolist()
    assert [in_windows[place] for place in order] == list(range(first))
