"""What Triton kernels are made of: loads and stores, tiles in registers, functions."""

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
    at = t * stride[0] + column.to(tl.int64) * stride[1]
    return tl.load(x + at, mask=keep, other=0.0).to(tl.float32)


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


@triton.jit
def vectors(x, stride, first, last, n, kn, TILE: tl.constexpr):
    """x[t] of TILE places from ``first``, one by one; x[last] in the stead of those behind it."""
    vectors = ()
    for i in tl.static_range(TILE):
        vectors += (load(x, stride, tl.minimum(first + i, last), n, kn),)  # type: ignore[assignment]
    return vectors


@triton.jit
def position(x, i, TILE: tl.constexpr):
    """x[i] of a (TILE, …) tile in registers; what else is there does not matter, even NaN."""
    return tl.sum(tl.where(tl.arange(0, TILE)[:, None] == i, x, 0.0), 0)


@triton.jit
def placed(x, i, value, TILE: tl.constexpr):
    """The (TILE, …) tile with x[i] = value."""
    return tl.where(tl.arange(0, TILE)[:, None] == i, value[None, :], x)


@triton.jit
def softplus(x):
    """softplus(x) and its derivative; beyond 20 both round to PyTorch's x and 1.

    log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3, is exact for tiny e, unlike log of 1 + e, and
    cheap: tl.log is not.
    """
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2.0 + e)
    q = s * s
    p = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return tl.maximum(x, 0.0) + 2.0 * s * p, tl.where(x > 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def bounds(offsets, row, rows):
    """The row's first place, and that behind its last; an empty row where there is no such row."""
    start = tl.load(offsets + row, mask=row < rows, other=0)
    return start, tl.load(offsets + row + 1, mask=row < rows, other=0)


@triton.jit
def load_heads(x, place, real, head, H, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """x[place, head], zero where not ``real``; ``place`` is int64."""
    col = tl.arange(0, BLOCK_D)
    at = x + (place * H + head)[:, None] * D + col[None, :]
    return tl.load(at, mask=real[:, None] & (col < D)[None, :], other=0.0)


@triton.jit
def store_heads(x, place, real, head, value, H, D: tl.constexpr, BLOCK_D: tl.constexpr):
    col = tl.arange(0, BLOCK_D)
    at = x + (place * H + head)[:, None] * D + col[None, :]
    tl.store(at, value.to(x.dtype.element_ty), mask=real[:, None] & (col < D)[None, :])


@triton.jit
def clear_heads(
    x, head, first, last, H, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Zeros in x[first:last, head]; the programs of the grid's last axis take blocks in turn."""
    zero = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for start in range(first, last, tl.num_programs(2) * BLOCK):
        place = start + tl.arange(0, BLOCK)
        store_heads(x, place, place < last, head, zero, H, D, BLOCK_D)
