"""What the Triton kernels share: loads and stores of tiles, and constants."""

# Kernels are typed by Triton when they are compiled, not by annotations.
# mypy: disallow-untyped-defs=False

import math

import triton
import triton.language as tl

LN2 = tl.constexpr(math.log(2.0))
LOG2E = tl.constexpr(math.log2(math.e))


@triton.jit
def load(x, stride, t, column, keep):
    """x[t, column] in float32; zero where not ``keep``. ``t`` is int64."""
    at = x + t * stride[0] + column.to(tl.int64) * stride[1]
    return tl.load(at, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def store(x, t, width, column, keep, value):
    """x[t, column] of a contiguous x that is so wide."""
    tl.store(x + t * width + column, value.to(x.dtype.element_ty), mask=keep)


@triton.jit
def clear(x, width, column, keep, first, T, step, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Zeros in TILE places from ``first``, and from every ``step`` further on, before T."""
    for at in range(first, T, step):
        t = (at + tl.arange(0, TILE))[:, None]
        zeros = tl.zeros((TILE, BLOCK), tl.float32)
        store(x, t, width, column[None, :], (t < T) & keep[None, :], zeros)
