"""Checkpoints that load as a family of another name, by configs written like theirs.

And what Molmo 2 and PerceptionLM do that no other family does.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import is_timm_available

import foveate
from foveate.errors import UnsupportedModelError
from foveate.families import FAMILIES, Grid, Run, family_of
from foveate.testing import check_laws
from tests.families.test_grids import shown
from tests.laws.methods import METHODS
from tests.models import TINY
from tests.models.build import build, inputs, make
from tests.models.images import VISION_END, VISION_START

LOADED = {
    "granite_vision": ("llava_next", "granite"),
    "internvl3_5": ("internvl", "qwen3"),
    "internvl3_5_moe": ("internvl", "qwen3_moe"),
    "internvl3_5_gpt_oss": ("internvl", "gpt_oss"),
}


@pytest.mark.parametrize("name", LOADED)
def test_a_config_file_of_its_kind_loads_as_that_family(name, tmp_path):
    """From a config.json, as from_pretrained would: by its model_type, and its decoder's."""
    family, decoder = LOADED[name]
    TINY[name].make()[1].save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.model_type, config.text_config.model_type) == (family, decoder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert family_of(model) is FAMILIES[family]
    assert len(family_of(model).parts(model).layers) == 6


needs_perception = pytest.mark.skipif(
    "perception_lm" not in TINY, reason="this PerceptionLM takes timm's encoder only"
)
needs_molmo = pytest.mark.skipif("molmo2" not in TINY, reason="this transformers has no Molmo 2")


@needs_molmo
def test_merged_embeddings_of_molmo_are_refused():
    """Its token types mark the text around an image, too, and its features are added: nothing tells them apart."""
    model, batch = build("molmo2"), inputs("molmo2", "one image")
    seen = {}
    handle = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model(**batch)
    handle.remove()
    given = {name: batch[name] for name in ("attention_mask", "mm_token_type_ids")}
    with (
        foveate.attach(model, foveate.Random(keep=0.5)),
        pytest.raises(UnsupportedModelError, match="merged") as caught,
    ):
        model(inputs_embeds=seen["inputs_embeds"], **given)
    assert "\n" not in str(caught.value)


@needs_molmo
def test_molmo_rows_that_do_not_fit_are_not_guessed_at():
    def grids(*rows, video=False):
        kind, length = "video" if video else "image", sum(length for _, length in rows)
        output = type("Output", (), {"pooler_output": (torch.zeros(length, 4),)})
        runs = [Run(0, start, length, 90, 1) for start, length in rows]
        return FAMILIES["molmo2"].image_grids(None, {"mm_encoder_outputs": {kind: output}}, runs)

    assert grids((1, 4), (6, 4), (13, 3), (17, 3), (21, 3)) == [(Grid(2, 4), Grid(3, 3))]
    assert grids((1, 9), (13, 2), (16, 2)) == [(Grid(3, 3), Grid(2, 2))]
    assert grids((1, 9), (13, 9)) == [(Grid(1, 18, known=False),)]  # no tokens between the rows of the large image
    assert grids((1, 9), (13, 9), video=True) == [(Grid(3, 3), Grid(3, 3))]
    assert grids((1, 4), (6, 3), (13, 3), (17, 3)) == [(Grid(1, 13, known=False),)]


@needs_molmo
@pytest.mark.parametrize("norm", ["qwen3", "olmo"])
def test_molmo_with_either_norm(norm):
    cls, config = TINY["molmo2"].make()
    config.text_config.qk_norm_type, config.text_config.norm_after = norm, norm == "olmo"
    model = make(cls, config)
    for law in check_laws(model, inputs("molmo2", "ragged"), METHODS["glimpseprune two tokens"])[:2]:
        law.require()


@needs_perception
@pytest.mark.skipif(not is_timm_available(), reason="PerceptionLM's own vision encoder comes from timm")
@pytest.mark.parametrize("layout", ["ragged", "video"])
def test_perception_lm_with_its_own_vision_encoder(layout):
    cls, config = TINY["perception_lm"].make()
    sizes = dict(embed_dim=32, depth=3, num_heads=4, img_size=[32, 32], patch_size=4, ref_feat_shape=[8, 8])
    vision = dict(
        model_type="timm_wrapper", architecture="vit_pe_lang_large_patch14_448", do_pooling=True, model_args=sizes
    )
    settings = {**config.to_dict(), "vision_config": dict(vision, global_pool="map", initializer_range=0.02)}
    model = make(cls, type(config)(**settings))
    assert len(family_of(model).vision_blocks(model)) == 3
    for law in check_laws(model, inputs("perception_lm", layout), METHODS["glimpseprune"])[:2]:
        law.require()


@needs_perception
def test_perception_lm_counts_a_run_as_an_image_where_the_pixels_are_gone():
    model, batch = build("perception_lm"), inputs("perception_lm", "adjacent images")
    closer = batch["input_ids"][batch["input_ids"] != VISION_START]
    closer = closer[closer != VISION_END][None]
    batch |= {"input_ids": closer, "attention_mask": torch.ones_like(closer)}
    by_pixels, by_runs = (shown(model, batch, how)[0] for how in ("forward", "generate"))
    assert by_pixels.image[0].tolist() == [0] * 48 + [1] * 48
    assert by_runs.image[0].tolist() == [0] * 96
    assert torch.equal(by_pixels.grid, by_runs.grid)  # each tile is one, in any case
