"""Ways of holding a model: compiled, copied, spread, adapted, in other precisions, inside other people's loops."""

from __future__ import annotations

import copy
import tempfile
import threading

import torch
from transformers import PreTrainedModel

import foveate
from foveate.engine.compiled import NOTE
from foveate.testing import reference_logits
from tests.laws.methods import Ladder
from tests.tiny_models import build, generate, inputs
from tests.ways.checks import LADDER, Run, agree, dropped, run
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


@way("DataParallel", table="holding")
def data_parallel(family: str) -> None:
    """`nn.DataParallel` runs such replicas, one a device."""
    model = own(family)
    with foveate.attach(model, LADDER):
        model._replicate_for_data_parallel()(**inputs(family, "ragged"))


@way("copied while attached", table="holding")
def copied(family: str) -> None:
    model = own(family)
    with foveate.attach(model, LADDER):
        copy.deepcopy(model)


@way("saved while attached", table="holding")
def saved(family: str) -> None:
    model = build(family)
    with foveate.attach(model, LADDER), tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        found = type(model).from_pretrained(folder)
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    for ours, theirs in zip(found.modules(), model.modules(), strict=True):
        assert len(ours._forward_pre_hooks) == len(theirs._forward_pre_hooks)


@way("two threads", table="holding")
def threads(family: str) -> None:
    model, layouts = build(family), ("ragged", "two images")
    alone = {layout: run(family, layout).out.sequences for layout in layouts}
    found = {}
    with foveate.attach(model, LADDER):

        def work(layout: str) -> None:
            found[layout] = generate(model, inputs(family, layout), 3).sequences

        both = [threading.Thread(target=work, args=(layout,)) for layout in layouts]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
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
    dense = generate(model, batch, 3)
    with foveate.attach(model, Ladder(keep=1.0), _always_gather=True):
        kept = generate(model, batch, 3)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, dense.logits, strict=True))
    with LADDER(model) as pruned:
        out = generate(model, batch, 3)
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
