"""EXAONE-4.5: Qwen2.5-VL's vision encoder and grids around a decoder with windows and plain positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.families.qwen import Qwen2_5VL


@dataclass(frozen=True)
class Exaone4_5(Qwen2_5VL):
    """Differs in its positions, which do not tell rows and columns."""

    wants_sizes: ClassVar[bool] = True


EXAONE4_5 = Exaone4_5("exaone4_5", "EXAONE-4.5", "LGAI-EXAONE/EXAONE-4.5-33B")
