"""Triton kernels without a GPU: Triton's interpreter, put right where it is wrong, and programs that run at once.

The interpreter runs a launch's programs one after another, so one that waits for another would wait for ever. Here
each program is a thread; one runs at a time, and hands on to any other after every atomic operation and around some
loads and stores, drawn at random. So a program that does not wait where it must gives wrong results.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from triton.runtime import interpreter

if os.environ.get("TRITON_INTERPRET") != "1":  # tests/conftest.py sets it where there is no GPU
    pytest.skip("Triton compiles here", allow_module_level=True)


def _wide(handle: Any) -> np.ndarray:
    """The numbers of a block; the interpreter keeps bf16 as bits, and would multiply these."""
    if handle.dtype.scalar.is_bf16():
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data


def _dot(self: Any, a: Any, b: Any, total: Any, *_: Any) -> Any:
    product = np.matmul(_wide(a), _wide(b), dtype=total.data.dtype)
    return interpreter.TensorHandle(product + total.data, total.dtype.scalar)


def _filled(*args: Any, plain: Any = torch.empty, **kwargs: Any) -> torch.Tensor:
    """In the place of `torch.empty`: what a kernel reads before it is written must not be right by chance."""
    tensor = plain(*args, **kwargs)
    return tensor.fill_(7 if tensor.is_floating_point() else 0)


class _Programs:
    """In the place of a kernel's function: collects the programs of a launch and runs them in turns."""

    def __init__(self, function: Any, number: int, seed: int) -> None:
        self.function, self.left = function, list(range(number))
        self.draw = random.Random(seed)
        self.__signature__, self.__name__ = inspect.signature(function), function.__name__
        self.__globals__ = function.__globals__
        self.waiting: list[tuple[Any, dict[str, Any]]] = []
        self.turn = 0
        self.errors: list[BaseException] = []
        self.changed = threading.Condition()
        self.local = threading.local()

    def __call__(self, **kwargs: Any) -> None:
        self.waiting.append((interpreter.interpreter_builder.grid_idx, kwargs))
        if len(self.waiting) == len(self.left):
            threads = [threading.Thread(target=self._run, args=(index,)) for index in self.left]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if self.errors:
                raise self.errors[0]

    def _run(self, index: int) -> None:
        self.local.index = index
        try:
            self._await(index)
            self.function(**self.waiting[index][1])
        except BaseException as error:  # noqa: BLE001 - raised by the one that waits
            self.errors.append(error)
        self.left.remove(index)
        self._next()

    def _await(self, index: int) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: self.turn == index or self.errors, timeout=60) or self.errors:
                raise RuntimeError("another program failed or hangs")
        interpreter.interpreter_builder.grid_idx = self.waiting[index][0]

    def _next(self) -> None:
        with self.changed:
            self.turn = self.draw.choice(self.left) if self.left else -1
            self.changed.notify_all()

    def hand_on(self, chance: float) -> None:
        if self.draw.random() < chance:
            self._next()
            self._await(self.local.index)


@contextlib.contextmanager
def interpreting(seed: int = 0) -> Iterator[None]:
    """While open, kernels run in the interpreter with bf16 products right, and programs that wait let others run."""
    running: list[_Programs] = []
    patched: set[str] = set()
    plain_launch = interpreter.GridExecutor.__call__
    builder = interpreter.InterpreterBuilder

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()
        if kwargs.get("PROGRAMS", 1) == 1:
            return plain_launch(self, *args, **kwargs)
        self.fn = _Programs(self.fn, int(np.prod(self.grid)), seed)
        running.append(self.fn)
        try:
            return plain_launch(self, *args, **kwargs)
        finally:
            running.pop()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Triton patches its language anew for each call of a function in a kernel, which takes a third of the time.
        if self.fn.__module__ not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(self.fn.__module__)
        return self.rewrite()(*args, **kwargs)

    def handing_on(name: str, chance: float) -> Any:
        plain = getattr(builder, name)

        def operation(self: Any, *args: Any) -> Any:
            if running and chance < 1:
                running[-1].hand_on(chance)
            result = plain(self, *args)
            if running:
                running[-1].hand_on(chance)
            return result

        return mock.patch.object(builder, name, operation)

    with (
        mock.patch.object(torch, "empty", _filled),
        mock.patch.object(builder, "create_dot", _dot),
        mock.patch.object(interpreter.InterpretedFunction, "__call__", call),
        mock.patch.object(interpreter.GridExecutor, "__call__", launch),
        handing_on("create_atomic_rmw", 1),
        handing_on("create_masked_load", 0.02),
        handing_on("create_masked_store", 0.1),
    ):
        yield
