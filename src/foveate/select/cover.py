"""Tokens that cover what is to be covered, greedily, without a map of all pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foveate.tensors import take_rows, to_device

CROWD = 64  # tokens whose gains are brought in date at a time
PICKS = 16  # from one crowd at most
CROWDS = 8  # between two looks at a device whether all is picked
ROWS = 256  # tokens whose columns are made at a time to begin with


def covering(
    column: Callable[[Tensor], Tensor], worth: Callable[[Tensor, Tensor], Tensor], k: Tensor, valid: Tensor
) -> Tensor:
    """The tokens (B, N) bool that the greedy rule takes, of equal ones the first.

    A set covers a thing as far as its best token covers it. What a token adds only ever falls, so an earlier gain is a
    bound. The columns of a small crowd, those with the highest bounds, are made anew, and as long as its best exceeds
    all bounds outside that is the next pick. Beside what `column` needs memory is O(B (N + R)).

    Parameters
    ----------
    column
        Gives for tokens (B, c) how far each covers what is to be covered, (B, c, R).
    worth
        Gives for what these tokens add (B, c), and for the tokens (B, c), their gains: more for more.
    k
        (B,) long, at most the valid tokens.
    """
    everyone = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
    parts = [worth(column(part).clamp(min=0).sum(-1), part) for part in everyone.split(ROWS, 1)]
    bound = torch.cat(parts, 1).masked_fill_(~valid, -torch.inf)
    left, keep = to_device(k, valid.device)[:, None].clone(), torch.zeros_like(valid)
    cover, crowded, on_cpu = bound.new_zeros(len(bound), 1, 1), min(CROWD, valid.shape[1]), valid.device.type == "cpu"
    while bool((left > 0).any()):
        for _ in range(1 if on_cpu else CROWDS):
            # 1. the crowd, and the best of what is not in it; of equal ones the first
            crowd, first = bound.topk(crowded).indices, bound.argmax(-1, keepdim=True)
            crowd[:, -1:] = torch.where((crowd == first).any(-1, keepdim=True), crowd[:, -1:], first)
            crowd = crowd.sort(dim=-1).values
            outside = bound.scatter(1, crowd, -torch.inf)
            rival = outside.argmax(-1, keepdim=True)
            limit = outside.gather(1, rival)
            covers, gone = column(crowd), bound.gather(1, crowd) == -torch.inf
            # 2. picks from it
            for _ in range(PICKS):
                gain = worth((covers - cover).clamp_(min=0).sum(-1), crowd).masked_fill_(gone, -torch.inf)
                best, at = gain.max(-1, keepdim=True).values, gain.argmax(-1, keepdim=True)
                pick = crowd.gather(1, at)
                taken = ((best > limit) | (best == limit) & (pick < rival)) & (left > 0) & (best > -torch.inf)
                if on_cpu and not bool(taken.any()):
                    break
                keep.scatter_(1, pick, keep.gather(1, pick) | taken)
                cover = torch.where(taken[..., None], torch.maximum(cover, take_rows(covers, at)), cover)
                gone = gone.scatter(1, at, gone.gather(1, at) | taken)
                left = left - taken.long()
            bound.scatter_(1, crowd, gain.masked_fill_(gone, -torch.inf))
    return keep
