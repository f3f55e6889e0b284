"""What a whole process shares, to see whether a function has left it changed."""

from __future__ import annotations

import locale
import os
import random
from typing import Any

import numpy as np
import torch

NOTED = ("PYTEST_", "RAY_", "TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_", "TRITON_")


def settings() -> dict[str, Any]:
    """Settings of torch, and the environment without what libraries note there when they are imported."""
    return {
        "threads": torch.get_num_threads(),
        "type": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "anomalies": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "folder": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        **{f"${name}": value for name, value in os.environ.items() if not name.startswith(NOTED)},
    }


def draws() -> tuple[Any, ...]:
    """What the generators that all share are about to draw."""
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
