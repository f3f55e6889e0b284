"""The three laws, run on a model and its inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine import Report, attach
from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.pruners.base import Pruner
from foveate.testing.reference import NEVER, hidden_from, reference_logits

KEEP_ALL, MASKED, ALONE = LAWS = ("keep=1.0 changes nothing", "pruned equals masked", "a batch equals its samples")
NOTHING = "nothing was pruned"
NO_SAMPLES = "the samples were not given one by one"


@dataclass(frozen=True)
class Law:
    """What came of one law.

    Attributes
    ----------
    name
        One of `LAWS`.
    holds
        None where it could not be tested, or where there was nothing to test.
    difference
        Largest difference of two logits that should be equal; None where none were compared.
    reason
        Why it does not hold, or was not tested; empty where it holds.
    error
        What a run stopped with, if one did.
    """

    name: str
    holds: bool | None
    difference: float | None = None
    reason: str = ""
    error: Exception | None = dataclasses.field(default=None, repr=False, compare=False)

    def require(self) -> None:
        """For a test: pass only if the law was tested and holds.

        Raises
        ------
        AssertionError
            With the reason.
        """
        if not self.holds:
            how = "is broken" if self.holds is False else "was not tested"
            raise AssertionError(f"law {how}: {self.name}: {self.reason}") from self.error


def check_laws(
    model: nn.Module,
    inputs: Mapping[str, Any],
    pruner: Pruner,
    *,
    steps: int = 4,
    atol: float = 1e-4,
    family: Family | None = None,
    samples: Sequence[Mapping[str, Any]] = (),
    dense: Any = None,
) -> tuple[Law, ...]:
    """Run the three laws; one result for each of `LAWS`, in that order.

    Parameters
    ----------
    model
        In evaluation mode; left as it was.
    inputs
        Of a batch of prompts, left padded.
    pruner
        The method and its options; for the first law its `keep` is set to 1.0.
    steps
        Tokens to generate.
    atol
        How far two logits may lie apart that should be equal. Those of the first law must be bit-identical.
    family
        For a model type that foveate does not list.
    samples
        Inputs of each sample of the batch alone, unpadded, for the third law; without them it is not tested.
    dense
        `dense_run(model, inputs, steps)`, where it is there already.

    Raises
    ------
    FoveateError
        When the model or the pruner is refused.
    """
    family = family or family_of(model)
    dense = dense_run(model, inputs, steps, family) if dense is None else dense

    @functools.cache
    def pruned() -> tuple[Any, Report]:
        with attach(model, pruner, family=family) as handle:
            return dense_run(model, inputs, steps, family), handle.report

    return (
        _tried(KEEP_ALL, lambda: _keep_all(model, inputs, pruner, steps, family, dense)),
        _tried(MASKED, lambda: _masked(model, inputs, pruner, *pruned(), atol, family)),
        _tried(ALONE, lambda: _alone(model, inputs, pruner, *pruned(), atol, family, samples)),
    )


def _tried(name: str, law: Callable[[], Law]) -> Law:
    """A run that stops with an error of its own breaks the law; a refusal is passed on."""
    try:
        return law()
    except FoveateError:
        raise
    except Exception as error:  # noqa: BLE001 - any error breaks the law, and the law has it
        return Law(name, False, None, f"the run stops with {type(error).__name__}: {error}", error)


def dense_run(model: Any, inputs: Mapping[str, Any], steps: int, family: Family | None = None) -> Any:
    """Greedy generation of `steps` tokens, none of them a placeholder; with the logits of each step."""
    reserved = (family or family_of(model)).reserved_ids(model.config)
    with torch.no_grad():
        return model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=steps,
            min_new_tokens=steps,
            suppress_tokens=list(reserved),
            output_logits=True,
            return_dict_in_generate=True,
        )


def _keep_all(
    model: nn.Module, inputs: Mapping[str, Any], pruner: Pruner, steps: int, family: Family, dense: Any
) -> Law:
    """Bit-identical, as it runs (then nothing is left to do after the prefill) and with every tensor gathered."""
    if not any(field.name == "keep" for field in dataclasses.fields(pruner)):
        return Law(KEEP_ALL, None, reason=f"{pruner.name} has no option keep")
    everything = dataclasses.replace(pruner, keep=1.0)  # type: ignore[call-arg]
    difference = 0.0
    for always_gather, some in ((False, min(steps, 2)), (True, steps)):
        with attach(model, everything, family=family, _always_gather=always_gather):
            out = dense_run(model, inputs, some, family)
        difference = max(difference, _apart(torch.stack(out.logits), torch.stack(dense.logits[:some])))
        same = torch.equal(out.sequences, dense.sequences[:, : out.sequences.shape[1]])
        if not same or not all(torch.equal(*pair) for pair in zip(out.logits, dense.logits[:some], strict=True)):
            how = "with every tensor gathered, " if always_gather else ""
            return Law(KEEP_ALL, False, difference, f"{how}the logits are not bit-identical to the dense model's")
    return Law(KEEP_ALL, True, difference)


def _masked(
    model: Any, inputs: Mapping[str, Any], pruner: Pruner, out: Any, report: Report, atol: float, family: Family
) -> Law:
    visual = torch.isin(inputs["input_ids"], torch.tensor(family.visual_ids(model.config)).to(out.sequences.device))
    visual[:, -1] = False  # the last token of a prompt stays, whatever it is
    gone = hidden_from(report, visual)
    compacted, stages = pruner.compact_cache, report.stages
    expected = reference_logits(model, inputs, out.sequences[:, :-1], gone, compacted, family, stages)
    difference = _apart(torch.stack(out.logits, 1), expected)
    if not difference <= atol:
        return Law(MASKED, False, difference, "the logits are not those of a dense run with the dropped tokens hidden")
    if int(gone.min()) == NEVER:
        return Law(MASKED, None, difference, NOTHING)
    return Law(MASKED, True, difference)


def _alone(
    model: nn.Module,
    inputs: Mapping[str, Any],
    pruner: Pruner,
    together: Any,
    report: Report,
    atol: float,
    family: Family,
    samples: Sequence[Mapping[str, Any]],
) -> Law:
    """The same tokens are kept, and the logits of the prompt and of a step after it are the same."""
    if not samples:
        return Law(ALONE, None, reason=NO_SAMPLES)
    difference, length = 0.0, inputs["input_ids"].shape[1]
    for row, sample in enumerate(samples):
        padding = length - sample["input_ids"].shape[1]
        with attach(model, pruner, family=family) as pruned:
            out = dense_run(model, sample, min(len(together.logits), 2), family)
        # a sample without images has no stages of its own
        for ours, theirs in zip(pruned.report.stages, report.stages, strict=False):
            if not torch.equal(ours.kept[0] + padding, theirs.kept[row]):
                return Law(ALONE, False, None, f"alone, sample {row} keeps other tokens before layer {ours.layer}")
        for step, logits in enumerate(out.logits):
            difference = max(difference, _apart(logits[0], together.logits[step][row]))
            if out.sequences[0, step - len(out.logits)] != together.sequences[row, length + step]:
                break  # from here on they answer different prompts
        if not difference <= atol:
            return Law(ALONE, False, difference, f"alone, sample {row} has other logits")
    return Law(ALONE, True, difference)


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; infinite where one of them is no number."""
    apart = (ours.float() - theirs.float()).abs()
    return float(apart.nan_to_num(nan=float("inf")).max())
