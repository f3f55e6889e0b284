"""How many visual tokens each decoder layer turns: BTP's calibration curve."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.families import Family, family_of, visual_mask

# counted in the same pass, for models whose layers turn their tokens less, or more, than the paper's
OTHER_TAUS = (0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
FLAT = 0.02  # a curve that varies by less over the layers says nothing of where the stages belong


@dataclass(frozen=True)
class Curve:
    """The mean over samples.

    Attributes
    ----------
    tau
        Threshold of the curve that is used.
    asked
        Threshold that was asked for.
    shares
        For each threshold the share of visual tokens, by layer, whose hidden state has a cosine under it between
        before and after the layer: the paper's n_l over the number of visual tokens.
    cosines
        The mean cosine, by layer.
    samples
        Prompts with visual tokens.
    """

    tau: float
    asked: float
    shares: Mapping[float, list[float]]
    cosines: list[float]
    samples: int

    @property
    def turned(self) -> list[float]:
        """n_l as a share, by layer, at `tau`."""
        return self.shares[self.tau]

    @property
    def note(self) -> str | None:
        """What a user should know of the threshold."""
        if self.tau == self.asked:
            return None
        spread = spread_of(self.shares[self.asked])
        return (
            f"at tau {self.asked:g} the curve is flat (over the layers it varies by {spread:.1%} of the tokens); tau "
            f"{self.tau:g} is used instead, of the others counted the one at which it varies most"
        )


class TurnCurve:
    """Running sums of the curve: their size depends on the model's depth, not on the number of samples.

    Parameters
    ----------
    depth
        Decoder layers.
    tau
        Threshold asked for; the paper's is 0.93.

    Attributes
    ----------
    sums
        Tensors in float64: `under (T, depth)` sums over samples of the share of tokens under each threshold,
        `cosine (depth,)` sums of the mean cosine, `samples ()`.
    """

    def __init__(self, depth: int, tau: float = 0.93) -> None:
        self.depth, self.tau = depth, tau
        self.taus = tuple(sorted({*OTHER_TAUS, tau}))
        self.sums = {
            "under": torch.zeros(len(self.taus), depth, dtype=torch.float64),
            "cosine": torch.zeros(depth, dtype=torch.float64),
            "samples": torch.zeros((), dtype=torch.float64),
        }

    @contextlib.contextmanager
    def watch(self, model: nn.Module, inputs: Mapping[str, Any], family: Family | None = None) -> Iterator[None]:
        """Count what the one dense forward pass of `inputs` inside the context does; the model is left as it was.

        Only forward hooks of the decoder layers are used, and they are taken off on exit, also after an error. What a
        family adds between two layers (deep-stack) is not part of either.

        Parameters
        ----------
        model
            Of a supported family.
        inputs
            Arguments of the pass: `input_ids (B, L)`, `attention_mask`, and what marks visual tokens.
        """
        parts = (family or family_of(model)).parts(model)
        visual = visual_mask(parts, inputs)
        if visual is None:
            raise ValueError("a decode step has no visual tokens to watch")
        if isinstance(inputs.get("attention_mask"), Tensor):
            visual = visual & inputs["attention_mask"].bool()
        found = {name: torch.zeros_like(total) for name, total in self.sums.items()}
        found["samples"] += float(visual.any(-1).sum())
        handles = [
            layer.register_forward_hook(partial(self._count, found, visual, number), with_kwargs=True)
            for number, layer in enumerate(parts.layers)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for name, value in found.items():
            self.sums[name] += value

    def _count(
        self,
        found: dict[str, Tensor],
        visual: Tensor,
        number: int,
        layer: nn.Module,
        args: tuple,
        kwargs: dict,
        output: Any,
    ) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        if before.shape[1] != visual.shape[1]:
            raise RuntimeError("the curve is that of the dense model: detach the pruner first")
        for row, mask in enumerate(visual.to(before.device)):
            if mask.any():
                cosine = torch.cosine_similarity(before[row, mask].float(), after[row, mask].float(), dim=-1).double()
                taus = torch.tensor(self.taus, dtype=torch.float64, device=cosine.device)
                found["under"][:, number] += (cosine < taus[:, None]).double().mean(-1).cpu()
                found["cosine"][number] += cosine.mean().cpu()

    def result(self) -> Curve:
        """The curve so far, and the threshold to read it at.

        That is the one asked for, unless its curve is flat: if its largest and its smallest share differ by less than
        two points, the threshold whose curve varies most is taken, of equal ones the nearest to the one asked for.
        """
        samples = int(self.sums["samples"])
        shares = {
            tau: (row / max(samples, 1)).tolist() for tau, row in zip(self.taus, self.sums["under"], strict=True)
        }
        tau = self.tau
        if spread_of(shares[tau]) < FLAT:
            tau = max(self.taus, key=lambda other: (spread_of(shares[other]), -abs(other - self.tau)))
        return Curve(tau, self.tau, shares, (self.sums["cosine"] / max(samples, 1)).tolist(), samples)


def spread_of(turned: Sequence[float]) -> float:
    """Largest less smallest share of a curve."""
    return max(turned) - min(turned)


GAP, FIRST, LAST = 3 / 32, 3 / 32, 24 / 32  # as shares of the depth


def stages_from_curve(turned: Sequence[float], count: int) -> tuple[int, ...]:
    """Layers before which to cut, where the curve jumps most.

    The paper says to prune where n_l, the number of visual tokens that layer l turns, jumps, but gives no rule. This
    is ours: the boundary before layer l + 1 scores |n_{l+1} - n_l|; boundaries are taken in the order of their score,
    of equal ones the earlier first, until there are `count`, leaving out those that

    * lie less than 3 layers of 32 from one already taken (scaled with depth, at least 1),
    * lie before layer 3 of 32 (scaled, at least 1): there the states have hardly met the text, or
    * lie after layer 24 of 32 (scaled): a cut there saves little, and the last layer turns all tokens in any model.

    Parameters
    ----------
    turned
        n_l or its share, by decoder layer, from layer 0.
    count
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
