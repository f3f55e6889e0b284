"""Compile every Triton kernel for a GPU that need not be there, with the arguments that foveate launches it with.

Run as `python -m tests.compile_kernels`, in a process of its own where Triton does not interpret: prints a line for
each kernel. What is compiled is not run, so the functions that launch it give rubbish.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "0"

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from foveate.kernels import attention_rows as fused_rows
from foveate.kernels import diversity as fused_diversity
from foveate.kernels import dpp as fused_dpp
from foveate.kernels import suppression as fused_suppression

TARGET = GPUTarget("cuda", 90, 32)
TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32", torch.int8: "i8", torch.int64: "i64"}


def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    """In the place of a launch. Whole numbers are specialised as a launch does: 1, and multiples of 16."""
    named = dict(zip(self.arg_names, args, strict=False))
    named |= {name: options.pop(name) for name in list(options) if name in self.arg_names}
    signature, constants, hints = {}, {}, {}
    for place, name in enumerate(self.arg_names):
        value = named[name]
        special = not self.params[place].do_not_specialize
        if self.params[place].is_constexpr or (isinstance(value, int) and value == 1 and special):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0 and special):
            hints[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(self, signature=signature, constexprs=constants, attrs=hints)
    compiled = triton.compile(source, target=TARGET, options=options)
    print(self.__name__, {name: constants[name] for name in constants}, "shared", compiled.metadata.shared, flush=True)


def main() -> None:
    """Compile for one sample on a whole GPU, and attention rows with and without grouped heads."""
    JITFunction.run = compile_only
    at_once = {"launch_cooperative_grid": True}
    fused_diversity.together = fused_suppression.together = fused_dpp.together = lambda *_: at_once
    features, number, programs = torch.zeros(1, 2880, 3584, dtype=torch.bfloat16), 2880, 132
    budget, valid = torch.full((1,), 634), torch.ones(1, number, dtype=torch.bool)
    fused_diversity.max_min_diversity(features, budget, valid, valid, programs=programs)
    fused_diversity.max_min_diversity(features, budget, ~valid, valid, "outlier", programs)
    fused_suppression.greedy(features, torch.arange(number)[None], budget, torch.zeros(1), valid, programs)
    fused_dpp.low_rank_dpp(features, budget, valid, 634, programs)
    for heads, groups, rows in ((28, 4, 5), (16, 1, 1)):
        key = torch.zeros(1, 300, groups, 128, dtype=torch.bfloat16).transpose(1, 2)
        fused_rows.row_logits(torch.zeros(1, heads, rows, 128, dtype=torch.bfloat16), key, 0.1)


if __name__ == "__main__":
    main()
