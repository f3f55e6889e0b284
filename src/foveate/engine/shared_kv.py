"""Layers that read the keys and values of a layer before them, instead of making their own.

Such a reader sees what its source holds: the tokens that were there before the source. So no token may be taken out
between the two, else a reader would go on seeing it. Before the source a cut is exact, and the reader has no cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from foveate.errors import BudgetError


@dataclass(frozen=True)
class Keys:
    """The keys that a layer attended to in this forward pass, for those that read them after it.

    Attributes
    ----------
    slots
        (B, m) long, their dense positions, -1 for padding.
    after
        The slot after that of the newest token.
    past
        Tokens before this forward pass.
    padded
        Whether any slot is padding.
    first
        Dense position from which on the cache of the dense run holds keys.
    window
        Of the cache layer; None without one.
    """

    slots: Tensor
    after: int
    past: int
    padded: bool
    first: int
    window: int | None


def check_stages(name: str, stages: Sequence[int], sources: Sequence[int]) -> None:
    """Refuse stages between a layer and one that reads its keys and values.

    Parameters
    ----------
    name
        Of the method.
    stages
        The layers before which it cuts.
    sources
        For each decoder layer, the one whose keys and values it reads.

    Raises
    ------
    BudgetError
        Naming those layers, and the layers before which the method can cut.
    """
    spans = [(source, reader) for reader, source in enumerate(sources) if source != reader]
    wrong = [stage for stage in stages if any(source < stage <= reader for source, reader in spans)]
    if wrong:
        able = [
            layer for layer in range(len(sources)) if not any(source < layer <= reader for source, reader in spans)
        ]
        made, read = (sorted({*ends}) for ends in zip(*spans, strict=True))
        raise BudgetError(
            f"{name}: keys and values that {_listed(made)} of this model made are read again in {_listed(read)}, and "
            f"tokens that are taken out in between, before {_listed(wrong)}, would stay in them; a stage can lie "
            f"before {_listed(able)}"
        )


def _listed(layers: Sequence[int]) -> str:
    """Layers in words, unbroken rows of them by their ends."""
    if len(layers) > 2 and layers[-1] - layers[0] == len(layers) - 1:
        return f"layers {layers[0]} to {layers[-1]}"
    return ("layer " if len(layers) == 1 else "layers ") + " and ".join(map(str, layers))
