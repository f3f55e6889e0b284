"""Greedy determinants on a CPU: the picks of the plain loop with far fewer comparisons."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.select.elimination import eliminate
from foveate.select.lazy import Array, LazyGreedy

ROUNDED = 0.3  # where less is left of a row's length, rounding left too much of what was taken away


class Residual(LazyGreedy):
    """Determinantal point process: the gain is the squared length of what the picks do not explain of a row."""

    def update(self, gain: Array, products: Tensor, news: Tensor | None) -> Array:
        squares = products.square_()
        if news is not None:
            squares.mul_(news)
        return gain - squares.sum(0).numpy()

    def settle(self, rows: Tensor, gain: Array, first: int, bound: float, most: int) -> list[int]:
        earlier = self.basis[: self.taken]
        known = rows @ earlier.T
        gram = (rows @ rows.T - known @ known.T).numpy()
        chosen, _ = eliminate(gram, gain, first, bound, most)
        index = torch.tensor(chosen)
        picked = rows.index_select(0, index)
        rest = picked - known.index_select(0, index) @ earlier
        shrunk = torch.linalg.vector_norm(rest, dim=1) / torch.linalg.vector_norm(picked, dim=1)
        if float(shrunk.min()) < ROUNDED:
            rest = self._apart(rest)
        basis = orthonormal(rest)
        if float((basis * rest).sum(1).div_(torch.linalg.vector_norm(rest, dim=1)).min()) < ROUNDED:
            basis = orthonormal(self._apart(basis))
        self.basis[self.taken : self.taken + len(chosen)] = basis
        return chosen

    def _apart(self, rows: Tensor) -> Tensor:
        """What the basis does not explain of the rows."""
        earlier = self.basis[: self.taken]
        return rows - (rows @ earlier.T) @ earlier


def orthonormal(rows: Tensor) -> Tensor:
    """Gram-Schmidt of rows (R, D), in their order."""
    basis = rows
    for _ in range(2):  # by Cholesky factors, several times as fast as Householder's QR; the second time for rounding
        gram = basis @ basis.T
        factor, failed = torch.linalg.cholesky_ex(gram)
        if bool(failed):
            break
        basis = torch.linalg.solve_triangular(factor, basis, upper=False)
    else:
        if float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max()) < 0.01:
            return basis
    return torch.linalg.qr(rows.T).Q.T
