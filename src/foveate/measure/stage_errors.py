"""What each cut does to the layer after it, and to the end of the model: BTP's local and global error."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate.engine import attach
from foveate.engine.prompt import last_prompt_token
from foveate.errors import UnsupportedModelError
from foveate.families import Family, Parts, family_of, visual_mask
from foveate.pruners import Pruner


@dataclass(frozen=True)
class StageError:
    """Errors of one cut, means over the samples.

    Parameters
    ----------
    layer
        It lies before this decoder layer.
    local, global_
        With this cut alone: error of the output of that layer, and of the last layer.
    local_so_far, global_so_far
        The same with the cuts before it, too.
    """

    layer: int
    local: float
    global_: float
    local_so_far: float
    global_so_far: float


@dataclass(frozen=True, kw_only=True)
class Only(Pruner):
    """Another method with some of its cuts only.

    Parameters
    ----------
    method
        Worked out for the model, see `Pruner.resolved`.
    cuts
        Layers of the cuts that are done.
    """

    name: ClassVar[str] = "only"
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = "another method's cuts, some of them"
    method: Pruner = field(default_factory=Pruner)
    cuts: tuple[int, ...] = ()

    def layers(self, depth: int) -> tuple[int, ...]:
        return self.cuts

    @property
    def members(self) -> tuple[Pruner, ...]:
        return self.method.members

    def member(self, layer: int) -> Pruner:
        return self.method.member(layer)


@torch.inference_mode()
def stage_errors(
    model: Any,
    pruner: Pruner,
    inputs: Mapping[str, Tensor],
    tokens: Literal["last", "text"] = "last",
    family: Family | None = None,
) -> list[StageError]:
    """Errors that each cut of a pruner makes in the hidden states; two forward passes a cut, and the dense one.

    An error is ‖pruned − dense‖ / ‖dense‖. The local error is that of the output of the decoder layer after the cut;
    the global one that of the last decoder layer, before the final norm. BTP (arXiv 2505.22038, section 4.1) sums
    local errors over its stages and calls that global; what is left at the end is what an answer is made from.

    Parameters
    ----------
    model
        Of a supported family; it is left as it was.
    pruner
        With any number of cuts.
    inputs
        Arguments of the model's forward for a batch.
    tokens
        Whose hidden states are compared: those of the "last" prompt token, which speaks the answer's first word and
        whose attention most methods read, or of all "text" from the first visual token to the end of the prompt. Other
        tokens are not in both runs, or cannot have seen an image.
    family
        See `foveate.attach`.

    Returns
    -------
    list of StageError
        In the order of the cuts; means over the samples with visual tokens. Empty where there is none.

    Raises
    ------
    UnsupportedModelError
        The model is not supported, or the method adds tokens of its own.
    """
    family = family or family_of(model)
    parts = family.parts(model)
    depth = len(parts.layers)
    text, there = _prompt(parts, inputs)
    if tokens == "last":
        place = torch.arange(text.shape[1], device=text.device)
        text = text & (place == (place * text).amax(-1, keepdim=True))
    if not text.any():
        return []
    method = pruner.resolved(model.config)
    if method.extra_tokens(model) is not None:
        raise UnsupportedModelError(f"{pruner.name} adds tokens of its own: its errors cannot be separated by stage")
    cuts = tuple(method.layers(depth))
    with _outputs(parts) as dense:
        model(**inputs)
    reference = [_rows(dense[layer], text) for layer in range(depth)]

    def errors(done: tuple[int, ...]) -> tuple[float, float]:
        with attach(model, Only(method=method, cuts=done), family=family) as pruned, _outputs(parts) as found:
            model(**inputs)
        kept = pruned.report.stages[-1].kept if pruned.report.stages else None
        local, global_ = (
            _error(_rows(found[layer], text, kept, there), reference[layer]) for layer in (done[-1], depth - 1)
        )
        return local, global_

    alone = [errors((layer,)) for layer in cuts]
    so_far = [errors(cuts[: number + 1]) for number in range(len(cuts))]
    return [StageError(layer, *mine, *ours) for layer, mine, ours in zip(cuts, alone, so_far, strict=True)]


def _prompt(parts: Parts, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Text after the first visual token and up to the prompt's end, and all text, both (B, L) bool."""
    visual = visual_mask(parts, inputs)
    if visual is None:
        raise ValueError("a decode step has no prompt to compare")
    real = inputs.get("attention_mask")
    real = torch.ones_like(visual) if real is None else real.bool()
    end = last_prompt_token(visual.shape[1], real, inputs.get("labels"), visual)
    place = torch.arange(visual.shape[1], device=visual.device)
    # what the engine calls visual: not the prompt's last token, nor what comes after it
    visual = visual & real & (place < end[:, None])
    there = real & ~visual
    return (visual.cumsum(-1) > 0) & there & (place <= end[:, None]), there


@contextmanager
def _outputs(parts: Parts) -> Iterator[dict[int, Tensor]]:
    """Output (B, n, D) of each layer by its number."""
    found: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            found[number] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layer.register_forward_hook(keep(number)) for number, layer in enumerate(parts.layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _rows(output: Tensor, text: Tensor, kept: list[Tensor] | None = None, there: Tensor | None = None) -> list[Tensor]:
    """The text of each sample, (n, D) fp32, out of a layer's output (B, m, D).

    Parameters
    ----------
    text
        (B, L) bool, which positions are wanted.
    kept
        Positions of the visual tokens that are left, for each sample; None for a dense run.
    there
        (B, L) bool, all text. In a pruned run samples end together: a token's row is found from the end.
    """
    rows = []
    for sample, wanted in enumerate(text):
        position = wanted.nonzero().flatten()
        if kept is not None and there is not None:
            present = there[sample].clone()
            present[kept[sample].to(present.device)] = True
            behind = present.flip(0).cumsum(0).flip(0)[position]  # tokens from here to the end
            position = output.shape[1] - behind
        rows.append(output[sample, position].float())
    return rows


def _error(pruned: list[Tensor], dense: list[Tensor]) -> float:
    """Mean relative error over the samples that have an image."""
    errors = [
        ((ours - true).norm() / true.norm()).item() for ours, true in zip(pruned, dense, strict=True) if len(true)
    ]
    return sum(errors) / len(errors)
