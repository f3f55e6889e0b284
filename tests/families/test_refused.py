"""Every model type of transformers is supported or refused with a reason."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import foveate
from foveate.errors import UnsupportedModelError
from foveate.families import FAMILIES
from foveate.families.refused import REFUSED, UNTESTED
from foveate.measure.loading import _check_family
from tests.families.model_types import MODEL_TYPES

VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
INSTALLED = {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}


@pytest.mark.oldest
def test_every_model_type_is_supported_or_refused():
    """On any release: one that adds a model type must be read before foveate is said to be tested with it."""
    new = sorted(INSTALLED - {*FAMILIES, *REFUSED, *UNTESTED})
    assert not new, f"transformers {transformers.__version__} has model types that nobody has read: {', '.join(new)}"


def test_none_is_both():
    assert not REFUSED.keys() & FAMILIES.keys()
    assert not UNTESTED & FAMILIES.keys()
    assert not UNTESTED & REFUSED.keys()


@pytest.mark.oldest
def test_the_list_of_the_installed_release_is_its_own():
    if VERSION not in MODEL_TYPES:
        pytest.skip("no list of this release: what it adds fails above")
    assert MODEL_TYPES[VERSION] == INSTALLED


@pytest.mark.oldest
def test_none_is_made_up():
    assert {*REFUSED, *UNTESTED, *FAMILIES} <= INSTALLED.union(*MODEL_TYPES.values())


@pytest.mark.parametrize("reason", sorted({*REFUSED.values()}))
def test_reasons_are_one_sentence(reason):
    assert "\n" not in reason
    assert reason[0].islower()
    assert not reason.endswith(".")
    assert len(reason) < 150


CASES = {
    "blip": ("BlipForConditionalGeneration", "BlipConfig"),
    "blip-2": ("Blip2ForConditionalGeneration", "Blip2Config"),
    "mllama": ("MllamaForConditionalGeneration", "MllamaConfig"),
    "florence2": ("Florence2ForConditionalGeneration", "Florence2Config"),
    "pix2struct": ("Pix2StructForConditionalGeneration", "Pix2StructConfig"),
    "kosmos-2": ("Kosmos2ForConditionalGeneration", "Kosmos2Config"),
    "git": ("GitForCausalLM", "GitConfig"),
}


@pytest.mark.parametrize("model_type", CASES)
def test_a_real_model_is_refused_and_left_alone(model_type):
    name, config = CASES[model_type]
    if not hasattr(transformers, name):
        pytest.skip("this transformers has no such model")
    with torch.device("meta"):  # of its usual size, without its weights
        model = getattr(transformers, name)(getattr(transformers, config)())
    with pytest.raises(UnsupportedModelError) as caught:
        foveate.attach(model, foveate.Random(keep=0.5))
    assert REFUSED[model_type] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("model_type", ["mllama", "video_llava", "elephant"])
def test_a_folder_is_refused_before_its_weights_are_read(model_type, tmp_path):
    class Config:
        pass

    Config.model_type = model_type
    with pytest.raises(UnsupportedModelError, match=model_type) as caught:
        _check_family(Config())
    assert (REFUSED.get(model_type, "not supported; foveate knows")) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_nobody_has_tested_may_be_tried():
    class Model(torch.nn.Module):
        config = type("Config", (), {"model_type": "video_llava"})()

    with pytest.raises(UnsupportedModelError, match="it lacks"):
        foveate.attach(Model(), foveate.Random(keep=0.5))
