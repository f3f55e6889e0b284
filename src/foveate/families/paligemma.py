"""PaliGemma and PaliGemma 2: one square an image; a prompt that sees itself in both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.errors import UnsupportedModelError
from foveate.families.base import Family
from foveate.families.grids import Grid, Run


@dataclass(frozen=True)
class PaliGemma(Family):
    """The default finds all of it; what sees what is in the mask that the model makes from `token_type_ids`.

    Without these it makes none for a batch without padding, and its attention then sees everything, but with padding
    a causal one: no rule that a pruned run could keep.
    """

    answer_type: ClassVar[int] = 1  # 0 is the prompt, which sees all of itself

    def image_grids(
        self, config: Any, kwargs: Mapping[str, Any], runs: Sequence[Run]
    ) -> list[tuple[Grid, ...]] | None:
        """As the default.

        Raises
        ------
        UnsupportedModelError
            Without `token_type_ids`.
        """
        if kwargs.get("token_type_ids") is None:
            raise UnsupportedModelError(
                "PaliGemma is pruned only with token_type_ids, which its processor gives: without them what a token "
                "sees depends on the padding of the batch"
            )
        return super().image_grids(config, kwargs, runs)


PALIGEMMA = PaliGemma("paligemma", "PaliGemma", "google/paligemma2-3b-mix-224")
