"""The rules of foveate.select as plain Python loops over one row, straight from their definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

Row = Sequence[float]


def cosine(a: Row, b: Row) -> float:
    length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0


def top_k(scores: Row, k: int, valid: Sequence[bool]) -> set[int]:
    kept: set[int] = set()
    while len(kept) < min(k, sum(valid)):
        best = None
        for i, score in enumerate(scores):
            if valid[i] and i not in kept and (best is None or score > scores[best]):
                best = i
        kept.add(best)
    return kept


def rebalanced_top_k(scores: Row, k: int, over: Fraction, split: Fraction | int, valid: Sequence[bool]) -> set[int]:
    """`split`: an index, or else a share as a Fraction."""
    present = [i for i, real in enumerate(valid) if real]
    wanted = min(k, len(present))
    back = split if isinstance(split, int) else math.floor(split * len(present))
    ranked = sorted(present, key=lambda i: (-scores[i], i))
    candidates = ranked[: math.floor(over * wanted)]
    front = [i for i in candidates if present.index(i) < back]
    behind = [i for i in candidates if i not in front]
    return set((front + behind)[:wanted])


def spatial_order(height: int, width: int, metric: str) -> list[int]:
    """Cells in the order in which they are taken."""

    def distance(a: int, b: int) -> int:
        rows, columns = abs(a // width - b // width), abs(a % width - b % width)
        return rows + columns if metric == "manhattan" else rows**2 + columns**2

    taken = [0]
    while len(taken) < height * width:
        left = [cell for cell in range(height * width) if cell not in taken]
        taken.append(max(left, key=lambda cell: (min(distance(cell, other) for other in taken), -cell)))
    return taken


def greedy(features: Sequence[Row], scores: Row, k: int, threshold: float, valid: Sequence[bool]) -> list[int]:
    active, chosen = {i for i, real in enumerate(valid) if real}, []
    while active and len(chosen) < k:
        best = min(active, key=lambda i: (-scores[i], i))
        chosen.append(best)
        active -= {best, *(i for i in active if cosine(features[i], features[best]) > threshold)}
    return chosen


def suppression(
    features: Sequence[Row], scores: Row, k: int, threshold: float, fill: str, valid: Sequence[bool], steps: int
) -> set[int]:
    wanted = min(k, sum(valid))
    if threshold >= 1:
        return top_k(scores, k, valid)
    kept = set(greedy(features, scores, k, threshold, valid))
    if fill == "saliency":
        left = sorted((i for i in range(len(scores)) if valid[i] and i not in kept), key=lambda i: (-scores[i], i))
        return kept | set(left[: wanted - len(kept)])
    if fill == "relax" and len(kept) < wanted:
        kept, low, high = top_k(scores, k, valid), math.acos(max(threshold, -1)), 0.0
        for _ in range(steps):
            middle = (low + high) / 2
            trial = greedy(features, scores, k, math.cos(middle), valid)
            if len(trial) == wanted:
                kept, high = set(trial), middle
            else:
                low = middle
    return kept


def outlier(features: Sequence[Row], valid: Sequence[bool]) -> int:
    """The valid token farthest from the mean direction."""
    mean = [0.0] * len(features[0])
    for i, row in enumerate(features):
        length = math.sqrt(sum(x * x for x in row))
        if valid[i] and length:
            mean = [m + x / length for m, x in zip(mean, row, strict=True)]
    return min((i for i, real in enumerate(valid) if real), key=lambda i: (cosine(features[i], mean), i))


def most_isolated(features: Sequence[Row], valid: Sequence[bool]) -> int:
    """The valid token whose nearest neighbour is farthest."""
    present = [i for i, real in enumerate(valid) if real]
    near = {i: max((cosine(features[i], features[j]) for j in present if j != i), default=-1.0) for i in present}
    return min(present, key=lambda i: (near[i], i))


def max_min_diversity(
    features: Sequence[Row], k: int, start: Sequence[bool], valid: Sequence[bool], first: str = "published"
) -> set[int]:
    wanted = min(k, sum(valid))
    kept = {i for i, given in enumerate(start) if given and valid[i]}
    kept = set(sorted(kept)[:wanted])
    if not kept and wanted:
        kept.add((outlier if first == "outlier" else most_isolated)(features, valid))
    while len(kept) < wanted:
        left = [i for i, real in enumerate(valid) if real and i not in kept]
        kept.add(min(left, key=lambda i: (max(cosine(features[i], features[j]) for j in kept), i)))
    return kept


def residual(kernel: Sequence[Row], chosen: Sequence[int], i: int) -> float:
    """Determinant of the kernel at the chosen tokens and i over that at the chosen ones, by elimination."""
    members = [*chosen, i]
    rows = [[kernel[a][b] for b in members] for a in members]
    for step in range(len(chosen)):
        for below in range(step + 1, len(members)):
            factor = rows[below][step] / rows[step][step]
            rows[below] = [x - factor * y for x, y in zip(rows[below], rows[step], strict=True)]
    return rows[-1][-1]


def dpp(kernel: Sequence[Row], k: int, valid: Sequence[bool]) -> set[int]:
    """Greedy determinants; from a millionth of the largest diagonal entry on down, by the diagonal."""
    present = [i for i, real in enumerate(valid) if real]
    chosen: list[int] = []
    least = 1e-6 * max((kernel[i][i] for i in present), default=0.0)
    while len(chosen) < min(k, len(present)):
        gains = {i: residual(kernel, chosen, i) for i in present if i not in chosen}
        best = max(gains, key=lambda i: (gains[i], -i))
        if gains[best] <= least:
            break
        chosen.append(best)
    rest = sorted((i for i in present if i not in chosen), key=lambda i: (-kernel[i][i], i))
    return {*chosen, *rest[: min(k, len(present)) - len(chosen)]}
