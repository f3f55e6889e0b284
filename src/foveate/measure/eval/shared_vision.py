"""The vision encoder run once for all arms of a batch: what its blocks put out is kept, and given to the next arm.

A block is only skipped if it is given, to the bit, what it was given before, so no answer changes; hooks on the block
still run, so methods that look at it see the same. A method that looks at the attention inside a block has it run.
Timing (`--time`) goes past this: there every arm encodes its images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedModelError
from foveate.families import family_of

LIMIT = 2**30  # bytes; a batch whose images take more is encoded for each arm


class SharedVision:
    """Outputs of the vision encoder's blocks for one batch of images.

    Parameters
    ----------
    model
        Where no vision encoder is found, nothing is shared.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._blocks = model, _blocks(model)
        self._calls: dict[int, list[tuple[Any, Any]]] = {}
        self._held = 0

    @contextmanager
    def sharing(self, pruner: Any = None) -> Iterator[None]:
        """Within this the encoder's blocks compute what they did not compute before.

        Parameters
        ----------
        pruner
            The method that is about to be attached, or None.
        """
        heard = set() if pruner is None else self._heard(pruner)
        turns: Counter[int] = Counter()
        before = {}
        for number, block in enumerate(self._blocks):
            if number not in heard:
                before[number] = vars(block).get("forward")
                block.forward = self._instead(number, block.forward, turns)
        try:
            yield
        finally:
            for number, forward in before.items():
                del self._blocks[number].forward
                if forward is not None:  # accelerate puts one there
                    self._blocks[number].forward = forward

    def _heard(self, pruner: Any) -> set[int]:
        """Blocks whose attention a method looks at."""
        members = pruner.resolved(self._model.config).members
        return {block for one in members for block in one.vision_attention(len(self._blocks))}

    def _instead(self, number: int, forward: Callable[..., Any], turns: Counter[int]) -> Callable[..., Any]:
        def block(*args: Any, **kwargs: Any) -> Any:
            calls, turn = self._calls.setdefault(number, []), turns[number]
            turns[number] += 1
            if turn < len(calls) and _same((args, kwargs), calls[turn][0]):
                return calls[turn][1]
            output = forward(*args, **kwargs)
            if turn == len(calls) and self._held <= LIMIT:
                calls.append(((args, kwargs), output))
                self._held += _bytes(output)
            return output

        return block


def _blocks(model: Any) -> list[nn.Module]:
    try:
        return list(family_of(model).vision_blocks(model))
    except UnsupportedModelError:
        return []


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal, tensors to the bit."""
    if one is other:
        return True
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, (int, float, str)) and bool(one == other)


def _bytes(output: Any) -> int:
    if isinstance(output, Tensor):
        return output.numel() * output.element_size()
    return sum(map(_bytes, output)) if isinstance(output, (list, tuple)) else 0
