"""Attention backends: the same results on each."""

from __future__ import annotations

import functools

from tests.tiny_models import build
from tests.ways.checks import agree, run
from tests.ways.ways import way


def _backend(attention: str, family: str) -> None:
    agree(run(family, model=build(family, attention)))


for name in ("sdpa", "eager"):
    way(name, table="backends")(functools.partial(_backend, name))
