"""The learned parts: sizes of the published shapes, attention inside images, the rotary table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import IncompatibleWeightsError
from foveate.families import Grid
from foveate.pruners.glimpseprune.modules import (
    GlimpseConfig,
    GlimpseModules,
    Segments,
    default_layer,
    published_vision_layers,
    rotary_angles,
    rotate,
)
from tests.pruners.visual_tokens import visual_tokens

# depth, hidden size, heads, vision blocks, vision width; then millions of parameters: predictor, glimpse
PUBLISHED = {
    "Qwen2.5-VL-3B": (36, 2048, 16, 32, 1280, 9.45, 4.27),
    "Qwen2.5-VL-7B": (28, 3584, 28, 32, 1280, 9.45, 12.95),
    "LLaVA-1.5-7B": (32, 4096, 32, 24, 1024, 8.93, 16.9),
    "LLaVA-1.5-13B": (40, 5120, 40, 24, 1024, 8.93, 26.4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    depth, hidden, heads, blocks, width, predictor, glimpse = PUBLISHED[name]
    layers = published_vision_layers(blocks)
    assert layers == {32: (31, 23, 15, 7), 24: (23, 17, 11, 5)}[blocks]
    with torch.device("meta"):
        modules = GlimpseModules(
            GlimpseConfig(depth, hidden, heads, default_layer(depth), vision_layers=layers, vision_size=width)
        )

    def millions(module):
        return sum(weight.numel() for weight in module.parameters()) / 1e6

    assert millions(modules.predictor) == pytest.approx(predictor, abs=0.006)
    assert millions(modules.glimpse) == pytest.approx(glimpse, abs=0.06)


@pytest.mark.parametrize(("depth", "layer"), [(28, 19), (32, 22), (36, 24), (40, 27), (12, 8)])
def test_two_thirds_of_the_depth(depth, layer):
    assert default_layer(depth) == layer


def test_rotation_by_rows_and_columns():
    """A dot product of two turned vectors depends on how far apart the cells are, and on nothing else."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 24)

    def product(first, second):
        angles = [rotary_angles(torch.tensor([cell]), 24)[:, None] for cell in (first, second)]
        turned = [rotate(x, (angle.cos(), angle.sin())) for x, angle in zip((query, key), angles, strict=True)]
        return float((turned[0] * turned[1]).sum())

    assert product((0, 0), (2, 3)) == pytest.approx(product((5, 1), (7, 4)), abs=1e-4)
    assert product((0, 0), (2, 3)) != pytest.approx(product((0, 0), (3, 2)), abs=1e-2)
    angles = rotary_angles(torch.tensor([[3, 0], [0, 3]]), 24)
    assert torch.equal(angles[0], angles[1].roll(6)), "half the frequencies for the row, half for the column"
    assert angles[0, 6:].abs().max() == 0
    assert angles[0, 0] == 3
    assert angles[0, 1] == pytest.approx(3 * 1e4 ** (-1 / 6))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1), st.integers(0, 2)), max_size=3),
        min_size=1,
        max_size=3,
    ).filter(lambda samples: any(samples)),
    st.integers(0, 1),
)
def test_attention_stays_inside_each_grid(samples, lost):
    """Against one dense attention with a block mask; `lost` tokens of the last sample are not there any more."""
    grids = [[Grid(*grid) for grid in grids] for grids in samples]
    tokens = visual_tokens(grids, lost)
    batch, number = tokens.valid.shape
    torch.manual_seed(1)
    query, key, value = (torch.randn(batch, number, 2, 8) for _ in range(3))
    segments = Segments.of(tokens)
    ours = segments.put(segments.attend(*map(segments.pick, (query, key, value)))[:, 0, 0], (batch, number), 0)
    same = (tokens.grid[:, :, None] == tokens.grid[:, None]) & (tokens.grid >= 0)[:, None]
    same = (same | torch.eye(number, dtype=torch.bool)) & tokens.valid[:, None]
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / 8**0.5
    dense = scores.masked_fill(~same[:, None], -1e9).softmax(-1) @ value.transpose(1, 2)
    expected = dense.transpose(1, 2)[..., 0, 0].masked_fill(~tokens.valid, 0)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 0}, "before layer 0"),
        ({"layer": 6}, "before layer 6"),
        ({"size": 10}, "multiple of 4"),
        ({"vision_layers": (1,)}, "without a width"),
        ({"attention": "raw"}, "'raw'"),
    ],
)
def test_sizes_that_make_no_sense(changes, message):
    sizes = {"depth": 6, "hidden_size": 64, "heads": 4, "layer": 4, "size": 16}
    with pytest.raises(IncompatibleWeightsError, match=message):
        GlimpseConfig(**{**sizes, **changes})


def test_another_models_weights():
    from tests.models.build import build

    model = build("llava")
    fitting = GlimpseConfig(depth=6, hidden_size=64, heads=4, layer=4, size=16)
    GlimpseModules(fitting).check(model)
    wrong = GlimpseConfig(depth=7, hidden_size=64, heads=8, layer=4, size=16)
    with pytest.raises(IncompatibleWeightsError, match="depth 7, not 6, heads 8, not 4"):
        GlimpseModules(wrong).check(model)


def test_no_map_of_n_by_n_is_written(monkeypatch):
    """torch's kernels that do without one want queries and values of one width."""
    widths = []
    ours = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *given, **rest: widths.append({x.shape[-1] for x in given}) or ours(*given, **rest),
    )
    segments = Segments.of(visual_tokens([[Grid(3, 4), Grid(2, 2)]]))
    out = segments.attend(torch.randn(16, 2, 24), torch.randn(16, 2, 24), torch.randn(16, 2, 8))
    assert out.shape == (16, 2, 8)
    assert widths == [{24}, {24}]
