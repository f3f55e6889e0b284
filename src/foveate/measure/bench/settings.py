"""What a bench run measures, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.errors import BudgetError
from foveate.measure.budget import AFTER, check_budget
from foveate.pruners.spec import MethodSpec


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    Parameters
    ----------
    methods
        Beside dense, random tokens and a smaller picture, which are always there.
    keeps
        Budgets: shares of the visual tokens, or counts of them.
    budget
        What they are shares of: see `measure.budget`.
    visual
        Visual tokens of a sample; none: those of one image.
    text
        Text tokens of a sample.
    batch
        Samples at once.
    decode
        Tokens decoded in each run; 0: prefill only.
    rounds, splits
        Timed rounds; rounds in which a prefill is taken apart, which costs time of its own.
    again, operations
        A second dense arm, which shows the spread; torch's count of operations, for which each arm runs once more.
    vision
        False: images come encoded, as `generate()` hands them over, and the vision encoder is in no figure.
    seed
        Of weights, words and pixels.

    Raises
    ------
    BudgetError
        A size or a share makes no sense.
    """

    methods: tuple[MethodSpec, ...] = (MethodSpec("greedyprune"),)
    keeps: tuple[float | int, ...] = (0.22, 0.11)
    budget: str = AFTER
    visual: tuple[int, ...] = ()
    text: int = 64
    batch: tuple[int, ...] = (1,)
    decode: int = 16
    rounds: int = 7
    splits: int = 2
    again: bool = True
    operations: bool = True
    vision: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("text", 2), ("decode", 0), ("rounds", 1), ("splits", 0), ("seed", 0)):
            _whole(name, getattr(self, name), least)
        for name in ("visual", "batch"):
            for size in getattr(self, name):
                _whole(name, size, 1)
        if not self.batch or not self.keeps:
            raise BudgetError("the bench needs at least one batch size and one budget")
        check_budget(self.budget, self.keeps)
        if twice := sorted({str(spec) for spec in self.methods if self.methods.count(spec) > 1}):
            raise BudgetError(f"given twice: {', '.join(twice)}")


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise BudgetError(f"{name} is a whole number of at least {least} and under 2³¹, got {value!r}")


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """Return `"1,8,32"` as numbers.

    Raises
    ------
    BudgetError
        Something else stands there.
    """
    try:
        found = tuple(int(piece) for piece in text.split(",") if piece.strip())
    except ValueError:
        found = ()
    if not found:
        raise BudgetError(f"--{name} takes whole numbers such as 1,8,32, got '{text}'")
    return found
