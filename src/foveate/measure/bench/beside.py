"""Predicted beside measured: what a run found of the settings that were predicted."""

from __future__ import annotations

from typing import Any

from foveate.measure.bench.arms import SMALLER
from foveate.measure.bench.result import dense_entry


def beside(predicted: dict[str, Any], measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Return predicted and measured ratios to dense, of the settings that both results have.

    Where the run had the vision encoder in its time, so has the prediction: as many seconds as the dense run took.
    """
    found = []
    for entry in measured["entries"]:
        same = [
            one for one in predicted["entries"] if all(one[key] == entry[key] for key in ("arm", "visual", "batch"))
        ]
        if not same or entry["failed"] or entry["method"] == SMALLER:
            continue
        vision = _vision_seconds(measured, entry) if measured["settings"]["vision"] else 0.0
        dense, pruned = (sum(same[0][run].values()) + vision for run in ("dense", "pruned"))
        real, token = entry["prefill"]["faster"], entry["decode"]["faster"]
        whole = dense_entry(measured, entry)
        shares = {
            name: {"predicted": guess, "measured": entry[key] / whole[key] if entry[key] and whole[key] else None}
            for name, key, guess in (
                ("kv", "kv_bytes", same[0]["kv_pruned"] / same[0]["kv_dense"]),
                ("memory", "peak_bytes", same[0]["memory_share"]),
            )
        }
        found.append(
            {
                "arm": entry["arm"],
                "visual": entry["visual"],
                "batch": entry["batch"],
                "prefill": {"predicted": dense / pruned, "measured": real and real["median"]},
                "decode": {"predicted": same[0]["decode_speedup"], "measured": token and token["median"]},
                **shares,
            }
        )
    return found


def _vision_seconds(measured: dict[str, Any], entry: dict[str, Any]) -> float:
    parts = dense_entry(measured, entry)["parts"]
    return parts["ms"]["vision"] / 1e3 if parts else 0.0
