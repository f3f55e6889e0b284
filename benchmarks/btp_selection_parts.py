"""What BTP does at a stage, part by part, and the same by a plain loop of one step a token; see btp_selection.py."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate import select
from foveate.engine.attention import attention_rows
from foveate.engine.gather import gather_positions
from foveate.engine.layout import lay_out
from foveate.families import Grid
from foveate.pruners import BTP
from foveate.pruners.base import VisualTokens
from foveate.pruners.spread import spread
from foveate.select import spatial

Watch = Callable[[Callable[[], Any]], tuple[float, Any]]
HEADS = 32  # of 128 dimensions in a 7B model
OURS = ("attention row", "rebalanced pick", "spatial seed", "max-min diversity")
OTHERS = ("spatial seed, shape seen before", "loop: spatial seed", "loop: max-min diversity")


def stopwatch(device: torch.device, threads: int) -> Watch:
    """Seconds that a call takes: of the GPU, of the process where it has one thread, or else by the clock."""

    def on_gpu(call: Callable[[], Any]) -> tuple[float, Any]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, result

    def on_cpu(call: Callable[[], Any]) -> tuple[float, Any]:
        clock = time.process_time if threads == 1 else time.perf_counter
        start = clock()
        result = call()
        return clock() - start, result

    return on_gpu if device.type == "cuda" else on_cpu


def clustered(number: int, width: int, seed: int) -> Tensor:
    """(1, number, width) float32 features around centres, so that many are alike."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(number // 8, 1), width, generator=generator)
    which = torch.randint(0, len(centres), (number,), generator=generator)
    return 0.02 * (centres[which] + 0.3 * torch.randn(number, width, generator=generator))[None]


@dataclass
class StageCase:
    """A stage with its input and, for each part, the seconds of each round."""

    layer: int
    tokens: VisualTokens
    k: int
    attended: int
    seeded: int
    over: float
    split: float
    query: Tensor
    key: Tensor
    seconds: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in (*OURS, *OTHERS)})
    alike: float | None = None

    def time_ours(self, watch: Watch, pruner: BTP) -> Tensor:
        """Time each part once, and see that together they choose what BTP chooses."""
        tokens, rows = self.tokens, torch.full((1, 1), self.query.shape[2] - 1, device=self.query.device)
        visual = tokens.valid.shape[1]

        def attention() -> Tensor:
            return attention_rows(self.query, self.key, None, {}, rows)[..., :visual]

        def pick() -> Tensor:
            score = found.mean(1).sum(1)
            return select.rebalanced_top_k(score, self.attended, self.over, self.split, tokens.valid)

        def seed() -> Tensor:
            return chosen | spread(tokens, torch.tensor([self.seeded], device=chosen.device))

        def diversity() -> Tensor:
            return select.max_min_diversity(tokens.features, self.k, chosen, tokens.valid)

        found = self._add("attention row", watch(attention))
        chosen = self._add("rebalanced pick", watch(pick))
        if self.seeded:
            spatial._ranks.cache_clear()  # what the first prompt of a shape pays counts, not what later ones do
            seeded = self._add("spatial seed", watch(seed))
            self._add("spatial seed, shape seen before", watch(seed))
            chosen = seeded
        if self.attended < self.k:
            chosen = self._add("max-min diversity", watch(diversity))
        real = pruner.select(dataclasses.replace(tokens, attention=found))
        if not torch.equal(chosen, real):
            raise RuntimeError(f"the parts before layer {self.layer} do not choose what BTP.select chooses")
        return chosen

    def time_loop(self, watch: Watch, pruner: BTP) -> None:
        """Time the two parts that a loop does otherwise, from the same picks by attention."""
        tokens = self.tokens
        rows = torch.full((1, 1), self.query.shape[2] - 1, device=self.query.device)
        found = attention_rows(self.query, self.key, None, {}, rows)[..., : tokens.valid.shape[1]]
        score = found.mean(1).sum(1)
        chosen = select.rebalanced_top_k(score, self.attended, self.over, self.split, tokens.valid)[0]
        if self.seeded:
            ours = spread(tokens, torch.tensor([self.seeded], device=chosen.device))[0]
            counts = [int(ours[tokens.grid[0] == number].sum()) for number in range(len(tokens.grids[0]))]
            seed = self._add("loop: spatial seed", watch(lambda: loop_seed(tokens.grids[0], counts, chosen.device)))
            if not torch.equal(seed, ours):
                raise RuntimeError("the loop's spatial seed is another one")
            chosen = chosen | seed
        if self.attended < self.k:
            loop = self._add(
                "loop: max-min diversity", watch(lambda: loop_diversity(tokens.features[0], self.k, chosen))
            )
            real = pruner.select(dataclasses.replace(tokens, attention=found))[0]
            self.alike = float((loop & real).sum() / self.k)

    def _add(self, part: str, timed: tuple[float, Tensor]) -> Tensor:
        self.seconds[part].append(timed[0])
        return timed[1]


def loop_diversity(features: Tensor, k: int, start: Tensor) -> Tensor:
    """(N,) bool, k tokens: one argmin and one product with all features for each pick."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    keep = start.clone()
    nearest = (unit @ unit[start].T).amax(-1).masked_fill(keep, torch.inf)
    for _ in range(k - int(start.sum())):
        pick = nearest.argmin()
        keep[pick] = True
        nearest = torch.maximum(nearest, unit @ unit[pick])
        nearest[pick] = torch.inf
    return keep


def loop_seed(grids: tuple[Grid, ...], counts: list[int], device: torch.device) -> Tensor:
    """(N,) bool, so many cells of each grid: one argmax and one row of distances for each pick."""
    found = []
    for grid, count in zip(grids, counts, strict=True):
        cell = torch.arange(grid.cells, device=device)
        row, column = cell // grid.width, cell % grid.width
        keep = torch.zeros(grid.cells, dtype=torch.bool, device=device)
        nearest = torch.full((grid.cells,), grid.cells, device=device)
        for _ in range(count):
            pick = nearest.argmax()
            keep[pick] = True
            nearest = torch.minimum(nearest, (row - row[pick]).abs() + (column - column[pick]).abs())
        found.append(keep)
    return torch.cat(found)


@torch.inference_mode()
def stage_cases(
    pruner: BTP, depth: int, grids: tuple[Grid, ...], text: int, width: int, dtype: torch.dtype, device: torch.device
) -> list[StageCase]:
    """The stages one after another, each with the tokens that the one before left."""
    number = sum(grid.length for grid in grids)
    layout = lay_out(torch.ones(1, number, dtype=torch.bool), [], [grids])
    image, grid, row, column = layout.places.to(device)
    position = torch.arange(number, device=device)[None]
    features = clustered(number, width, 0).to(device, dtype)
    cases: list[StageCase] = []
    for stage in pruner.schedule(depth):
        count = position.shape[1]
        tokens = VisualTokens(
            layer=stage.layer,
            features=features,
            valid=torch.ones(1, count, dtype=torch.bool, device=device),
            dense=torch.tensor([number], device=device),
            position=position,
            image=image,
            grid=grid,
            row=row,
            column=column,
            grids=layout.grids,
            grids_known=layout.known,
            query=features[:, -1],
            mean_text=features[:, -1],
            attention=None,
            extra=features[:, :0],
        )
        generator = torch.Generator().manual_seed(stage.layer)
        heads = (1, HEADS, count + text, width // HEADS)
        query, key = (torch.randn(heads, generator=generator).to(device, dtype) for _ in range(2))
        k = round(stage.keep * number)
        attended = int(stage.attention * k + 1e-9)
        seeded = int(stage.spatial * (k - attended) + 1e-9)
        case = StageCase(stage.layer, tokens, k, attended, seeded, stage.over, stage.split, query, key)
        keep = case.time_ours(lambda call: (0.0, call()), pruner)
        for seconds in case.seconds.values():
            seconds.clear()
        cases.append(case)
        kept = keep[0].nonzero()[:, 0][None]
        features = gather_positions(features, kept, 1)
        position, image, grid, row, column = (one.gather(1, kept) for one in (position, image, grid, row, column))
    return cases
