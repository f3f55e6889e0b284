"""One thread: the tests' tensors are small, and the machine may be shared. Triton, where it is, interprets."""

import os

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, whoever does that first
