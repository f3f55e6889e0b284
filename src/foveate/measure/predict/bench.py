"""`foveate bench --predict` (experimental): every setting of a bench run, predicted from the config; its tables."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from foveate.errors import ModelNotReachable
from foveate.measure import environment
from foveate.measure.bench.arms import SMALLER, make_arms
from foveate.measure.bench.prompts import tokens_of, usual_tokens
from foveate.measure.bench.result import dense_entry
from foveate.measure.bench.settings import BenchSettings
from foveate.measure.loading import EMBEDDED, LoadError, _check_family, _line, hub_answers
from foveate.measure.predict.measure_rates import measure_rates
from foveate.measure.predict.predict import MARGIN, break_even, predict, text_config
from foveate.measure.predict.rates import Rates
from foveate.measure.predict.selection import SIZES, measure_choosing
from foveate.measure.tables import Cells, percent
from foveate.torch_state import own_randomness

FORMAT = "foveate-predict-1"
Advance = Callable[[str, int, int], None]


def config_named(name: str) -> Any:
    """Return the config of a model by Hub id or folder, or of `tiny`, without its weights.

    Raises
    ------
    ModelNotReachable, UnsupportedModelError, LoadError
        As `loading.load_model`.
    """
    from transformers import AutoConfig

    from foveate.families.processors import explain_missing

    if name in EMBEDDED:
        from foveate.tiny.model import WEIGHTS

        return AutoConfig.from_pretrained(WEIGHTS)
    local = not os.path.isdir(name) and not hub_answers()
    try:
        with explain_missing(name):
            config = AutoConfig.from_pretrained(name, local_files_only=local)
    except ModelNotReachable:
        raise
    except (OSError, ValueError) as error:
        raise LoadError(f"transformers cannot read the config of '{name}': {_line(error)}") from error
    _check_family(config)
    return config


def rates_for(config: Any, device: torch.device, dtype: torch.dtype, file: Path | None) -> Rates:
    """Return the rates in a file; without one, or where it is not there yet, measure them.

    Parameters
    ----------
    config
        The model's.
    device, dtype
        What to measure.
    file
        Where rates are kept; `predictions` adds the selection times.
    """
    if file is not None and file.exists():
        return Rates.load(file)
    return measure_rates(device, dtype, text_config(config))


def predictions(
    name: str, config: Any, settings: BenchSettings, rates: Rates, advance: Advance | None = None
) -> tuple[dict[str, Any], Rates]:
    """Predict every setting of a bench run.

    The vision encoder is in no figure. What a method keeps of its own accord is not known; here every method has a
    budget, as in a bench run.

    Parameters
    ----------
    name
        The model, as the result is to call it.
    config
        The whole model's.
    settings
        As for the run.
    rates
        Of the machine.
    advance
        Called with what was done, how many steps are done and how many there are.

    Returns
    -------
    tuple
        The result, plain data for JSON, and the rates with the selection times that had to be measured.

    Raises
    ------
    FoveateError
        A method or a budget that cannot be predicted, layers of unknown cost, or rates that lack what is asked.
    """
    text, started = text_config(config), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    arms = [arm for arm in make_arms(_weightless(config), settings.methods, settings.keeps, True) if arm.pruner]
    visuals = [_real(config, visual) for visual in settings.visual or (usual_tokens(config),)]
    steps, done, entries = len(arms) * len(settings.batch), 0, []
    for batch in settings.batch:
        for arm in arms:
            pruner = _here(arm.pruner.resolved(config), rates)
            if advance is not None:
                advance(f"batch {batch}: {arm.label}", done, steps)
            if rates.here:
                sizes = {*visuals, *(size for size in SIZES if size < max(visuals))}
                rates = measure_choosing(rates, pruner, text, batch, settings.text, sizes)
            length = break_even(text, pruner, rates, text=settings.text, batch=batch)
            for visual in visuals:
                found = predict(text, pruner, visual, rates, text=settings.text, batch=batch)
                named = {"arm": arm.label, "method": arm.method, "keep": arm.keep, "break_even": length}
                entries.append({**named, **found.to_dict()})
            done += 1
    result = {
        "format": FORMAT,
        "command": environment.command(),
        "started": started,
        "settings": {**dataclasses.asdict(settings), "methods": [str(spec) for spec in settings.methods]},
        "model": {
            "name": name,
            "type": config.model_type,
            "layers": text.num_hidden_layers,
            "width": text.hidden_size,
        },
        "margin": MARGIN,
        "rates": rates.to_dict(),
        "entries": sorted(entries, key=lambda entry: (entry["visual"], entry["batch"])),
    }
    return result, rates


def _weightless(config: Any) -> Any:
    """A model of a config whose weights take no memory: arms are made for its sizes."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def _here(pruner: Any, rates: Rates) -> Any:
    """The pruner, its random weights, if it has any, on the device of the rates."""
    weights = getattr(pruner, "weights", None)
    if weights is None or not any(weight.is_meta for weight in weights.parameters()):
        return pruner
    with own_randomness():
        torch.manual_seed(0)
        made = type(weights)(weights.config)
    if rates.here:
        made = made.to(rates.device, rates.torch_dtype)
    return dataclasses.replace(pruner, weights=made.eval())


def _real(config: Any, visual: int) -> int:
    return tokens_of(config, visual) or visual


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
        real = entry["prefill"]["faster"]
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
                **shares,
            }
        )
    return found


def _vision_seconds(measured: dict[str, Any], entry: dict[str, Any]) -> float:
    parts = dense_entry(measured, entry)["parts"]
    return parts["ms"]["vision"] / 1e3 if parts else 0.0


WORDS = 2  # columns of words
PARTS = ("before", "behind", "choosing", "compaction", "rest")


def predicted_tables(result: dict[str, Any]) -> list[Cells]:
    """Return what is predicted to be gained, and where the time goes."""
    model, rates = result["model"], result["rates"]
    machine = rates["machine"]
    device = machine.get("gpu") or f"{machine.get('cpu', rates['device'])}, {machine.get('threads', '?')} thread(s)"
    title = f"{model['name']}, {rates['dtype']}, {device}: PREDICTED beside dense, images encoded before"
    heads = ["prefill, × faster", "FLOPs imply ×", "KV cache", "peak memory", "break-even"]
    gains, split = [], []
    for entry in result["entries"]:
        name = [f"{entry['visual']} × {entry['batch']}", entry["arm"]]
        share = entry["kv_pruned"] / entry["kv_dense"]
        ratios = [f"{entry[key]:.2f}" for key in ("speedup", "implied")]
        length = "none" if entry["break_even"] is None else str(entry["break_even"])
        gains.append([*name, *ratios, percent(share), percent(entry["memory_share"]), length])
        whole = sum(entry["dense"].values())
        shares = [f"{100 * entry['pruned'][part] / whole:.1f}" for part in PARTS]
        split.append([*name, *shares, f"{100 / entry['speedup']:.1f}"])
    return [
        Cells(title, ["visual × batch", "arm", *heads], gains),
        Cells(
            "Where the time of a prefill would go, % of dense's",
            ["visual × batch", "arm", "layers before", "layers after", "selection", "compaction", "rest", "all"],
            split,
        ),
    ]


def predicted_notes(result: dict[str, Any]) -> list[str]:
    """Return what a reader must know beside the tables."""
    return [
        "Nothing was run but parts of a decoder layer and the methods' own choice on made-up tokens: predictions from "
        "the config and this machine's rates. How far they are off: benchmarks/results/predicted.md.",
        f"Break-even: from so many visual tokens of a prompt on the prefill is predicted to be at least "
        f"{100 * result['margin']:.0f} % faster than dense; set min_visual to it, and shorter prompts run dense.",
    ]


def beside_table(rows: list[dict[str, Any]]) -> Cells:
    """Return predicted beside measured ratios to dense."""

    def share(shares: dict[str, Any]) -> list[str]:
        return [percent(shares["predicted"]), percent(shares["measured"])]

    def cells(ratios: dict[str, Any]) -> list[str]:
        if ratios["measured"] is None:
            return [f"{ratios['predicted']:.2f}", "–", "–"]
        error = ratios["predicted"] / ratios["measured"] - 1
        return [f"{ratios['predicted']:.2f}", f"{ratios['measured']:.2f}", f"{100 * error:+.1f}"]

    found = []
    for row in rows:
        name = [f"{row['visual']} × {row['batch']}", row["arm"]]
        found.append([*name, *cells(row["prefill"]), *share(row["kv"]), *share(row["memory"])])
    heads = ["TTFT, × predicted", "measured", "error, %"]
    heads += ["KV cache, predicted", "measured", "peak memory, predicted", "measured"]
    return Cells("Predicted beside measured, against dense", ["visual × batch", "arm", *heads], found)
