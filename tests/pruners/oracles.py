"""What each method keeps, by its paper's formula: plain Python on lists, one sample and one cut at a time.

Nothing of `foveate.select` or of the methods is used, but for the options that a method was made with and the numbers
that GlimpsePrune has learned. `Seen` is what the formulas are given; `tests/pruners/eager.py` reads it from a model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from foveate import BTP, DivPrune, FastV, GlimpsePrune, GreedyPrune, PyramidDrop, Random
from foveate.pruners import Pruner
from tests.select import reference

Row = Sequence[float]


@dataclass(frozen=True)
class Seen:
    """The visual tokens of one sample that reach a cut, in the order of the prompt.

    Attributes
    ----------
    layer
        The cut lies before it.
    dense
        Visual tokens before any cut.
    features
        For each token its hidden state.
    attention
        For each head, for each text row from the first image to the question's end, the attention to each token in
        the layer before the cut. The last row is the last prompt token's. Empty before layer 0.
    query
        Hidden state of the last prompt token.
    text
        Hidden states of all text tokens up to the question's end.
    image, grid
        For each token its image, and its grid or -1.
    cell
        For each token row and column on that grid.
    sizes
        Height and width of each grid.
    rank
        Place of each token among the visual tokens that reach the cut.
    glimpse
        For each token what each head of the glimpse token gives it, in the form that the predictor was trained on.
    vision
        For each vision layer that the predictor is given, for each token its features.
    """

    layer: int
    dense: int
    features: list[Row]
    attention: list[list[Row]]
    query: Row
    text: list[Row]
    image: list[int]
    grid: list[int]
    cell: list[tuple[int, int]]
    sizes: list[tuple[int, int]]
    rank: list[int]
    glimpse: list[Row] | None = None
    vision: Sequence[list[Row]] = ()

    @property
    def number(self) -> int:
        return len(self.features)

    def of_image(self, image: int) -> tuple[list[int], Seen]:
        """Which tokens lie in an image, and these alone, as if they were all."""
        mine = [j for j in range(self.number) if self.image[j] == image]
        alone = dataclasses.replace(
            self,
            dense=len(mine),
            features=[self.features[j] for j in mine],
            attention=[[[row[j] for j in mine] for row in head] for head in self.attention],
            image=[image] * len(mine),
            grid=[self.grid[j] for j in mine],
            cell=[self.cell[j] for j in mine],
            rank=list(range(len(mine))),
        )
        return mine, alone


def budget(keep: float | int, dense: int) -> int:
    """Whole tokens of a share or a count: at least one, and no more than there are."""
    wanted = keep if isinstance(keep, int) else round(keep * dense)
    return min(max(wanted, 1), dense)


def floor_of(share: float, count: int) -> int:
    """⌊share · count⌋ of the share as it is written: 0.6 is six tenths, whatever binary makes of it."""
    return math.floor(Fraction(repr(share)) * count)


def mean(rows: Sequence[Row]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def top(scores: Row, k: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:k])


def attended(seen: Seen) -> list[float]:
    """Attention of the last prompt token to each visual token, mean over the heads."""
    return mean([head[-1] for head in seen.attention])


# -- FastV, PyramidDrop, the baseline


def fastv(pruner: FastV, seen: Seen) -> set[int]:
    return top(attended(seen), budget(pruner.keep, seen.dense))


def pyramiddrop(pruner: PyramidDrop, seen: Seen) -> set[int]:
    """Section 3: of what is left, the share λ at each of three stages; λ³ is what the last one leaves."""
    return top(attended(seen), max(1, round(seen.number * pruner.keep ** (1 / 3))))


def random(pruner: Random, seen: Seen) -> set[int]:
    """One draw a token, by its rank."""
    generator = torch.Generator().manual_seed(pruner.seed)
    draws = [float(torch.rand((), generator=generator)) for _ in range(seen.number)]
    return top([draws[rank] for rank in seen.rank], budget(pruner.keep, seen.dense))


# -- DivPrune


def farthest(features: Sequence[Row], k: int, start: Sequence[int] = (), first: str = "published") -> set[int]:
    """Max-min diversity: each next token is the one whose nearest chosen token is farthest, by 1 - cosine.

    From an empty set the first is, as DivPrune and BTP published it, the one whose nearest neighbour is farthest; with
    `first="outlier"`, the one farthest from the mean direction.
    """
    everyone = range(len(features))
    near = [[reference.cosine(features[i], features[j]) for j in everyone] for i in everyone]
    chosen = sorted(start)[:k]
    if not chosen and k:
        if first == "outlier":
            middle = mean([[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in features])
            worst = [reference.cosine(row, middle) for row in features]
        else:
            worst = [max((near[i][j] for j in everyone if j != i), default=-1.0) for i in everyone]
        chosen = [min(everyone, key=lambda i: (worst[i], i))]
    while len(chosen) < k:
        left = [i for i in everyone if i not in chosen]
        chosen.append(min(left, key=lambda i: (max(near[i][j] for j in chosen), i)))
    return set(chosen)


def divprune(pruner: DivPrune, seen: Seen) -> set[int]:
    return farthest(seen.features, budget(pruner.keep, seen.dense), (), pruner.first)


# -- GreedyPrune


def greedyprune(pruner: GreedyPrune, seen: Seen) -> set[int]:
    """Volume: by determinants. Threshold: the best token still active; all too like it are put to rest."""
    limited = pruner.threshold is not None or pruner.fill != "saliency" or pruner.center
    volume = pruner.objective == "volume" or (pruner.objective is None and not limited)
    last = (pruner.query or ("mean_text" if volume else "last")) == "last"
    if seen.layer and (pruner.saliency or ("attention" if volume else "cosine")) == "attention":
        saliency = mean([row for head in seen.attention for row in (head[-1:] if last else head)])
    else:
        query = seen.query if last else mean(seen.text)
        saliency = [reference.cosine(row, query) for row in seen.features]
    if volume:
        return greatest_volume(pruner, seen, saliency)
    middle = mean(seen.features) if pruner.center else [0.0] * len(seen.features[0])
    features = [[x - m for x, m in zip(row, middle, strict=True)] for row in seen.features]
    k, valid = budget(pruner.keep, seen.dense), [True] * seen.number
    limit, fill = {None: (0.9, pruner.fill), "auto": (-1.0, "relax")}.get(
        pruner.threshold, (pruner.threshold, pruner.fill)
    )
    return reference.suppression(features, saliency, k, limit, fill, valid, steps=10)


def greatest_volume(pruner: GreedyPrune, seen: Seen, saliency: Row) -> set[int]:
    """Greedily, the largest det(diag(q) Sim diag(q)), q the saliency from 0 to 1, raised by the floor."""
    low, high = min(saliency), max(saliency)
    q = [((s - low) / (high - low) + pruner.floor) ** pruner.power for s in saliency]
    kernel = [
        [a * b * reference.cosine(v, w) for b, w in zip(q, seen.features, strict=True)]
        for a, v in zip(q, seen.features, strict=True)
    ]
    return reference.dpp(kernel, budget(pruner.keep, seen.dense), [True] * seen.number)


# -- BTP


def spread(seen: Seen, k: int, metric: str = "manhattan") -> list[int]:
    """The k tokens that come first in the farthest-point order of their grid, by (r + 1/2) of its n cells."""
    ranks = {}
    orders = [reference.spatial_order(*size, metric) for size in seen.sizes]
    for j in range(seen.number):
        if seen.grid[j] >= 0:
            (row, column), (height, width) = seen.cell[j], seen.sizes[seen.grid[j]]
            place = orders[seen.grid[j]].index(row * width + column)
            ranks[j] = Fraction(2 * place + 1, 2 * height * width)
    return sorted(ranks, key=lambda j: (ranks[j], j))[:k]


def btp(pruner: BTP, seen: Seen) -> set[int]:
    """Section 4: ⌊λk⌋ by rebalanced attention (eq. 8-10), a spatial seed (eq. 11), max-min diversity up to k."""
    stage = next(stage for stage in pruner.stages if stage.layer == seen.layer)
    if not stage.keep:
        return set()
    k = min(budget(stage.keep, seen.dense), seen.number)
    by_attention = floor_of(stage.attention, k)
    chosen: set[int] = set()
    if stage.attention:
        over = Fraction(repr(stage.over))
        # the logarithm of a softmax is the scaled product, less what is the same for all tokens of a head
        form: Callable[[float], float] = math.log if pruner.score == "logits" else float
        rows = [[form(a) for a in row] for head in seen.attention for row in _rows(pruner, head)]
        score, valid = mean(rows), [True] * seen.number
        if stage.split is None:
            chosen = top(score, min(math.floor(over * by_attention), k))
        elif pruner.rebalance:
            split = Fraction(repr(stage.split))
            chosen = reference.rebalanced_top_k(score, by_attention, over, split, valid)
        else:
            chosen = top(score, by_attention)
    if stage.attention == 1:
        return chosen
    start = sorted(chosen)
    start += sorted(farthest(seen.features, floor_of(stage.scratch, k), (), pruner.first) - chosen)
    if pruner.spatial_seed:
        number = floor_of(stage.spatial, k - by_attention)
        start += [j for j in spread(seen, number, pruner.distance) if j not in start]
    return farthest(seen.features, k, start[:k], pruner.first)


def _rows(pruner: BTP, head: list[Row]) -> list[Row]:
    return [head[-1]] if pruner.query == "last" else head


# -- GlimpsePrune


def glimpseprune(pruner: GlimpsePrune, seen: Seen) -> set[int]:
    """Section 3.3: what is likelier than the threshold; then the cap, then the floor, then the corners."""
    if pruner.weights is None:
        worth = likely = stand_in(seen)
    else:
        worth = predicted(pruner.weights, seen)
        likely = [(1 + math.tanh(logit / 2)) / 2 for logit in worth]  # the logistic function
    if pruner.keep is not None:
        count = budget(pruner.keep, seen.dense)
    else:
        count = sum(chance > pruner.threshold for chance in likely)
        if pruner.max_keep is not None:
            count = min(count, math.floor(pruner.max_keep * seen.dense))
        count = max(count, pruner.min_keep)
    return top(worth, count) | corners(pruner.anchors, seen)


def corners(names: Sequence[str], seen: Seen) -> set[int]:
    found = set()
    for j in range(seen.number):
        if seen.grid[j] >= 0:
            height, width = seen.sizes[seen.grid[j]]
            at = {"tl": (0, 0), "tr": (0, width - 1), "bl": (height - 1, 0), "br": (height - 1, width - 1)}
            found |= {j for name in names if at[name] == tuple(seen.cell[j])}
    return found


def stand_in(seen: Seen) -> list[float]:
    """Head mean of the last prompt token's attention, from 0 to 1 over the prompt's visual tokens."""
    score = attended(seen)
    low, high = min(score), max(score)
    return [(s - low) / (high - low) for s in score]


def predicted(weights: Any, seen: Seen) -> list[float]:
    """Keep logits of the predictor (VIP), token by token; attention stays inside a grid, separators see themselves."""
    number, config = {name: value.double() for name, value in weights.state_dict().items()}, weights.config

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        y = number[f"{name}.weight"] @ x
        return y + number[f"{name}.bias"] if f"{name}.bias" in number else y

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return number[f"{name}.weight"] * x / (x.square().mean() + 1e-6).sqrt()

    heads, wide = config.predictor_heads, (config.size + config.condition_size) // config.predictor_heads

    def turned(x: torch.Tensor, cell: tuple[int, int]) -> torch.Tensor:
        """Pairs (i, i + d/2) as complex numbers: half of them turn with the row, the others with the column."""
        frequency = [10000.0 ** (-i / (wide // 4)) for i in range(wide // 4)]
        angle = torch.tensor([place * f for place in cell for f in frequency], dtype=torch.float64)
        return torch.complex(x[: wide // 2], x[wide // 2 :]) * torch.polar(torch.ones_like(angle), angle)

    x = [linear("predictor.attention_in", torch.tensor(row, dtype=torch.float64)) for row in seen.glimpse or []]
    for block in range(config.blocks):
        at = f"predictor.blocks.{block}"
        query, key, value = [], [], []
        for j in range(seen.number):
            z = steered = norm(f"{at}.norm", x[j])
            if seen.vision:
                vision = torch.tensor(seen.vision[block][j], dtype=torch.float64)
                steered = torch.cat([z, linear(f"{at}.condition", vision)])
            query.append([turned(one, seen.cell[j]) for one in linear(f"{at}.query", steered).view(heads, -1)])
            key.append([turned(one, seen.cell[j]) for one in linear(f"{at}.key", steered).view(heads, -1)])
            value.append(linear(f"{at}.value", z).view(heads, -1))
        for j in range(seen.number):
            others = [i for i in range(seen.number) if seen.grid[i] == seen.grid[j] >= 0] or [j]
            mixed = []
            for head in range(heads):
                scores = [float((query[j][head] * key[i][head].conj()).real.sum()) / wide**0.5 for i in others]
                shares = [math.exp(score - max(scores)) for score in scores]
                mixed.append(
                    sum(share * value[i][head] for share, i in zip(shares, others, strict=True)) / sum(shares)
                )
            x[j] = x[j] + linear(f"{at}.out", torch.cat(mixed))
            z = norm(f"{at}.feed_norm", x[j])
            gate = linear(f"{at}.gate", z)
            x[j] = x[j] + linear(f"{at}.down", gate * torch.sigmoid(gate) * linear(f"{at}.up", z))
    return [float(linear("predictor.out", row)) for row in x]


ORACLES: dict[type[Pruner], Callable[[Any, Seen], set[int]]] = {
    BTP: btp,
    DivPrune: divprune,
    FastV: fastv,
    GlimpsePrune: glimpseprune,
    GreedyPrune: greedyprune,
    PyramidDrop: pyramiddrop,
    Random: random,
}


def choice(pruner: Pruner, seen: Seen) -> set[int]:
    """The tokens that a method keeps, as places among those that it is shown."""
    oracle = ORACLES[type(pruner)]
    if getattr(pruner, "per", "prompt") == "prompt":
        return oracle(pruner, seen)
    kept: set[int] = set()
    for image in sorted(set(seen.image)):
        mine, alone = seen.of_image(image)
        kept |= {mine[j] for j in oracle(pruner, alone)}
    return kept
