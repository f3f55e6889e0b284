"""Ways of holding a model: compiled, copied, spread, adapted, in other precisions, inside other people's loops."""

from __future__ import annotations

import copy

from transformers import PreTrainedModel

import foveate
from foveate.engine.compiled import NOTE
from tests.tiny_models import build, inputs
from tests.ways.checks import LADDER, agree, run
from tests.ways.ways import way


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
