"""What Triton's interpreter does not see: types that change in a branch, shared memory, instructions of a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    here = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.compile_kernels"], cwd=root, env=here, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {line[0] for line in lines} == {
        "_measure",
        "_repeated",
        "_mean",
        "_along",
        "_nearest",
        "_rounds",
        "_walk",
        "_steps",
        "_rows",
    }
    assert all(int(line[-1]) <= 99 * 1024 for line in lines)  # shared memory of the smallest GPUs from Ampere on
