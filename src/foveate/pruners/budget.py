"""How many visual tokens a cut may keep: a ratio or a count, checked once and turned into whole tokens."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch

from foveate.errors import BudgetError
from foveate.tensors import plain_number


def check_keep(keep: float | int) -> float | int:
    """Return `keep` as a plain float (share of the visual tokens) or int (count), or say what is wrong with it.

    Parameters
    ----------
    keep
        A float in (0, 1]: the share of the visual tokens to keep; 1.0 switches pruning off. An int of at least 2: a
        number of visual tokens. Numbers of numpy and 0-d tensors are taken likewise.

    Raises
    ------
    BudgetError
        For anything else: 0, negative numbers, shares over 1, NaN, text, booleans, and the int 1, which could mean
        "all" or "one token".
    """
    keep = plain_number(keep)
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise BudgetError(f"keep must be a share in (0, 1] or a count of visual tokens, got {keep!r}")
    if isinstance(keep, Integral):
        count = int(keep)
        if count == 1:
            raise BudgetError("keep=1 is ambiguous: write 1.0 to keep every visual token; a count starts at 2")
        if count < 1:
            raise BudgetError(f"keep must be positive, got {count}")
        if count >= 2**63:
            raise BudgetError(f"keep is a count of visual tokens, and no prompt has {count}")
        return count
    share = float(keep)
    if math.isnan(share) or not 0 < share <= 1:
        raise BudgetError(f"keep as a share must lie in (0, 1], got {share}; a count of tokens is an int")
    return share


def check_share(keep: float) -> float:
    """`check_keep` for methods whose budget is a share and never a count.

    Raises
    ------
    BudgetError
        As `check_keep`, and for a count.
    """
    share = check_keep(keep)
    if not isinstance(share, float):
        raise BudgetError(f"keep is a share in (0, 1] here, no count, got {keep!r}")
    return share


def parse_keep(text: str) -> float | int:
    """A budget as it is written: `0.22` a share of the visual tokens, `49` a count of them, `1.0` all.

    Raises
    ------
    BudgetError
        When it is neither, or makes no sense; the message says what would.
    """
    written = text.strip()
    try:
        return check_keep(int(written) if written.lstrip("+-").isdecimal() else float(written))
    except ValueError as error:
        if isinstance(error, BudgetError):
            raise
        raise BudgetError(
            f"keep is a share of the visual tokens such as 0.22, a count such as 49, or 1.0 for all, got {text!r}"
        ) from None


def parse_keeps(text: str) -> tuple[float | int, ...]:
    """Budgets with commas between them.

    Raises
    ------
    BudgetError
        When one of them makes no sense, or there is none.
    """
    found = tuple(parse_keep(piece) for piece in text.split(",") if piece.strip())
    if not found:
        raise BudgetError(f"keep is at least one budget, such as 0.5,0.22 or 49, got {text!r}")
    return found


def tokens_to_keep(keep: float | int, dense: torch.Tensor) -> torch.Tensor:
    """Whole tokens for each row: `round(keep * dense)` or the count, at least 1 and at most `dense`.

    Parameters
    ----------
    keep
        A checked budget, see `check_keep`.
    dense
        (B,) long, the visual tokens a row had before any pruning.

    Returns
    -------
    torch.Tensor
        (B,) long; 0 only where a row has no visual token.
    """
    wanted = torch.full_like(dense, keep) if isinstance(keep, int) else (dense.double() * keep).round().long()
    return torch.minimum(wanted.clamp(min=1), dense)


def keep_behind(method: str, share: float, layer: int, depth: int) -> float:
    """Share to keep before `layer` of `depth` so that layers hold `share` of the visual tokens on average.

    Raises
    ------
    BudgetError
        When the layers before the cut hold more than that by themselves, or `share` is none.
    """
    if not isinstance(check_keep(share), float):
        raise BudgetError(f"{method}: a mean share lies in (0, 1], got {share!r}")
    keep = (share * depth - layer) / (depth - layer)
    if keep <= 0:
        raise BudgetError(
            f"{method}: a cut before layer {layer} of {depth} leaves over {layer / depth:.0%} of the visual tokens "
            f"per layer on average, not {share:.0%}"
        )
    return min(keep, 1.0)
