"""Ways of holding a model: compiled, copied, spread, adapted, in other precisions, inside other people's loops."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import tempfile
import warnings
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

import foveate
from foveate.engine.compat import NOTE
from foveate.pruners import Pruner
from foveate.testing import NEVER, hidden_from, reference_logits
from tests.fake_devices import FakeDevices, spread
from tests.int8 import Int8Linear, quantise
from tests.models.build import build, decoder, generate, inputs, visual
from tests.models.sizes import LAYERS
from tests.threads import at_once
from tests.ways.checks import CLOSE, STEPS, Run, agree, dropped, fitting, run, unless_dense_fails
from tests.ways.masked import masked
from tests.ways.ways import NotApplicable, way


def own(family: str) -> PreTrainedModel:
    """A model of the test's own, with the weights of the shared one."""
    return copy.deepcopy(build(family))


@way("torch.compile", table="holding")
def compiled(family: str) -> None:
    """Compiled first, then attached: what was compiled must not run, as it knows no hooks."""
    model = own(family)
    model.compile(backend="eager")
    found = run(family, model=model)
    assert NOTE in found.report.notes
    agree(found)


@way("device_map, two devices", table="holding")
def two_devices(family: str) -> None:
    """By labels on tensors, as no test machine has two: any operation that mixes them raises."""
    model, batch = own(family), inputs(family, "ragged")
    spread(model, LAYERS // 2)

    def check(pruner: Pruner | None) -> None:
        with FakeDevices(), pruner(model) if pruner else contextlib.nullcontext() as pruned:
            out = generate(model, batch, STEPS)
        agree(Run(family, batch, out, pruned.report if pruned else None))

    why = "transformers mixes devices where it makes this model's positions, also without pruning"
    unless_dense_fails(check, why, fitting(family))


@way("device_map, offloaded to disk", table="holding", oldest=False)
def offloaded(family: str) -> None:
    from accelerate import disk_offload

    model = own(family)
    with tempfile.TemporaryDirectory() as folder:
        for number, layer in enumerate(decoder(model).layers):
            disk_offload(layer, f"{folder}/{number}", execution_device="cpu")
        agree(run(family, model=model))


@way("int8 weights", table="holding")
def quantised(family: str) -> None:
    """Linear layers that hold integers; torchao, bitsandbytes and quanto: tests/engine/test_quantised.py."""
    model = quantise(own(family), Int8Linear)
    batch = inputs(family, "ragged")
    with fitting(family)(model) as pruned:
        out = generate(model, batch, STEPS)
    found = Run(family, batch, out, pruned.report)
    expected = reference_logits(model, batch, batch["input_ids"], dropped(found))[:, 0]
    torch.testing.assert_close(out.logits[0], expected, **CLOSE)


QUERIES = ("q_proj", "q_b_proj")  # the latter behind a latent


@way("LoRA (PEFT)", table="holding", oldest=False)
def lora(family: str) -> None:
    """Two adapters: one is active, then the other while attached, then it is merged: each equals its own reference."""
    import peft

    bare = own(family)
    inside = set(decoder(bare).modules())
    names = [name for name, module in bare.named_modules() if module in inside and name.endswith(QUERIES)]
    config = peft.LoraConfig(target_modules=names, r=2, init_lora_weights=False)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.*", FutureWarning)  # PEFT's own
        model = peft.get_peft_model(bare, config)
        model.add_adapter("other", config)
    with foveate.attach(model, fitting(family)) as handle:
        for name in ("default", "other"):
            model.set_adapter(name)
            _forward_agrees(model, model.get_base_model(), family, handle)
        model.merge_adapter()
        _forward_agrees(model, model.get_base_model(), family, handle)


def _forward_agrees(held: PreTrainedModel, model: PreTrainedModel, family: str, handle: foveate.engine.Handle) -> None:
    """A forward pass with labels through `held`, compared with the dense, masked `model`."""
    batch = inputs(family, "ragged")
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    with torch.no_grad():
        ours = held(**batch, labels=labels, use_cache=False)
        gone = hidden_from(handle.report, visual(batch))
        assert (gone < NEVER).any()
        with handle.paused(), masked(model, batch["attention_mask"], gone):
            theirs = model(**batch, labels=labels, use_cache=False)
    torch.testing.assert_close(ours.logits[:, -3:], theirs.logits[:, -3:], **CLOSE)
    torch.testing.assert_close(ours.loss, theirs.loss, **CLOSE)


@way("training step", table="holding")
def training(family: str) -> None:
    _step(family, None)


@way("gradient checkpointing", table="holding")
def checkpointing(family: str) -> None:
    _step(family, False)


@way("gradient checkpointing, reentrant", table="holding")
def reentrant_checkpointing(family: str) -> None:
    _step(family, True)


def _step(family: str, reentrant: bool | None) -> None:
    """Loss and gradients are those of training with the dropped tokens masked."""
    model, batch = own(family).train(), inputs(family, "ragged")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if reentrant is not None and isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=reentrant)
    model.get_input_embeddings().register_forward_hook(lambda *args: args[-1].requires_grad_())
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    if reentrant:
        try:
            copy.deepcopy(model)(**batch, labels=labels, use_cache=False).loss.backward()
        except RuntimeError as error:
            raise NotApplicable(
                f"the model fails at it also without pruning ({str(error).split('(')[0].strip()})"
            ) from None
    with foveate.attach(model, fitting(family)) as handle:
        ours = model(**batch, labels=labels, use_cache=False).loss
        ours.backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    gone = hidden_from(handle.report, visual(batch))
    assert (gone < NEVER).any()
    with masked(model, batch["attention_mask"], gone):
        theirs = model(**batch, labels=labels, use_cache=False).loss
        theirs.backward()
    torch.testing.assert_close(ours, theirs, **CLOSE)
    for name, parameter in model.named_parameters():
        assert (name in found) == (parameter.grad is not None), name
        if name in found:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-4, rtol=1e-3, msg=name)


@way("DataParallel", table="holding")
def data_parallel(family: str) -> None:
    """`nn.DataParallel` runs such replicas, one a device."""
    model = own(family)
    with foveate.attach(model, fitting(family)):
        model._replicate_for_data_parallel()(**inputs(family, "ragged"))


@way("copied while attached", table="holding")
def copied(family: str) -> None:
    model = own(family)
    with foveate.attach(model, fitting(family)):
        copy.deepcopy(model)


@way("saved while attached", table="holding")
def saved(family: str) -> None:
    model = build(family)
    with foveate.attach(model, fitting(family)), tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            found = type(model).from_pretrained(folder)
        except ImportError:
            raise NotApplicable("transformers cannot load this model without a library that is not there") from None
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    for ours, theirs in zip(found.modules(), model.modules(), strict=True):
        assert len(ours._forward_pre_hooks) == len(theirs._forward_pre_hooks)


@way("two threads", table="holding")
def threads(family: str) -> None:
    model, layouts = build(family), ("ragged", "two images")
    alone = {layout: run(family, layout).out.sequences for layout in layouts}
    with foveate.attach(model, fitting(family)):
        found = at_once(lambda layout: generate(model, inputs(family, layout), STEPS).sequences, layouts)
    assert all(torch.equal(found[layout], alone[layout]) for layout in layouts)


@way("inference_mode", table="holding")
def inference_mode(family: str) -> None:
    with torch.inference_mode():
        agree(run(family))


@way("autocast", table="holding")
def autocast(family: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        try:
            run(family, pruner=None, steps=1)
        except RuntimeError as error:
            raise NotApplicable(
                "this transformers' model does not run under autocast, also without pruning"
            ) from error
        roughly_agree(run(family), build(family))


@way("bfloat16", table="holding")
def bfloat16(family: str) -> None:
    _in_precision(family, torch.bfloat16)


@way("float16", table="holding")
def float16(family: str) -> None:
    _in_precision(family, torch.float16)


def _in_precision(family: str, dtype: torch.dtype) -> None:
    """Keeping everything gives the same bits; pruned, only the rounding differs from the reference."""
    model = own(family).to(dtype)
    batch = {name: one.to(dtype) if one.is_floating_point() else one for name, one in inputs(family, "ragged").items()}
    dense = generate(model, batch, STEPS)
    with foveate.attach(model, dataclasses.replace(fitting(family), keep=1.0), _always_gather=True):
        kept = generate(model, batch, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, dense.logits, strict=True))
    with fitting(family)(model) as pruned:
        out = generate(model, batch, STEPS)
    roughly_agree(Run(family, batch, out, pruned.report), model)


def roughly_agree(found: Run, model: PreTrainedModel, times: float = 3.0) -> None:
    """The first logits are as near to those of the exact masked model as are those of `model`, masked.

    Parameters
    ----------
    model
        The model that ran, in low precision; `build(family)` is the exact one.
    """
    gone, batch = dropped(found), found.batch
    precise = {name: one.float() if one.is_floating_point() else one for name, one in batch.items()}
    rounded = reference_logits(model, batch, batch["input_ids"], gone)[:, 0].float()
    with torch.autocast("cpu", enabled=False):
        exact = reference_logits(build(found.family), precise, batch["input_ids"], gone)[:, 0]
    ours = found.out.logits[0].float()
    # the median sample: rounding may send a token of one to other experts, where the model has them
    far, allowed = ((logits - exact).abs().amax(-1).median() for logits in (ours, rounded))
    assert far < times * allowed
