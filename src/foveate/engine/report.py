"""What a pruned run kept, where, and what that saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.engine.cut import ASTRAY, SENSELESS, moves
from foveate.engine.flops import prefill_flops
from foveate.engine.forward_pass import PrefillRecord, StageRecord
from foveate.engine.report_view import prefill_html, prefill_line, report_html, report_lines, stage_line


class _Record:
    """Compares by what it holds: tensors, alone or in lists, by their values."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _equal(self._content(), other._content())

    def _content(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    __hash__ = None  # type: ignore[assignment]  # it holds lists


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, (list, tuple)) and type(one) is type(other):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    return bool(one == other)


@dataclass(frozen=True, eq=False)
class Merged(_Record):
    """Tokens of one sample that went into survivors instead of being dropped; see `foveate.pruners.Selection`.

    Attributes
    ----------
    positions, into
        (M,) long on the CPU, positions in the dense prompt of these tokens and of the survivors.
    weights
        (M,) their weights.
    how
        "average" or "add".
    """

    positions: Tensor
    into: Tensor
    weights: Tensor
    how: str


@dataclass(frozen=True, repr=False, eq=False)
class Stage(_Record):
    """One cut.

    Attributes
    ----------
    layer
        It lies before this decoder layer, counted from 0.
    kept
        For each sample the positions, in its dense prompt (left padding counted), of the visual tokens that survive,
        ascending; LongTensors on the CPU.
    dense
        For each sample the visual tokens before any pruning.
    per_image
        For each sample, for each of its images or videos, (kept, dense).
    merged
        For each sample the tokens that went into others; empty where the method merges none.
    """

    layer: int
    kept: list[Tensor]
    dense: list[int]
    per_image: list[list[tuple[int, int]]]
    merged: tuple[Merged, ...] = ()

    def __repr__(self) -> str:
        return f"<Stage {stage_line(self)}>"


@dataclass(frozen=True, repr=False, eq=False)
class Prefill(_Record):
    """One prefill; shares are of the dense run, 1.0 where nothing was pruned.

    Attributes
    ----------
    stages
        The cuts in order.
    tokens_per_layer
        Visual tokens that enter each decoder layer, mean over the batch.
    mean_tokens_per_layer
        Their mean over the layers, as a share (BTP's measure).
    kv_share
        Visual tokens held in the KV cache, over all layers, as a share (GlimpsePrune's measure).
    last_layer_tokens
        Visual tokens at the last layer, as a share.
    selection_ms
        Milliseconds spent selecting.
    compaction_ms
        Milliseconds spent removing what was not selected: hidden states, positions, masks, KV cache.
    flops_dense, flops_pruned
        Floating-point operations of the decoder layers, mean over the batch, see `prefill_flops`; None if unknown.
    skipped
        Why nothing was pruned; None where a method ran.
    notes
        What the method or the engine warns of.
    """

    stages: list[Stage]
    tokens_per_layer: list[float]
    mean_tokens_per_layer: float
    kv_share: float
    last_layer_tokens: float
    selection_ms: float
    compaction_ms: float
    flops_dense: float | None
    flops_pruned: float | None
    skipped: str | None
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        entry = dataclasses.asdict(dataclasses.replace(self, stages=[]))
        entry["stages"] = [
            {
                **dataclasses.asdict(dataclasses.replace(stage, kept=[], merged=())),
                "kept": [kept.tolist() for kept in stage.kept],
                "merged": [len(one.positions) for one in stage.merged],
            }
            for stage in self.stages
        ]
        return entry

    def __repr__(self) -> str:
        return f"<Prefill, {prefill_line(self)}>"

    def _repr_html_(self) -> str:
        return prefill_html(self)

    def __str__(self) -> str:
        if self.skipped:
            return f"nothing pruned: {self.skipped}"
        cuts = "; ".join(
            f"before layer {stage.layer}: "
            + ", ".join(f"{len(kept)} of {dense}" for kept, dense in zip(stage.kept, stage.dense, strict=True))
            for stage in self.stages
        )
        flops = f", FLOPs {self.flops_pruned / self.flops_dense:.0%}" if self.flops_dense and self.flops_pruned else ""
        return (
            f"visual tokens kept {cuts}; mean per layer {self.mean_tokens_per_layer:.0%}, last layer "
            f"{self.last_layer_tokens:.0%}, KV cache {self.kv_share:.0%}{flops}; {self.selection_ms:.1f} ms selecting"
            + "".join(f"\nnote: {note}" for note in self.notes)
        )


@dataclass(frozen=True, repr=False, eq=False)
class Report(_Record):
    """The last prefills since the pruner was attached; the last one's fields can be read on the report itself.

    Attributes
    ----------
    prefills
        The last 100 of them.
    seen
        How many there were in all, since the pruner was attached or the report was cleared.
    skips
        How many of them ran dense, by reason.
    """

    prefills: tuple[Prefill, ...]
    seen: int = -1
    skips: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seen < 0:
            object.__setattr__(self, "seen", len(self.prefills))

    def clear(self) -> None:
        """Forget the prefills so far, also on the handle that this was read from; this report stays as it is."""
        forget = vars(self).get("_forget")
        if forget is not None:
            forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_forget"}

    def __getattr__(self, name: str) -> Any:
        if name in Prefill.__dataclass_fields__:
            if not self.prefills:
                raise AttributeError(f"no {name} yet: the model has not run since the pruner was attached")
            return getattr(self.prefills[-1], name)
        raise AttributeError(f"a report has no {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "prefills": [prefill.to_dict() for prefill in self.prefills],
            "seen": self.seen,
            "skips": dict(self.skips),
        }

    def __repr__(self) -> str:
        return f"<Report, {report_lines(self)}>"

    def _repr_html_(self) -> str:
        return report_html(self)

    def __str__(self) -> str:
        return "\n".join(map(str, self.prefills)) or "the model has not run since the pruner was attached"


def summarise(record: PrefillRecord, config: Any, depth: int, cached: Sequence[bool] | None = None) -> Prefill:
    """Make a report entry of what the hooks recorded; reads tensors back from the device.

    Parameters
    ----------
    cached
        For each layer, whether it has a KV cache; by default all have.
    """
    record.to_host()
    stages = [_stage(stage, record) for stage in record.stages]
    visual = _per_layer(record, depth)
    held = [
        stages_kept if layer >= record.compacted else visual[record.compacted]
        for layer, stages_kept in enumerate(visual)
        if cached is None or cached[layer]
    ]
    dense = sum(record.visual) * depth
    pruned_flops = _mean(
        [
            prefill_flops(config, [row + text for row in rows])
            for rows, text in zip(zip(*visual, strict=True), record.text, strict=True)
        ]
    )
    dense_flops = _mean(
        [prefill_flops(config, [row + text] * depth) for row, text in zip(record.visual, record.text, strict=True)]
    )
    return Prefill(
        stages=stages,
        tokens_per_layer=[sum(rows) / len(rows) for rows in visual],
        mean_tokens_per_layer=sum(map(sum, visual)) / dense if dense else 1.0,
        kv_share=sum(map(sum, held)) / (sum(record.visual) * len(held)) if dense else 1.0,
        last_layer_tokens=sum(visual[-1]) / sum(record.visual) if dense else 1.0,
        selection_ms=sum(stage.elapsed() for stage in record.stages),
        compaction_ms=sum(max(stage.passed() - stage.elapsed(), 0.0) for stage in record.stages if stage.passed),
        flops_dense=dense_flops,
        flops_pruned=pruned_flops,
        skipped=record.skipped,
        notes=[*record.notes, *(said for stage in record.stages for said in _dropped(stage))],
    )


def _per_layer(record: PrefillRecord, depth: int) -> list[list[int]]:
    """Visual tokens that enter each layer, for each sample."""
    rows, now = [], record.visual
    cuts = {stage.layer: stage.kept for stage in record.stages}
    for layer in range(depth):
        now = cuts.get(layer, now)
        rows.append(now)
    return rows


def _stage(stage: StageRecord, record: PrefillRecord) -> Stage:
    keep, position, image = stage.keep, stage.position, stage.image
    kept = [places[mask] for places, mask in zip(position, keep, strict=True)]
    per_image = []
    for row, mask in enumerate(keep):
        dense = _count(record.image[row] + 1)[1:] if record.image is not None else []
        left = _count(image[row][mask], len(dense))
        per_image.append(list(zip(left, dense, strict=True)))
    return Stage(stage.layer, kept, list(record.visual), per_image, _merged(stage, keep, position))


def _merged(stage: StageRecord, keep: Tensor, position: Tensor) -> tuple[Merged, ...]:
    """What went into others, sample by sample."""
    selection = stage.selection
    if selection.into is None:
        return ()
    target, weights, *_ = moves(selection, keep, position >= 0)
    return tuple(
        Merged(places[mask], places[into[mask]], weight[mask], selection.how)
        for places, mask, into, weight in zip(position, weights > 0, target, weights, strict=True)
    )


def _dropped(stage: StageRecord) -> list[str]:
    """What a method asked for that makes no sense, and that no device but the CPU can refuse without a wait."""
    if stage.selection.into is None:
        return []
    *_, astray, senseless = moves(stage.selection, stage.keep, stage.position >= 0)
    found = {ASTRAY.format(astray.shape[1] - 1): astray, SENSELESS: senseless}
    return [f"{said}; it was dropped" for said, tokens in found.items() if bool(tokens.any())]


def _count(numbers: Tensor, least: int = 0) -> list[int]:
    """How often each number from 0 occurs."""
    return torch.bincount(numbers, minlength=least).tolist()


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(values) if known and len(known) == len(values) else None
