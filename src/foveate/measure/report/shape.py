"""What a result of `foveate eval` holds, as far as a report shows it."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

NUMBER = (int, float)
MAYBE = (int, float, type(None))
THERE = (object,)
INTERVAL = {"value": MAYBE, "low": MAYBE, "high": MAYBE}
SCORED = {"questions": NUMBER, "right": MAYBE, "accuracy": MAYBE, "accuracy_kept": INTERVAL}
WHOLE = {
    "configuration": {"model": THERE, "suite": THERE, "samples": THERE, "seed": THERE, "budget": (str,)},
    "bootstrap": {"level": NUMBER, "resamples": NUMBER},
    "out_of_reach": (list,),
    "notes": (list,),
    "tasks": (list,),
    "arms": (list,),
}
ARM = {
    "arm": (str,),
    "method": (str,),
    "keep": MAYBE,
    "measured": dict.fromkeys(("visual_tokens_share", "mean_tokens_per_layer", "kv_share", "flops_share"), MAYBE),
    "skipped": {"questions": NUMBER, "reasons": (dict,)},
    "over_random": THERE,
    "tasks": (dict,),
    **SCORED,
}
# what is there for some
OTHERS = {
    "over_random": INTERVAL,
    "metrics": (dict,),
    "time": {"prefill_faster": (dict,), "total_faster": (dict,)},
}


def damage(data: Mapping[str, Any]) -> str | None:
    """Return where a result is not what it should be, and what is there; `None` where all is well."""
    return next(_of_result(data), None)


def _of_result(data: Mapping[str, Any]) -> Iterator[str]:
    yield from _wrong(data, WHOLE, "")
    parts = {key: data.get(key, []) for key in ("tasks", "suites")}  # older results have no suites
    for key, names in parts.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            yield f"{key} is {reprlib.repr(names)}"
    for number, arm in enumerate(data["arms"]):
        where = f"arms[{number}]"
        yield from _wrong(arm, ARM, where)
        for key, names in parts.items():
            yield from _wrong(arm.get(key), dict.fromkeys(names, SCORED), f"{where}.{key}") if names else ()
        for name, form in OTHERS.items():
            if name in arm and not (name == "over_random" and arm[name] is None):
                yield from _wrong(arm[name], form, f"{where}.{name}")


def _wrong(value: Any, form: Any, where: str) -> Iterator[str]:
    """Each place in `value` that has another form than a mapping of forms, or one of some types, says."""
    if isinstance(form, tuple):
        if not isinstance(value, form):
            yield f"{where} is {reprlib.repr(value)}"
    elif not isinstance(value, Mapping):
        yield f"{where or 'all'} is {reprlib.repr(value)}"
    else:
        for name, inner in form.items():
            place = f"{where}.{name}".lstrip(".")
            if name not in value:
                yield f"{place} is missing"
            else:
                yield from _wrong(value[name], inner, place)
