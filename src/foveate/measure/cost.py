"""What a pruned prefill kept, cost and saved, in lines for a person."""

from typing import Any

from foveate.measure.prefill import PrefillTime
from foveate.measure.table import percent


def where(layer: int) -> str:
    """Return where a stage cuts, in words."""
    return "before the language model" if layer == 0 else f"before decoder layer {layer}"


def cost_lines(prefill: Any, timed: PrefillTime | None = None) -> list[list[str]]:
    """Return ``[what, dense, pruned, share]`` lines of one prefill; counts are means over its samples.

    Parameters
    ----------
    prefill : foveate.engine.Prefill
        Of a pruned run.
    timed : PrefillTime or None
        Its time beside the dense run's.
    """
    lines = []
    for stage in prefill.stages:
        samples, dense = len(stage.dense), sum(stage.dense)
        kept = sum(len(positions) for positions in stage.kept)
        lines.append([f"visual tokens {where(stage.layer)}", *_counts(dense, kept, samples), percent(kept / dense)])
    mean = sum(prefill.tokens_per_layer) / len(prefill.tokens_per_layer)
    share = prefill.mean_tokens_per_layer
    lines.append(["visual tokens a layer, mean", *_counts(mean / share, mean), percent(share)])
    lines.append(["visual tokens in the KV cache", "", "", percent(prefill.kv_share)])
    if prefill.flops_dense:
        ratio = prefill.flops_pruned / prefill.flops_dense
        billions = [f"{flops / 1e9:.3g}" for flops in (prefill.flops_dense, prefill.flops_pruned)]
        lines.append(["language model's prefill, GFLOPs", *billions, percent(ratio)])
    if timed is None:
        return [*lines, ["choosing the tokens, ms", "", f"{prefill.selection_ms:.1f}", ""]]
    times = [f"{timed.dense_ms:.1f}", f"{timed.pruned_ms:.1f}", percent(timed.ratio)]
    lines.append(["prefill of the batch, image encoder included, ms", *times])
    return [*lines, ["of it choosing the tokens, ms", "", f"{timed.selection_ms:.1f}", ""]]


def _counts(dense: float, kept: float, samples: int = 1) -> list[str]:
    return [f"{count / samples:.1f}".removesuffix(".0") for count in (dense, kept)]


def time_note(timed: PrefillTime) -> str:
    """Return what the time ratio says, a loss as plainly as a gain."""
    measured = f"median of {timed.runs} pairs of runs in turn, on this machine, now"
    if timed.ratio < 0.97:
        return f"Prefill took {percent(timed.ratio, 0)} of the dense run's time ({measured})."
    if timed.ratio <= 1.03:
        return f"Prefill was no faster and no slower ({measured}): what was saved, choosing and cutting cost again."
    return (
        f"Prefill was SLOWER, {percent(timed.ratio, 0)} of the dense run's time ({measured}): for so small a model or "
        f"so few tokens, choosing and cutting cost more than they save."
    )
