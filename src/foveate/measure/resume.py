"""What every run that can be stopped needs: to say how its settings differ from the earlier ones, and whole files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name each setting that differs, with both values; empty where none does."""
    differ = sorted(key for key in {**now, **earlier} if now.get(key) != earlier.get(key))
    return ", ".join(f"{key} {earlier.get(key)!r} (now {now.get(key)!r})" for key in differ)


def write_whole(path: Path, data: Any, indent: int | None = None) -> None:
    """Write JSON to a file; a stop in the middle leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(data, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    new.replace(path)
