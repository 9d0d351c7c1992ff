"""The gated recurrent unit of packed rows as one Triton kernel forward and one backward.

Symbols: T places, B rows, G units, t a position in its row, U (3 G, G) and b (3 G,) the recurrent
weight and bias, a (T, 3 G) the inputs' part of the gates r, z and n.

    r_t = σ(a_r + U_r h_{t-1} + b_r)          z_t = σ(a_z + U_z h_{t-1} + b_z)
    u_t = U_n h_{t-1} + b_n                   n_t = tanh(a_n + r_t ⊙ u_t)
    h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_{t-1}     h_{-1} = 0

Backward, with g_t the gradient of h_t, that of its own use included:

    ga_n = g_t ⊙ (1 - z_t) ⊙ (1 - n_t²)       gu = ga_n ⊙ r_t
    ga_z = g_t ⊙ (h_{t-1} - n_t) ⊙ z_t ⊙ (1 - z_t)
    ga_r = ga_n ⊙ u_t ⊙ r_t ⊙ (1 - r_t)
    g_{t-1} += g_t ⊙ z_t + U_r^T ga_r + U_z^T ga_z + U_n^T gu

A program owns BLOCK_R rows and loops over time to the longest of them. A step is one product of a
(BLOCK_R, G) tile with all of U, in chunks of BLOCK_K of the inner dimension: whole, neither U nor
the operands of the product fit the registers. A tile in registers cannot be cut, so the operand is
read back from global memory, where the step before has written it as a result anyway.

All sums are in a fixed order, without atomics: a repeated run gives the same bits. float32 only.
"""

# Kernels are typed by Triton when they are compiled, not by annotations.
# mypy: disallow-untyped-defs=False

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

from sigma.ops.gru import shapes, weight_gradients
from sigma.ops.inputs import Gradients, Gru
from sigma.ops.rows import Rows

BLOCK_R = constexpr(16)  # rows of a program; tl.dot takes no fewer
SWEEPERS = 32  # programs that zero the places behind the last row
# Up to so many rows all programs run at once, and only the longest row counts. Beyond, rows are
# sorted by length: a program of long and short rows works for nothing on the short ones.
UNSORTED = 132 * 16


@triton.jit
def _extent(offsets, order, block, rows):
    """First place (int64) and length (int32) of a block's rows; beyond the last row 0 and 0."""
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    real = row < rows
    if order is not None:
        row = tl.load(order + row, mask=real, other=0)
    start = tl.load(offsets + row, mask=real, other=0)
    length = tl.load(offsets + row + 1, mask=real, other=0) - start
    return start, length.to(tl.int32)


@triton.jit
def _sweep(x, first, last, start, stride, width: constexpr, BLOCK_G: constexpr):
    """Zeros in x[first + start :: stride] of ``width`` numbers, before ``last``."""
    column = tl.arange(0, BLOCK_G)
    for place in range(first + start, last, stride):
        for c in range(0, width, BLOCK_G):
            zero = tl.zeros((BLOCK_G,), tl.float32)
            tl.store(x + place * width + c + column, zero, mask=c + column < width)


@triton.jit
def _three(at, step, keep):
    """What stands at three places."""
    one, two = tl.load(at, mask=keep, other=0.0), tl.load(at + step, mask=keep, other=0.0)
    return one, two, tl.load(at + 2 * step, mask=keep, other=0.0)


@triton.jit
def _put(at, step, keep, one, two, three):
    tl.store(at, one, mask=keep)
    tl.store(at + step, two, mask=keep)
    tl.store(at + 2 * step, three, mask=keep)


@triton.jit(do_not_specialize=["rows", "places"])
def _forward(inputs, outputs, rows, places, G: constexpr, BLOCK_G: constexpr, BLOCK_K: constexpr):
    """``inputs`` with U^T, (G, 3 G), for the weight."""
    gates, weight, bias, offsets, order = inputs
    states, saved = outputs
    blocks = tl.cdiv(rows, BLOCK_R)
    block = tl.program_id(0)
    if block >= blocks:
        end = tl.load(offsets + rows)
        _sweep(states, end, places, block - blocks, tl.num_programs(0) - blocks, G, BLOCK_G)
        _sweep(saved, end, places, block - blocks, tl.num_programs(0) - blocks, 4 * G, BLOCK_G)
        return
    start, length = _extent(offsets, order, block, rows)
    col = tl.arange(0, BLOCK_G)
    chunk = tl.arange(0, BLOCK_K)
    kc = col < G
    bias_r, bias_z, bias_n = _three(bias + col, G, kc)
    h = tl.zeros((BLOCK_R, BLOCK_G), tl.float32)
    for t in range(tl.max(length, 0)):
        keep = (t < length)[:, None] & kc[None, :]
        place = (start + t)[:, None]
        before = (t < length)[:, None] & (place > start[:, None])
        # These do not wait for the step before, so they are asked for ahead of the barrier.
        ar, az, an = _three(gates + place * (3 * G) + col[None, :], G, keep)
        r = tl.zeros((BLOCK_R, BLOCK_G), tl.float32) + bias_r[None, :]
        z = tl.zeros((BLOCK_R, BLOCK_G), tl.float32) + bias_z[None, :]
        u = tl.zeros((BLOCK_R, BLOCK_G), tl.float32) + bias_n[None, :]
        tl.debug_barrier()  # other threads wrote parts of h_{t-1}
        for k in tl.range(0, G, BLOCK_K, num_stages=2):
            kk = k + chunk < G
            last = states + (place - 1) * G + k + chunk[None, :]
            hk = tl.load(last, mask=before & kk[None, :], other=0.0)
            w = weight + (k + chunk)[:, None] * (3 * G) + col[None, :]
            for_r, for_z, for_n = _three(w, G, kk[:, None] & kc[None, :])
            r = tl.dot(hk, for_r, r, input_precision="ieee")
            z = tl.dot(hk, for_z, z, input_precision="ieee")
            u = tl.dot(hk, for_n, u, input_precision="ieee")
        r = tl.sigmoid(ar + r)
        z = tl.sigmoid(az + z)
        n = 2.0 * tl.sigmoid(2.0 * (an + r * u)) - 1.0  # tanh
        h = n + z * (h - n)
        tl.store(states + place * G + col[None, :], h, mask=keep)
        s = saved + place * (4 * G) + col[None, :]
        _put(s, G, keep, r, z, n)
        tl.store(s + 3 * G, u, mask=keep)


@triton.jit(do_not_specialize=["rows", "places"])
def _backward(inputs, outputs, rows, places, G: constexpr, BLOCK_G: constexpr, BLOCK_K: constexpr):
    gstates, saved, states, weight, offsets, order = inputs
    ggates, ghidden = outputs
    blocks = tl.cdiv(rows, BLOCK_R)
    block = tl.program_id(0)
    if block >= blocks:
        end = tl.load(offsets + rows)
        _sweep(ggates, end, places, block - blocks, tl.num_programs(0) - blocks, 3 * G, BLOCK_G)
        _sweep(ghidden, end, places, block - blocks, tl.num_programs(0) - blocks, G, BLOCK_G)
        return
    start, length = _extent(offsets, order, block, rows)
    col = tl.arange(0, BLOCK_G)
    chunk = tl.arange(0, BLOCK_K)
    kc = col < G
    g = tl.zeros((BLOCK_R, BLOCK_G), tl.float32)  # what t + 1 adds to the gradient of h_t
    steps = tl.max(length, 0)
    for back in range(steps):
        t = steps - 1 - back
        live = (t < length)[:, None]
        keep = live & kc[None, :]
        place = (start + t)[:, None]
        s = saved + place * (4 * G) + col[None, :]
        r, z, n = _three(s, G, keep)
        u = tl.load(s + 3 * G, mask=keep, other=0.0)
        at = place * G + col[None, :]
        h = tl.load(states + at - G, mask=keep & (place > start[:, None]), other=0.0)
        # Zero for rows that are not yet reached, whose gate gradients are then zero too.
        g += tl.load(gstates + at, mask=keep, other=0.0)
        gn = g * (1.0 - z) * (1.0 - n * n)
        gz = g * (h - n) * z * (1.0 - z)
        gr = gn * u * r * (1.0 - r)
        _put(ggates + place * (3 * G) + col[None, :], G, keep, gr, gz, gn)
        tl.store(ghidden + at, gn * r, mask=keep)
        g *= z
        tl.debug_barrier()  # the product reads what other threads wrote
        for k in tl.range(0, G, BLOCK_K, num_stages=2):
            kk = k + chunk < G
            km = live & kk[None, :]
            part = ggates + place * (3 * G) + k + chunk[None, :]
            gu = tl.load(ghidden + place * G + k + chunk[None, :], mask=km, other=0.0)
            w = weight + (k + chunk)[:, None] * G + col[None, :]
            for_r, for_z, for_n = _three(w, G * G, kk[:, None] & kc[None, :])
            g = tl.dot(tl.load(part, mask=km, other=0.0), for_r, g, input_precision="ieee")
            g = tl.dot(tl.load(part + G, mask=km, other=0.0), for_z, g, input_precision="ieee")
            g = tl.dot(gu, for_n, g, input_precision="ieee")


def tile_sizes(G: int) -> dict[str, int]:
    """Tiles and warps for G units: 16 numbers of a (BLOCK_R, G) tile a thread, if 4 warps do so."""
    block = max(16, triton.next_power_of_2(G))
    return {
        "G": G,
        "BLOCK_G": block,
        "BLOCK_K": max(16, min(32, block // 2)),
        "num_warps": max(4, block // 32),
        # Of the loop over time: no load of h_{t-1} may move ahead of its store.
        "num_stages": 1,
    }


def row_order(offsets: Tensor) -> Tensor | None:
    """Rows from long to short, (B,) int64; None where the order they have will do."""
    if len(offsets) - 1 <= UNSORTED:
        return None
    return torch.argsort(offsets.diff(), descending=True, stable=True)


def _launch(
    kernel: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], rows: Rows
) -> None:
    """``kernel`` for all rows; of one output the width is G."""
    offsets, number, size = rows.offsets, len(rows.offsets) - 1, len(outputs[0])
    sizes = tile_sizes(min(x.shape[1] for x in outputs))
    with torch.cuda.device_of(offsets):
        kernel[(triton.cdiv(number, BLOCK_R.value) + SWEEPERS,)](
            (*inputs, offsets, row_order(offsets)), outputs, number, size, **sizes
        )


def forward(x: Gru, rows: Rows) -> tuple[Tensor, Tensor]:
    """The states, and r, z, n and u side by side; both zero behind the last row."""
    outputs = shapes(x)
    _launch(_forward, (x.gates.contiguous(), x.weight.t().contiguous(), x.bias), outputs, rows)
    return outputs


def backward(grad: Tensor, states: Tensor, saved: Tensor, x: Gru, rows: Rows) -> Gradients:
    """Gradients of gates (zero behind the last row), weight and bias."""
    ggates, ghidden = states.new_empty(x.gates.shape), states.new_empty(states.shape)
    _launch(_backward, (grad.contiguous(), saved, states, x.weight), (ggates, ghidden), rows)
    return ggates, *weight_gradients(ggates, ghidden, states, saved, x, rows)
