"""Settings from a YAML or JSON file: all names and kinds are checked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from foveate.learn.errors import TrainingError

Settings = TypeVar("Settings")


def read_config(path: Path) -> dict[str, Any]:
    """What a file says, by name.

    Parameters
    ----------
    path
        `.json`, else YAML.

    Raises
    ------
    TrainingError
        It cannot be read, or holds no names.
    """
    try:
        text = path.read_text(encoding="utf-8")
        read = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot read the settings {path}: {error}") from error
    if not isinstance(read, dict) or not all(isinstance(name, str) for name in read):
        raise TrainingError(f"{path} must hold settings by name, such as `model: tiny`")
    return read


def make_settings(kind: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """A dataclass of these values.

    Parameters
    ----------
    kind
        A dataclass whose fields are numbers, texts, mappings and other dataclasses, or None.
    where
        Source of the values, for errors.

    Raises
    ------
    TrainingError
        A name that the dataclass does not have, one that it lacks, or a value of another kind.
    """
    fields = {one.name: one for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise TrainingError(f"{where} has no setting {', '.join(unknown)}; there are {', '.join(fields)}")
    missing = [
        name
        for name, one in fields.items()
        if name not in values and one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise TrainingError(f"{where} lacks {', '.join(missing)}")
    kinds = typing.get_type_hints(kind)
    return kind(**{name: _checked(name, value, kinds[name], where) for name, value in values.items()})


def _yaml(text: str) -> Any:
    import yaml  # transformers brings it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _checked(name: str, value: Any, hint: Any, where: str) -> Any:
    """The value, if it is of the kind that the field says; a mapping becomes the dataclass that is wanted."""
    kinds = tuple(typing.get_origin(one) or one for one in typing.get_args(hint) or (hint,))
    if not isinstance(hint, types.UnionType):
        kinds = (typing.get_origin(hint) or hint,)
    inside: Any = next((one for one in kinds if dataclasses.is_dataclass(one)), None)
    if inside is not None and isinstance(value, dict):
        return make_settings(inside, value, f"{where}, {name}")
    if tuple in kinds and isinstance(value, list):
        value = tuple(value)
    if float in kinds and not isinstance(value, (bool, float)):
        with contextlib.suppress(TypeError, ValueError):
            value = float(value)  # YAML takes 1e-4 for text, and 1 for a whole number
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        told = " or ".join("null" if one is type(None) else one.__name__ for one in kinds)
        raise TrainingError(f"{where}: {name} must be {told}, got {value!r}")
    return value
