"""Triton kernels for CUDA; each has a plain form that it is compared with before its first use."""
