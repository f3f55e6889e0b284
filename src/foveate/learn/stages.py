"""From the calibration curve to the layers of the stages."""

from __future__ import annotations

from collections.abc import Sequence

GAP, FIRST, LAST = 3 / 32, 3 / 32, 24 / 32  # as shares of the depth


def stages_from_curve(turned: Sequence[float], count: int) -> tuple[int, ...]:
    """Layers before which to cut, where the curve jumps most.

    The paper says to prune where n_l, the number of visual tokens that layer l turns, jumps, but gives no rule. This
    is ours: the boundary before layer l + 1 scores |n_{l+1} - n_l|; boundaries are taken in the order of their score,
    of equal ones the earlier first, until there are `count`, leaving out those that

    * lie less than 3 layers of 32 from one already taken (scaled with depth, at least 1),
    * lie before layer 3 of 32 (scaled, at least 1): there the states have hardly met the text, or
    * lie behind layer 24 of 32 (scaled): a cut there saves little, and the last layer turns all tokens in any model.

    Parameters
    ----------
    turned : sequence of float
        n_l or its share, by decoder layer, from layer 0.
    count : int
        Stages wanted; fewer are returned where no more fit.

    Returns
    -------
    tuple of int
        Layers, counted from 0, ascending.
    """
    depth = len(turned)
    gap, first = (max(1, round(depth * share)) for share in (GAP, FIRST))
    last = max(first, round(depth * LAST))
    places = range(first, min(last, depth - 1) + 1)
    taken: list[int] = []
    for layer in sorted(places, key=lambda layer: (-abs(turned[layer] - turned[layer - 1]), layer)):
        if len(taken) < count and all(abs(layer - other) >= gap for other in taken):
            taken.append(layer)
    return tuple(sorted(taken))
