"""Packed rows of many kinds, and values on them, for the tests of operations."""

import torch
from torch import Tensor

from sigma.ops import Rows

# Name -> lengths and places behind the last row.
ROWS: dict[str, tuple[list[int], int]] = {
    "mixed": ([3, 1, 7, 0, 2, 5], 0),
    "places behind the last row": ([4, 1, 6], 5),
    "rows of one": ([1, 1, 1, 1], 0),
    "all equal": ([5] * 6, 0),
    "one row": ([9], 3),
    "empty first and last": ([0, 3, 2, 0], 2),
    "many": ([1 + 7 * i % 11 for i in range(70)], 0),
}


def rows_case(name: str) -> tuple[Rows, int]:
    """Rows and T."""
    lengths, behind = ROWS[name]
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    return Rows(offsets, max(lengths)), int(offsets[-1]) + behind


def draws(seed: int = 0, dtype: torch.dtype = torch.float64):  # type: ignore[no-untyped-def]
    """A function shape -> values that take a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return x.requires_grad_()

    return draw


def scan_values(size: int, d: int, n: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """u, dt, A, B, C, D, z, dt_bias."""
    draw = draws(1, dtype)
    a = (-4 * draw(d, n).detach().abs()).requires_grad_()
    return [draw(size, d), draw(size, d), a, draw(size, n), draw(size, n), draw(d), draw(size, d),
            draw(d)]  # fmt: skip


def weighted_gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Gradients of a fixed weighting of y; zeros where it does not depend on a leaf."""
    weight = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view_as(y).to(y)
    return list(torch.autograd.grad(y, leaves, weight, retain_graph=True, materialize_grads=True))
