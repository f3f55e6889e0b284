"""No method holds a map of all pairs of tokens: with twice the tokens the largest tensor is about twice as large."""

from __future__ import annotations

import pytest
import torch
from benchmarks import option_costs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foveate.engine.attention_rows import received, summed_rows
from foveate.measure.predict.selection import MadeUpPrompt

NUMBER = 1152  # tokens: the half of them is more than any block of rows
MOST = 2.5  # times as large; a map of N x N, or of N x k for a share k, is 4 times as large
CASES = [
    case
    for case in option_costs.cases()
    if option_costs.fits(case) and ("weights", "as published") not in case.options  # fused attention holds no map
]


class Largest(TorchDispatchMode):
    """The bytes of the largest piece of memory that a result lies in."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                self.bytes = max(self.bytes, one.untyped_storage().nbytes())
        return result


def largest(work) -> int:
    with torch.inference_mode(), Largest() as seen:
        work()
    return seen.bytes


def chosen(case, number: int) -> int:
    """The most at any stage, of a prompt whose text and images grow with it."""
    method = option_costs.method_of(case, 16, 2)
    prompt = MadeUpPrompt(number, number // 4 if case.long_text else 8, hidden=16, heads=2)
    stages = option_costs.choosing(case, method, prompt, 16, parts=number // 96)
    return max(largest(stage) for stage in stages)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}, {case.name}, {case.shape}, {case.long_text}")
def test_memory_of_choosing_grows_with_the_tokens(case):
    assert chosen(case, 2 * NUMBER) <= MOST * chosen(case, NUMBER)


@pytest.mark.parametrize("class_token", [None, 0])
def test_memory_of_attention_received_grows_with_the_patches(class_token):
    def held(number: int) -> int:
        query, key = torch.randn(2, 1, 1, number, 8)
        return largest(lambda: received(query, key, None, {}, class_token))

    assert held(2 * NUMBER) <= MOST * held(NUMBER)


def test_memory_of_the_sum_of_text_rows_grows_with_the_prompt():
    def held(number: int) -> int:
        query, key = torch.randn(2, 1, 2, number, 8)
        return largest(lambda: summed_rows(query, key, None, {}, torch.arange(number // 2, number)[None]))

    assert held(2 * NUMBER) <= MOST * held(NUMBER)
