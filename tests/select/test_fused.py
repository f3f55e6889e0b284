"""The kernels for CUDA in Triton's interpreter: the plain forms' picks, by one program a sample and by three."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from foveate import select
from foveate.kernels import common as fused_parts
from foveate.kernels import dispatch as fused
from foveate.kernels import diversity as fused_diversity
from foveate.kernels import dpp as fused_dpp
from foveate.kernels import suppression as fused_suppression
from foveate.select import diversity, nms
from foveate.select.cosine import unit_rows
from foveate.tensors import descending
from tests.interpreted import interpreting

CPU = torch.device("cpu")
PROGRAMS = pytest.mark.parametrize("programs", [1, 3])
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture(autouse=True)
def _in_the_interpreter() -> Iterator[None]:
    with interpreting():
        yield


@pytest.fixture
def on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """`select` takes the CPU for a GPU on which no kernel has been tried yet."""
    monkeypatch.setattr(fused, "supported", lambda device: True)
    monkeypatch.setattr(fused, "_trusted", {})
    for module in (fused_diversity, fused_suppression, fused_dpp):
        monkeypatch.setattr(module, "programs_for", lambda features: 2)


def problem(dtype: torch.dtype, number: int = 40, width: int = 24) -> tuple[Tensor, Tensor]:
    """Three rows, the second one padded: with copies, rows of zeros, and NaN in the padding and elsewhere."""
    features = torch.randn(3, number, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    features[:, [23, 31]] = features[:, 5:6].clone()
    features[:, [8, 12]] = 0
    features[1, 36] = torch.nan
    features[2, 3] = torch.nan
    valid = torch.arange(number) < torch.tensor([[number], [35], [number]])
    return features, valid


@PROGRAMS
@TYPES
def test_diversity_of_a_ragged_batch(programs: int, dtype: torch.dtype) -> None:
    features, valid = problem(dtype)
    start = torch.zeros_like(valid)
    start[1, 2:25] = True  # more than fit into a round
    budget = torch.tensor([25, 32, 0])
    keep = fused_diversity.max_min_diversity(features, budget, start, valid, programs=programs, crowd=32, most=16)
    assert torch.equal(keep, select.max_min_diversity(features, budget, start, valid))


@TYPES
@pytest.mark.parametrize("first", ["published", "outlier"])
def test_diversity_begins_as_the_plain_form(first: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_diversity, "SPAN", 64)
    begun = set()
    for seed in range(4):
        features = torch.randn(2, 100, 24, generator=torch.Generator().manual_seed(seed)).to(dtype)
        valid = torch.arange(100) < torch.tensor([[100], [70]])
        start, budget = torch.zeros_like(valid), torch.ones(2, dtype=torch.long)
        keep = fused_diversity.max_min_diversity(features, budget, start, valid, first, programs=1, crowd=32, most=16)
        assert torch.equal(keep, select.max_min_diversity(features, budget, start, valid, first))
        begun |= set(keep.nonzero()[:, 1].tolist())
    assert max(begun) > 64


@PROGRAMS
@pytest.mark.parametrize("wide", [True, False])
def test_diversity_of_ties(programs: int, wide: bool) -> None:
    """Exact in binary: cosines of few values, or all the same; far more ties than a crowd holds."""
    generator = torch.Generator().manual_seed(1)
    features = torch.eye(40)[None] if wide else torch.randint(0, 2, (1, 40, 4), generator=generator) * 2.0 - 1
    start = torch.zeros(1, 40, dtype=torch.bool)
    start[0, 7] = True
    for k in (15, 40):
        args = torch.tensor([k]), start, torch.ones_like(start)
        keep = fused_diversity.max_min_diversity(features, *args, programs=programs, crowd=32, most=16)
        assert torch.equal(keep, select.max_min_diversity(features, *args))


@PROGRAMS
@TYPES
def test_suppression_of_a_ragged_batch(programs: int, dtype: torch.dtype) -> None:
    features, valid = problem(dtype)
    order = descending(torch.randn(valid.shape, generator=torch.Generator().manual_seed(2)), valid)
    for budget, limit in (([40, 35, 0], [0.2, -0.1, 0.3]), ([9, 35, 1], [0.9, 0.4, 0.3])):
        args = order, torch.tensor(budget), torch.tensor(limit), valid
        keep = fused_suppression.greedy(features, *args, programs=programs, block=32)
        assert torch.equal(keep, nms._greedy(unit_rows(features.float()), *args))


@PROGRAMS
@TYPES
def test_dpp_of_a_ragged_batch(programs: int, dtype: torch.dtype) -> None:
    factors, valid = problem(dtype, 40, 6)
    budget = torch.tensor([40, 5, 0])  # the first goes on where nothing is left to explain
    keep = fused_dpp.low_rank_dpp(factors, budget, valid, programs=programs)
    assert torch.equal(keep, select.low_rank_dpp(factors, budget, valid))


# the function `dpp` hides its module's name
PLAIN = {"diversity": diversity, "suppression": nms, "dpp": import_module("foveate.select.dpp")}


@pytest.mark.parametrize("name", list(PLAIN))
def test_a_kernel_passes_its_own_check(name: str, on_the_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "supported", lambda device: False)  # the plain form must not be the kernel itself
    assert PLAIN[name].agrees(CPU, torch.float16)


def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The three functions of `select` that have a kernel, with its module and name."""
    for module in PLAIN.values():
        monkeypatch.setattr(module, "agrees", lambda *_: True)
    monkeypatch.setattr(nms, "BISECTIONS", 2)
    scores = torch.randn(3, 38, generator=torch.Generator().manual_seed(3))
    features, valid = problem(torch.float32, 38, 6)
    return {
        "diversity": (
            lambda: select.max_min_diversity(features, 4, valid=valid), fused_diversity, "max_min_diversity",
        ),
        "suppression": (
            lambda: select.suppression(features, scores, 9, -0.2, "relax", valid), fused_suppression, "greedy",
        ),
        "dpp": (lambda: select.low_rank_dpp(features, 4, valid), fused_dpp, "low_rank_dpp"),
    }  # fmt: skip


class NoReads(TorchDispatchMode):
    """Refuses whatever hands a number of a tensor to Python: on a GPU, the host would wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "equal.default", "is_nonzero")):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", ["diversity", "suppression", "dpp"])
def test_select_takes_the_kernel_and_never_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, module, function = calls(monkeypatch)[name]
    plain = call()
    monkeypatch.setattr(fused, "supported", lambda device: True)
    monkeypatch.setattr(fused, "_trusted", {})
    monkeypatch.setattr(module, "programs_for", lambda features: 2)
    seen = []
    kernel = getattr(module, function)
    monkeypatch.setattr(module, function, lambda *args: seen.append(1) or kernel(*args))
    with warnings.catch_warnings(), NoReads():
        warnings.simplefilter("error")
        keep = call()
    assert seen
    assert torch.equal(keep, plain)


@pytest.mark.parametrize("name", ["diversity", "suppression", "dpp"])
@pytest.mark.parametrize("how", ["fails", "differs"])
def test_a_kernel_that_cannot_be_trusted_is_given_up(
    name: str, how: str, on_the_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, module, function = calls(monkeypatch)[name]
    with monkeypatch.context() as patch:
        patch.setattr(fused, "supported", lambda device: False)
        plain = call()

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("out of resource")

    if how == "fails":
        monkeypatch.setattr(module, function, broken)
    else:
        monkeypatch.setattr(PLAIN[name], "agrees", lambda *_: False)
    with pytest.warns(RuntimeWarning, match="out of resource" if how == "fails" else "other results") as caught:
        assert torch.equal(call(), plain)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(call(), plain)


@pytest.mark.parametrize(
    "choose",
    [
        lambda scores, features: select.top_k(scores, 9),
        lambda scores, features: select.rebalanced_top_k(scores, 9),
        lambda scores, features: select.suppression(features, scores, 9, 1.0),
    ],
    ids=["top_k", "rebalanced", "no suppression"],
)
def test_what_has_no_kernel_never_waits_either(choose: Any) -> None:
    with NoReads():
        choose(torch.randn(2, 30), torch.randn(2, 30, 4))


def test_ranks_sort_by_value_then_place() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def ranks(value, out, SIZE: tl.constexpr):
        lane = tl.arange(0, SIZE)
        tl.store(out + lane, fused_parts.rank(tl.load(value + lane), lane))

    value = torch.tensor([0.0, -1.5, float("inf"), -0.0, 3e-9, float("-inf"), -1.5, 0.0])
    out = torch.zeros(8, dtype=torch.int64)
    ranks[(1,)](value, out, SIZE=8)
    assert out.argsort().tolist() == [5, 1, 6, 0, 3, 7, 4, 2]
