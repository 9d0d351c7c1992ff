"""The causal depthwise convolution of packed rows, with SiLU where asked for, as Triton kernels.

    a_t = bias + Σ_s weight[:, k - 1 - s] ⊙ x_{t-s},  s = 0 … k - 1, x before the row's start 0
    y_t = SiLU(a_t), or a_t
    ga_t = gy_t SiLU'(a_t), or gy_t
    gx_t = Σ_s weight[:, k - 1 - s] ⊙ ga_{t+s}, ga behind the row's end 0
    gweight[:, k - 1 - s] = Σ_t ga_t x_{t-s},    gbias = Σ_t ga_t

A program takes (BLOCK_T, BLOCK_D) tiles of places and channels, wherever rows begin, and finds each
place's row by binary search in the offsets. Backward computes ga_t … ga_{t+k-1} of each place
anew from the 2 k - 1 values of x around it: they are in the cache, a tensor of ga would not be.

Places behind the last row are never read, and zeros are written there. There are no atomics: sums
across programs are parts that PyTorch adds, so a repeated run gives the same bits.

Symbols: T places, B rows (``offsets``, (B + 1,) int64), d channels, k taps, at most 8.
"""

# Kernels are typed by Triton when they are compiled, not by annotations.
# mypy: disallow-untyped-defs=False

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigma.ops.conv import shapes
from sigma.ops.inputs import Conv, Gradients
from sigma.ops.rows import Rows
from sigma.ops.triton_common import load

PROGRAMS = 1024  # of backward along the places, at most: so many parts of gweight there are


@triton.jit
def _row(offsets, rows, steps, t):
    """Where the row of each place starts and ends, (BLOCK_T,) each; an end of 0 behind the last.

    The row is the last one with offsets[row] <= t, which passes over the empty rows.
    """
    low = t * 0
    high = low + rows
    for _ in range(steps):
        middle = (low + high + 1) // 2
        above = tl.load(offsets + middle) > t
        low = tl.where(above, low, middle)
        high = tl.where(above, middle - 1, high)
    return tl.load(offsets + low), tl.load(offsets + low + 1, mask=low < rows, other=0)


@triton.jit(do_not_specialize=["rows", "steps", "T"])
def _forward(
    inputs,
    y,
    sx,
    rows,
    steps,
    T,
    d,
    K: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``inputs`` are x, weight^T, bias and offsets."""
    x, weight, bias, offsets = inputs
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    chan = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    kd = chan < d
    start, end = _row(offsets, rows, steps, t)
    a = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    a += tl.load(bias + chan, mask=kd, other=0.0)[None, :]
    for s in tl.static_range(K):
        tap = tl.load(weight + (K - 1 - s) * d + chan, mask=kd, other=0.0)
        keep = ((t - s >= start) & (t < end))[:, None] & kd[None, :]
        a += tap[None, :] * load(x, sx, (t - s)[:, None], chan[None, :], keep)
    if SILU:
        a *= tl.sigmoid(a)
    a = tl.where((t < end)[:, None], a, 0.0)
    at = t[:, None] * d + chan[None, :]
    tl.store(y + at, a.to(y.dtype.element_ty), mask=(t < T)[:, None] & kd[None, :])


@triton.jit(do_not_specialize=["rows", "steps", "T"])
def _backward(
    inputs,
    tensors,
    rows,
    steps,
    T,
    d,
    K: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``sums`` (programs, K + 1, d): gweight^T and below it gbias, of each program's places."""
    x, weight, bias, offsets = inputs
    gy, gx, sums, sgy, sx = tensors
    chan = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    kd = chan < d
    shift = tl.load(bias + chan, mask=kd, other=0.0)
    taps, gtaps = (), ()  # weight[:, s], and its gradient from each place of a tile
    for s in tl.static_range(K):
        taps += (tl.load(weight + s * d + chan, mask=kd, other=0.0),)  # type: ignore[assignment]
        gtaps += (tl.zeros((BLOCK_T, BLOCK_D), tl.float32),)  # type: ignore[assignment]
    gshift = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    step = tl.num_programs(0).to(tl.int64) * BLOCK_T
    for first in range(tl.program_id(0).to(tl.int64) * BLOCK_T, T, step):
        t = first + tl.arange(0, BLOCK_T)
        start, end = _row(offsets, rows, steps, t)
        xs = ()  # x_{t-K+1} … x_{t+K-1}; without SiLU those up to x_t
        for m in tl.static_range(1 - K, K if SILU else 1):
            keep = ((t + m >= start) & (t < end) & (t + m < end))[:, None] & kd[None, :]
            xs += (load(x, sx, (t + m)[:, None], chan[None, :], keep),)  # type: ignore[assignment]
        gxt = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
        for ahead in tl.static_range(K):
            ga = load(
                gy,
                sgy,
                (t + ahead)[:, None],
                chan[None, :],
                (t + ahead < end)[:, None] & kd[None, :],
            )
            if SILU:
                a = tl.zeros((BLOCK_T, BLOCK_D), tl.float32) + shift[None, :]
                for s in tl.static_range(K):
                    a += taps[s][None, :] * xs[ahead + s]
                gate = tl.sigmoid(a)
                ga *= gate * (1.0 + a * (1.0 - gate))
            gxt += taps[K - 1 - ahead][None, :] * ga
            if ahead == 0:
                gshift += ga
                more = ()
                for s in tl.static_range(K):
                    more += (gtaps[s] + ga * xs[s],)  # type: ignore[assignment]
                gtaps = more
        gxt = tl.where((t < end)[:, None], gxt, 0.0)
        at = t[:, None] * d + chan[None, :]
        tl.store(gx + at, gxt.to(gx.dtype.element_ty), mask=(t < T)[:, None] & kd[None, :])
    sums += tl.program_id(0) * (K + 1) * d + chan
    for s in tl.static_range(K):
        tl.store(sums + s * d, tl.sum(gtaps[s], 0), mask=kd)
    tl.store(sums + K * d, tl.sum(gshift, 0), mask=kd)


def tile_sizes(d: int, elements: int) -> tuple[int, int]:
    """BLOCK_T and BLOCK_D of a tile of ``elements``."""
    block_d = min(triton.next_power_of_2(d), 128)
    return min(elements // block_d, 128), block_d


def _launch(
    kernel: Any, programs: int, blocks: tuple[int, int], x: Conv, rows: Rows, *more: Any, warps: int
) -> None:
    """``kernel`` by so many programs along the places, with ``more`` that it reads and writes."""
    (T, d), number = x.x.shape, len(rows.offsets) - 1
    inputs = x.x, x.weight.t().contiguous(), x.bias.contiguous(), rows.offsets
    sizes = {"K": x.weight.shape[1], "SILU": x.silu, "BLOCK_T": blocks[0], "BLOCK_D": blocks[1]}
    numbers = number, number.bit_length(), T, d
    with torch.cuda.device_of(x.x):
        kernel[(programs, triton.cdiv(d, blocks[1]))](
            inputs, *more, *numbers, **sizes, num_warps=warps
        )


def forward(x: Conv, rows: Rows) -> tuple[Tensor, Tensor]:
    """x: float32, bfloat16 or float16, and so is the result; weight, bias: float32, as sums are."""
    y, nothing = shapes(x)
    blocks = tile_sizes(y.shape[1], 2048)
    _launch(_forward, triton.cdiv(len(y), blocks[0]), blocks, x, rows, y, x.x.stride(), warps=4)
    return y, nothing


def backward(grad: Tensor, y: Tensor, saved: Tensor, x: Conv, rows: Rows) -> Gradients:
    """Gradients of x, in its type, of weight (d, k) and of bias (d,)."""
    d, k = x.weight.shape
    blocks = tile_sizes(d, 1024)
    programs = min(triton.cdiv(len(y), blocks[0]), PROGRAMS)
    gx, sums = shapes(x)[0], x.weight.new_empty((programs, k + 1, d))
    tensors = grad, gx, sums, grad.stride(), x.x.stride()
    _launch(_backward, programs, blocks, x, rows, tensors, warps=8)
    return gx, sums[:, :k].sum(0).t().contiguous(), sums[:, k].sum(0)
