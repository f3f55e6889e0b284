"""Turn a result of prefill_decode.py into a Markdown page beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def times(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['q25']:.2f}–{ratio['q75']:.2f})"


def multiple(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['q25']:.3f}–{ratio['q75']:.3f})"


def share_of_prefill(arm: dict[str, Any]) -> str:
    """Choosing as a share of the pruned prefill that it is part of."""
    return f"{arm['choosing_ms']['median'] / (1e3 * arm['prefill']['wall_s']['median']):.1%}"


def absolute(dense: dict[str, Any]) -> str:
    """Times of the dense run; only a GPU's mean something elsewhere."""
    prefill, decode = (1e3 * dense[phase]["wall_s"]["median"] for phase in ("prefill", "decode"))
    return f" Dense: prefill {prefill:.1f} ms, decode {decode:.2f} ms a token."


def page(result: dict[str, Any], source: str) -> str:
    settings, machine = result["settings"], result["machine"]
    where = machine.get("gpu") or f"{machine['cpu']}, {settings['threads']} thread(s) of {machine['cores']} cores"
    dense = result["arms"][0]
    lines = [
        "# Prefill and decode, dense beside pruned",
        "",
        f"Made by `prefill_decode_table.py` from `{source}`; do not edit.",
        "",
        f"A random-weight LLaVA (Llama, {settings['layers']} layers, hidden {settings['hidden']}, "
        f"{result['parameters'] / 1e6:.0f} M parameters, {settings['dtype']}, {settings['attention']}), "
        f"{settings['visual']} visual and {settings['text']} text tokens, batch {settings['batch']}, on {where}; "
        f"torch {result['versions']['torch']}, transformers {result['versions']['transformers']}; "
        f"{result['started']}.",
        "",
    ]
    if result["arms"][1:]:
        lines += arms(result["arms"], settings["rounds"], absolute(dense) if "gpu" in machine else "")
    if result["keep_all"]:
        lines += [
            f"Hooks attached with keep=1.0, {settings['overhead_rounds']} pairs in alternating order, time as a "
            "multiple of dense, median and quartiles:",
            "",
            "| | CPU time | wall |",
            "|---|---|---|",
        ]
        lines += [
            f"| {phase} | {multiple(found['cpu_ratio'])} | {multiple(found['wall_ratio'])} |"
            for phase, found in result["keep_all"].items()
        ]
    return "\n".join(lines) + "\n"


def arms(found: list[dict[str, Any]], rounds: int, dense: str) -> list[str]:
    """Lines on the pruned arms: how to read the table, and the table."""
    lines = [
        f"{rounds} rounds, arms in turn. The language model alone: images are encoded before. *Faster* is dense "
        "time / pruned time of the same round, median and quartiles, by CPU time; *wall* by wall-clock time "
        "on a machine that was doing other things too. "
        "*Implied* is the ratio of the FLOPs that the report states, *choosing* a share of the pruned prefill, "
        "*KV cache* the visual tokens in it as a share of the dense run's." + dense,
        "",
        "| method | keep | before layer | faster | implied | realised / implied | wall | choosing "
        "| decode faster | KV cache |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in found[1:]:
        lines.append(
            f"| {arm['method']} | {arm['keep']:g} | {arm['layer']} "
            f"| {times(arm['prefill']['faster_cpu'])} | {arm['implied']:.2f} "
            f"| **{arm['realised_to_implied_cpu']:.2f}** "
            f"| {arm['prefill']['faster_wall']['median']:.2f} | {share_of_prefill(arm)} "
            f"| {times(arm['decode']['faster_cpu'])} | {arm['kv_share']:.0%} |"
        )
    return [*lines, ""]


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: prefill_decode_table.py RESULT.json")
    source = Path(sys.argv[1])
    target = source.with_suffix(".md")
    target.write_text(page(json.loads(source.read_text()), source.name))
    print(target)


if __name__ == "__main__":
    main()
