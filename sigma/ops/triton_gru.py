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

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigma.ops.gru import shapes, weight_gradients
from sigma.ops.inputs import Gru
from sigma.ops.rows import Rows

BLOCK_R = 16  # rows of a program; tl.dot takes no fewer
SWEEPERS = 32  # programs that zero the places behind the last row
# Up to so many rows all programs run at once, and only the longest row counts. Beyond, rows are
# sorted by length: a program of long and short rows works for nothing on the short ones.
UNSORTED = 132 * BLOCK_R


@triton.jit
def _extent(offsets, order, block, rows, BLOCK_R: tl.constexpr):
    """First place (int64) and length (int32) of a block's rows; beyond the last row 0 and 0."""
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    real = row < rows
    if order is not None:
        row = tl.load(order + row, mask=real, other=0)
    start = tl.load(offsets + row, mask=real, other=0)
    length = tl.load(offsets + row + 1, mask=real, other=0) - start
    return start, length.to(tl.int32)


@triton.jit
def _sweep(x, first, last, start, stride, width: tl.constexpr, BLOCK_G: tl.constexpr):
    """Zeros in x[first + start :: stride] of ``width`` numbers, before ``last``."""
    column = tl.arange(0, BLOCK_G)
    for place in range(first + start, last, stride):
        for c in range(0, width, BLOCK_G):
            zero = tl.zeros((BLOCK_G,), tl.float32)
            tl.store(x + place * width + c + column, zero, mask=c + column < width)


@triton.jit(do_not_specialize=["rows", "places"])
def _forward(
    gates,
    weight,
    bias,
    offsets,
    order,
    states,
    saved,
    rows,
    places,
    G: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``weight`` is U^T, (G, 3 G)."""
    blocks = tl.cdiv(rows, BLOCK_R)
    block = tl.program_id(0)
    if block >= blocks:
        end = tl.load(offsets + rows)
        _sweep(states, end, places, block - blocks, tl.num_programs(0) - blocks, G, BLOCK_G)
        _sweep(saved, end, places, block - blocks, tl.num_programs(0) - blocks, 4 * G, BLOCK_G)
        return
    start, length = _extent(offsets, order, block, rows, BLOCK_R)
    col = tl.arange(0, BLOCK_G)
    chunk = tl.arange(0, BLOCK_K)
    kc = col < G
    bias_r = tl.load(bias + col, mask=kc, other=0.0)
    bias_z = tl.load(bias + G + col, mask=kc, other=0.0)
    bias_n = tl.load(bias + 2 * G + col, mask=kc, other=0.0)
    h = tl.zeros((BLOCK_R, BLOCK_G), tl.float32)
    for t in range(tl.max(length, 0)):
        keep = (t < length)[:, None] & kc[None, :]
        place = (start + t)[:, None]
        before = (t < length)[:, None] & (place > start[:, None])
        # These do not wait for the step before, so they are asked for ahead of the barrier.
        a = gates + place * (3 * G) + col[None, :]
        ar = tl.load(a, mask=keep, other=0.0)
        az = tl.load(a + G, mask=keep, other=0.0)
        an = tl.load(a + 2 * G, mask=keep, other=0.0)
        r = tl.zeros((BLOCK_R, BLOCK_G), tl.float32) + bias_r[None, :]
        z = tl.zeros((BLOCK_R, BLOCK_G), tl.float32) + bias_z[None, :]
        u = tl.zeros((BLOCK_R, BLOCK_G), tl.float32) + bias_n[None, :]
        tl.debug_barrier()  # other threads wrote parts of h_{t-1}
        for k in tl.range(0, G, BLOCK_K, num_stages=STAGES):
            kk = k + chunk < G
            last = states + (place - 1) * G + k + chunk[None, :]
            hk = tl.load(last, mask=before & kk[None, :], other=0.0)
            w = weight + (k + chunk)[:, None] * (3 * G) + col[None, :]
            kw = kk[:, None] & kc[None, :]
            r = tl.dot(hk, tl.load(w, mask=kw, other=0.0), r, input_precision="ieee")
            z = tl.dot(hk, tl.load(w + G, mask=kw, other=0.0), z, input_precision="ieee")
            u = tl.dot(hk, tl.load(w + 2 * G, mask=kw, other=0.0), u, input_precision="ieee")
        r = tl.sigmoid(ar + r)
        z = tl.sigmoid(az + z)
        n = 2.0 * tl.sigmoid(2.0 * (an + r * u)) - 1.0  # tanh
        h = n + z * (h - n)
        tl.store(states + place * G + col[None, :], h, mask=keep)
        s = saved + place * (4 * G) + col[None, :]
        tl.store(s, r, mask=keep)
        tl.store(s + G, z, mask=keep)
        tl.store(s + 2 * G, n, mask=keep)
        tl.store(s + 3 * G, u, mask=keep)


@triton.jit(do_not_specialize=["rows", "places"])
def _backward(
    gstates,
    saved,
    states,
    weight,
    offsets,
    order,
    ggates,
    ghidden,
    rows,
    places,
    G: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    blocks = tl.cdiv(rows, BLOCK_R)
    block = tl.program_id(0)
    if block >= blocks:
        end = tl.load(offsets + rows)
        _sweep(ggates, end, places, block - blocks, tl.num_programs(0) - blocks, 3 * G, BLOCK_G)
        _sweep(ghidden, end, places, block - blocks, tl.num_programs(0) - blocks, G, BLOCK_G)
        return
    start, length = _extent(offsets, order, block, rows, BLOCK_R)
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
        r = tl.load(s, mask=keep, other=0.0)
        z = tl.load(s + G, mask=keep, other=0.0)
        n = tl.load(s + 2 * G, mask=keep, other=0.0)
        u = tl.load(s + 3 * G, mask=keep, other=0.0)
        at = place * G + col[None, :]
        h = tl.load(states + at - G, mask=keep & (place > start[:, None]), other=0.0)
        # Zero for rows that are not yet reached, whose gate gradients are then zero too.
        g += tl.load(gstates + at, mask=keep, other=0.0)
        gn = g * (1.0 - z) * (1.0 - n * n)
        gz = g * (h - n) * z * (1.0 - z)
        gr = gn * u * r * (1.0 - r)
        out = ggates + place * (3 * G) + col[None, :]
        tl.store(out, gr, mask=keep)
        tl.store(out + G, gz, mask=keep)
        tl.store(out + 2 * G, gn, mask=keep)
        tl.store(ghidden + at, gn * r, mask=keep)
        g *= z
        tl.debug_barrier()  # the product reads what other threads wrote
        for k in tl.range(0, G, BLOCK_K, num_stages=STAGES):
            kk = k + chunk < G
            km = live & kk[None, :]
            part = ggates + place * (3 * G) + k + chunk[None, :]
            gu = tl.load(ghidden + place * G + k + chunk[None, :], mask=km, other=0.0)
            w = weight + (k + chunk)[:, None] * G + col[None, :]
            kw = kk[:, None] & kc[None, :]
            for_r = tl.load(w, mask=kw, other=0.0)
            for_z = tl.load(w + G * G, mask=kw, other=0.0)
            for_n = tl.load(w + 2 * G * G, mask=kw, other=0.0)
            g = tl.dot(tl.load(part, mask=km, other=0.0), for_r, g, input_precision="ieee")
            g = tl.dot(tl.load(part + G, mask=km, other=0.0), for_z, g, input_precision="ieee")
            g = tl.dot(gu, for_n, g, input_precision="ieee")


def tile_sizes(G: int) -> dict[str, int]:
    """Tiles and warps for G units: 16 numbers of a (BLOCK_R, G) tile a thread, if 4 warps do so."""
    block = max(16, triton.next_power_of_2(G))
    return {
        "G": G,
        "BLOCK_R": BLOCK_R,
        "BLOCK_G": block,
        "BLOCK_K": max(16, min(32, block // 2)),
        "STAGES": 2,
        "num_warps": max(4, block // 32),
        # Of the loop over time: no load of h_{t-1} may move ahead of its store.
        "num_stages": 1,
    }


def row_order(offsets: Tensor) -> Tensor | None:
    """Rows from long to short, (B,) int64; None where the order they have will do."""
    if len(offsets) - 1 <= UNSORTED:
        return None
    return torch.argsort(offsets.diff(), descending=True, stable=True)


def forward(x: Gru, rows: Rows) -> tuple[Tensor, Tensor]:
    """The states, and r, z, n and u side by side; both zero behind the last row."""
    states, saved = shapes(x)
    number, (T, G) = len(rows.offsets) - 1, states.shape
    with torch.cuda.device_of(states):
        _forward[(triton.cdiv(number, BLOCK_R) + SWEEPERS,)](
            x.gates.contiguous(),
            x.weight.t().contiguous(),
            x.bias,
            rows.offsets,
            row_order(rows.offsets),
            states,
            saved,
            number,
            T,
            **tile_sizes(G),
        )
    return states, saved


def backward(
    grad: Tensor, states: Tensor, saved: Tensor, x: Gru, rows: Rows
) -> tuple[Tensor | None, ...]:
    """Gradients of gates (zero behind the last row), weight and bias."""
    number, (T, G) = len(rows.offsets) - 1, states.shape
    ggates, ghidden = states.new_empty(T, 3 * G), states.new_empty(T, G)
    with torch.cuda.device_of(states):
        _backward[(triton.cdiv(number, BLOCK_R) + SWEEPERS,)](
            grad.contiguous(),
            saved,
            states,
            x.weight,
            rows.offsets,
            row_order(rows.offsets),
            ggates,
            ghidden,
            number,
            T,
            **tile_sizes(G),
        )
    return ggates, *weight_gradients(ggates, ghidden, states, saved, x, rows)
