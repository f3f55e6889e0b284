"""What a method returns of the visual tokens at a stage, where it says more than which stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Selection:
    """Which visual tokens stay, and what becomes of the others: a method may merge them into tokens that stay.

    A survivor s with hidden state h_s, into which tokens i with weights w_i go, becomes

        (h_s + sum of w_i h_i) / (1 + sum of w_i)    with `how="average"`, the weighted mean in which s counts once,
        h_s + sum of w_i h_i                         with `how="add"`,

    in fp32. Its position stays its own. Weights of zero change nothing.

    Attributes
    ----------
    keep
        (B, N) bool; entries outside `VisualTokens.valid` are ignored.
    into
        (B, N) long, for each token that leaves the column of the survivor that it goes into; -1: it is dropped. None:
        all are dropped. What is said of survivors and of padding is ignored.
    weight
        (B, N) its weight, not negative; None: 1. A weight or an `into` that makes no sense raises `ValueError` on the
        CPU; on another device, where looking would wait for it, that token is dropped, and the report says so.
    how
        See above.
    carry
        (B, ...) what the method's next stages of this prefill are to know, as `VisualTokens.carried`; None: they are
        shown what they would have been.
    """

    keep: Tensor
    into: Tensor | None = None
    weight: Tensor | None = None
    how: Literal["average", "add"] = "average"
    carry: Tensor | None = None
