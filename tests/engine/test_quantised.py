"""Quantised weights, with the libraries that are installed: pruned equals the same quantised model, masked.

Weight-only quantisation works on each token alone. Where activations are quantised with one scale for all tokens, the
tokens that are left get another scale than among all, and no run that leaves some out is exact; that is not tested.

The libraries are in no other environment: `.ci/quantised` makes one, runs this file there, and fails where one is
missing; everywhere else their cases are skipped.
"""

from __future__ import annotations

import copy

import pytest
import torch

import foveate
from foveate.testing import NEVER, hidden_from, reference_logits
from tests.int8 import Int8Linear, quantise
from tests.laws.methods import Ladder
from tests.models.build import build, generate, inputs, visual

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the libraries' own


def simple(model):
    return quantise(model, Int8Linear)


def torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model.get_decoder(), quantization.Int8WeightOnlyConfig())
    return model


def bitsandbytes_int8(model):
    nn = pytest.importorskip("bitsandbytes").nn
    return quantise(model, lambda old: _filled(nn.Linear8bitLt, old, has_fp16_weights=False))


def bitsandbytes_nf4(model):
    nn = pytest.importorskip("bitsandbytes").nn
    return quantise(model, lambda old: _filled(nn.Linear4bit, old, compute_dtype=torch.float32, quant_type="nf4"))


def quanto(model):
    library = pytest.importorskip("optimum.quanto")
    library.quantize(model.get_decoder(), weights=library.qint8)
    library.freeze(model.get_decoder())
    return model


def _filled(kind, linear, **options):
    layer = kind(linear.in_features, linear.out_features, linear.bias is not None, **options)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


@pytest.mark.parametrize("how", [simple, torchao, bitsandbytes_int8, bitsandbytes_nf4, quanto])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_pruned_equals_its_own_masked_reference(family, how):
    batch, model = inputs(family, "ragged"), how(copy.deepcopy(build(family)))
    with foveate.attach(model, Ladder()) as handle:
        out = generate(model, batch, 3)
    gone = hidden_from(handle.report, visual(batch))
    assert (gone < NEVER).any()
    with torch.no_grad():
        quantised = reference_logits(model, batch, batch["input_ids"], gone)[:, 0]
        exact = reference_logits(build(family), batch, batch["input_ids"], gone)[:, 0]
    torch.testing.assert_close(out.logits[0], quantised, atol=1e-4, rtol=0)
    assert (quantised - exact).abs().max() > 1e-3, "nothing was quantised"
