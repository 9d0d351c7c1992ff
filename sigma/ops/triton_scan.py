"""The selective scan of packed rows as one Triton kernel forward and one backward (Mamba, alg. 2).

A program owns one row, or several in turn backward, and BLOCK_D channels. The state, a (BLOCK_N,
BLOCK_D) tile, stays in registers and time is a plain loop: thousands of rows fill an H100 without
splitting time. What has no state (Δ, its slope, the gate) is done for TILE positions at once, a
(TILE, BLOCK_D) tile that lies in the threads as the state does, so that taking one position out of
it is a few shuffles, and the memory is waited for once in TILE positions.

Backward runs forward once to leave a checkpoint every CHUNK positions in a scratch that does not
grow with the rows. Then, tile by tile from the end, it recomputes CHUNK states, keeps them in
registers (the loop over a tile is unrolled, so they are a tuple) and walks the adjoint through
them, where gy_t is already multiplied by SiLU(z_t):

    g_t   = C_t gy_t + a_{t+1} g_{t+1}                       a_t = exp(Δ_t A)
    gC_t  = Σ_d h_t gy_t          gB_t = Σ_d g_t Δ_t u_t     gA = Σ_t Δ_t g_t a_t h_{t-1}
    gu_t  = D gy_t + Δ_t Σ_n g_t B_t
    gΔ_t  = u_t Σ_n g_t B_t + Σ_n A g_t a_t h_{t-1}

Places behind the last row are never read; all programs together write zeros there. There are no
atomics: sums across programs are parts that PyTorch adds, so a repeated run gives the same bits.

Symbols: T places, B rows (``offsets``, (B + 1,) int64), d channels, N states of a channel.
"""

# Kernels are typed by Triton when they are compiled, not by annotations.
# mypy: disallow-untyped-defs=False

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

from sigma.ops.inputs import Gradients, Scan
from sigma.ops.rows import Rows
from sigma.ops.scan import shapes
from sigma.ops.triton_common import (
    LN2,
    bounds,
    clear,
    load,
    placed,
    position,
    softplus,
    store,
    vectors,
)

CHUNK = 4  # states a program holds at once in backward; more do not fit the registers of sm_90
PROGRAMS = 4096  # of backward, about: several waves on the largest GPUs
SCRATCH = 512 * 2**20  # bytes of backward's checkpoints, at most (unless one program needs more)


@triton.jit(do_not_specialize=["rows", "T"])
def _forward(
    inputs, strides, y, rows, T, d, N, BLOCK_D: constexpr, BLOCK_N: constexpr, TILE: constexpr
):
    """``inputs`` see ``kernel_inputs``; ``strides`` of u, dt, B, C and z."""
    u, dt, A, B, C, D, z, bias, offsets = inputs
    su, sdt, sB, sC, sz = strides
    blocks = tl.cdiv(d, BLOCK_D)
    row = tl.program_id(0) // blocks
    chan = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    i0 = tl.arange(0, TILE)
    kd, kn = chan < d, n < N
    # Padded channels and states have u = B = C = 0: their h stays 0.
    a2 = tl.load(A + n[:, None] * d + chan[None, :], mask=kn[:, None] & kd[None, :], other=0.0)
    skip = tl.load(D + chan, mask=kd, other=0.0)
    shift = tl.load(bias + chan, mask=kd, other=0.0)
    start, end = bounds(offsets, row, rows)
    h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(start, end, TILE):
        t = (first + i0)[:, None]
        keep = (t < end) & kd[None, :]
        ut = load(u, su, t, chan[None, :], keep)
        delta, _ = softplus(load(dt, sdt, t, chan[None, :], keep) + shift[None, :])
        bs = vectors(B, sB, first, end - 1, n, kn, TILE)
        cs = vectors(C, sC, first, end - 1, n, kn, TILE)
        w = delta * ut
        out = tl.zeros((TILE, BLOCK_D), tl.float32)
        for i in tl.static_range(TILE):
            if first + i < end:
                a = tl.exp2(position(delta, i, TILE)[None, :] * a2)
                h = a * h + position(w, i, TILE)[None, :] * bs[i][:, None]
                out = placed(out, i, tl.sum(h * cs[i][:, None], 0), TILE)
        out += skip[None, :] * ut
        if z is not None:
            zt = load(z, sz, t, chan[None, :], keep)
            out *= zt * tl.sigmoid(zt)
        store(y, t, d, chan[None, :], keep, out)
    tail = tl.load(offsets + rows) + row * TILE
    clear(y, d, chan, kd, tail, T, tl.num_programs(0) // blocks * TILE, TILE, BLOCK_D)


@triton.jit(do_not_specialize=["rows", "parts", "T", "slots"])
def _backward(
    inputs,
    strides,
    gy,
    grads,
    sums,
    states,
    rows,
    parts,
    T,
    slots,
    d,
    N,
    BLOCK_D: constexpr,
    BLOCK_N: constexpr,
    TILE: constexpr,
    CHUNK: constexpr,
):
    """``strides`` begin with gy's; ``grads`` are of u, dt, (blocks, T, N) of B and C, and of z.

    ``sums`` (parts, N + 2, d) has gA^T, gD and gbias, and ``states`` (programs, slots, BLOCK_N,
    BLOCK_D) is the scratch.
    """
    u, dt, A, B, C, D, z, bias, offsets = inputs
    sgy, su, sdt, sB, sC, sz = strides
    gu, gdt, gB, gC, gz = grads
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(d, BLOCK_D)
    part, block = pid // blocks, pid % blocks
    chan = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    i0 = tl.arange(0, TILE)
    kd, kn = chan < d, n < N
    tile = n[:, None] * d + chan[None, :]
    kt = kn[:, None] & kd[None, :]
    a2 = tl.load(A + tile, mask=kt, other=0.0)
    skip = tl.load(D + chan, mask=kd, other=0.0)
    shift = tl.load(bias + chan, mask=kd, other=0.0)
    gB += block * T * N
    gC += block * T * N
    SIZE: constexpr = BLOCK_N * BLOCK_D
    states += pid * slots * SIZE + n[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)
    sum_a = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    sum_d = tl.zeros((TILE, BLOCK_D), tl.float32)
    sum_bias = tl.zeros((TILE, BLOCK_D), tl.float32)

    for r in range(part, rows, parts):
        start, end = bounds(offsets, r, rows)
        length = (end - start).to(tl.int32)
        last = tl.maximum(length - 1, 0) // CHUNK * CHUNK  # position of the last checkpoint
        tl.debug_barrier()  # the scratch still holds the row before
        h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for p in range(0, last, TILE):
            t = (start + p + i0)[:, None]
            keep = (t < end) & kd[None, :]
            ut = load(u, su, t, chan[None, :], keep)
            delta, _ = softplus(load(dt, sdt, t, chan[None, :], keep) + shift[None, :])
            bs = vectors(B, sB, start + p, end - 1, n, kn, TILE)
            w = delta * ut
            for i in tl.static_range(TILE):
                if p + i < last:
                    if i % CHUNK == 0:
                        tl.store(states + (p + i) // CHUNK * SIZE, h)
                    a = tl.exp2(position(delta, i, TILE)[None, :] * a2)
                    h = a * h + position(w, i, TILE)[None, :] * bs[i][:, None]
        tl.store(states + last // CHUNK * SIZE, h)
        tl.debug_barrier()

        g = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)  # a_{t+1} g_{t+1}
        for back in range(tl.cdiv(length, TILE)):
            p = (tl.cdiv(length, TILE) - 1 - back) * TILE
            t = (start + p + i0)[:, None]
            keep = (t < end) & kd[None, :]
            ut = load(u, su, t, chan[None, :], keep)
            raw = load(dt, sdt, t, chan[None, :], keep)
            gout = load(gy, sgy, t, chan[None, :], keep)
            bs = vectors(B, sB, start + p, end - 1, n, kn, TILE)
            cs = vectors(C, sC, start + p, end - 1, n, kn, TILE)
            h = tl.load(states + (p + TILE - CHUNK) // CHUNK * SIZE)
            delta, slope = softplus(raw + shift[None, :])
            if z is not None:
                zt = load(z, sz, t, chan[None, :], keep)
                gate = tl.sigmoid(zt)
                gzt = gout * gate * (1.0 + zt * (1.0 - gate))
                gout *= zt * gate
            w = delta * ut
            out = tl.zeros((TILE, BLOCK_D), tl.float32)
            gb = tl.zeros((TILE, BLOCK_D), tl.float32)
            ga = tl.zeros((TILE, BLOCK_D), tl.float32)
            for f in tl.static_range(TILE - CHUNK, -1, -CHUNK):
                # Of a chunk behind the row's end this is whatever stands there, and unused.
                if f < TILE - CHUNK:
                    h = tl.load(states + (p + f) // CHUNK * SIZE)
                after = ()  # h_t for every t of the chunk but the last
                for i in tl.static_range(CHUNK - 1):
                    # Without this branch ptxas does all of the chunk at once, and spills.
                    if p + f + i < length:
                        a = tl.exp2(position(delta, f + i, TILE)[None, :] * a2)
                        h = a * h + position(w, f + i, TILE)[None, :] * bs[f + i][:, None]
                    after += (h,)  # type: ignore[assignment]
                for q in tl.static_range(f + CHUNK - 1, f - 1, -1):
                    if p + q < length:
                        if q > f:
                            h = after[q - f - 1]
                        else:
                            h = tl.load(states + (p + f) // CHUNK * SIZE)
                        delta_t = position(delta, q, TILE)[None, :]
                        wt = position(w, q, TILE)[None, :]
                        gt = position(gout, q, TILE)[None, :]
                        a = tl.exp2(delta_t * a2)
                        place = start + p + q
                        now = a * h + wt * bs[q][:, None]
                        store(gC, place, N, n, kn, tl.sum(now * gt, 1))
                        if z is not None:
                            out = placed(out, q, tl.sum(now * cs[q][:, None], 0), TILE)
                        g += gt * cs[q][:, None]
                        store(gB, place, N, n, kn, tl.sum(g * wt, 1))
                        gb = placed(gb, q, tl.sum(g * bs[q][:, None], 0), TILE)
                        g *= a
                        gah = g * h
                        ga = placed(ga, q, tl.sum(gah * a2, 0), TILE)
                        sum_a += delta_t * gah
            graw = (ut * gb + LN2 * ga) * slope
            sum_d += gout * ut
            sum_bias += graw
            store(gu, t, d, chan[None, :], keep, skip[None, :] * gout + delta * gb)
            store(gdt, t, d, chan[None, :], keep, graw)
            if z is not None:
                store(gz, t, d, chan[None, :], keep, gzt * (out + skip[None, :] * ut))

    sums += part * (N + 2) * d
    tl.store(sums + tile, sum_a, mask=kt)
    tl.store(sums + N * d + chan, tl.sum(sum_d, 0), mask=kd)
    tl.store(sums + (N + 1) * d + chan, tl.sum(sum_bias, 0), mask=kd)
    tail, step = tl.load(offsets + rows) + part * TILE, parts * TILE
    clear(gu, d, chan, kd, tail, T, step, TILE, BLOCK_D)
    clear(gdt, d, chan, kd, tail, T, step, TILE, BLOCK_D)
    if z is not None:
        clear(gz, d, chan, kd, tail, T, step, TILE, BLOCK_D)
    clear(gB, N, n, kn, tail, T, step, TILE, BLOCK_N)
    clear(gC, N, n, kn, tail, T, step, TILE, BLOCK_N)


def tile_sizes(d: int, N: int) -> dict[str, int]:
    """Tiles and warps.

    All of N is in one program, so that sums over it stay there. One warp is best, as its barriers
    cost nothing; but under 16 channels the parts of gB and gC would outweigh the other tensors.
    A thread holds 32 numbers of a state, which spreads the work of a position over the most, and
    16 where several warps need registers for what they exchange. 128 numbers in a (TILE, BLOCK_D)
    tile, four in a line in each thread of a warp, lie as the state does.
    """
    block_n = triton.next_power_of_2(N)
    per_thread = 32 if block_n <= 64 else 16
    block_d = min(triton.next_power_of_2(d), max(16, min(32, 32 * per_thread // block_n)))
    warps = min(max(block_d * block_n // (32 * per_thread), 1), 8)
    tile = 4 if block_d == 32 else 8
    return {"BLOCK_D": block_d, "BLOCK_N": block_n, "TILE": tile, "num_warps": warps}


def kernel_inputs(x: Scan, rows: Rows) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What the kernels read: ``Scan`` and the offsets; and the strides of u, dt, B, C and z.

    They have A^T log2(e) for A: they use exp2, and channels in a line are loaded in a line.
    """
    A = torch.mul(x.A.t(), math.log2(math.e), out=x.A.new_empty(x.A.shape[::-1]))
    inputs = x.u, x.dt, A, x.B, x.C, x.D.contiguous(), x.z, x.dt_bias.contiguous(), rows.offsets
    return inputs, tuple(None if v is None else v.stride() for v in (x.u, x.dt, x.B, x.C, x.z))


def forward(x: Scan, rows: Rows) -> tuple[Tensor, Tensor]:
    """y; N up to 256. States and sums are float32; A, D and dt_bias must be, others need not."""
    (T, d), N, number = x.u.shape, x.A.shape[1], len(rows.offsets) - 1
    y, nothing = shapes(x)
    sizes = tile_sizes(d, N)
    programs = max(number, 1) * triton.cdiv(d, sizes["BLOCK_D"])
    with torch.cuda.device_of(y):
        _forward[(programs,)](*kernel_inputs(x, rows), y, number, T, d, N, **sizes, maxnreg=128)
    return y, nothing


def backward(grad: Tensor, y: Tensor, saved: Tensor, x: Scan, rows: Rows) -> Gradients:
    """Gradients of the inputs in their types."""
    (T, d), N, number = x.u.shape, x.A.shape[1], len(rows.offsets) - 1
    sizes = tile_sizes(d, N)
    state = sizes["BLOCK_N"], sizes["BLOCK_D"]
    blocks = triton.cdiv(d, sizes["BLOCK_D"])
    slots = max(triton.cdiv(rows.longest, sizes["TILE"]), 1) * sizes["TILE"] // CHUNK
    fitting = SCRATCH // (4 * blocks * slots * math.prod(state))
    parts = max(min(number, triton.cdiv(PROGRAMS, blocks), fitting), 1)
    gu, gdt, gz = (None if v is None else v.new_empty((T, d)) for v in (x.u, x.dt, x.z))
    gB, gC = ((v if blocks == 1 else x.A).new_empty((blocks, T, N)) for v in (x.B, x.C))
    sums = x.A.new_empty((parts, N + 2, d))
    scratch = x.A.new_empty((parts * blocks, slots, *state))
    inputs, strides = kernel_inputs(x, rows)
    tensors = inputs, (grad.stride(), *strides), grad, (gu, gdt, gB, gC, gz), sums, scratch
    with torch.cuda.device_of(y):
        _backward[(parts * blocks,)](*tensors, number, parts, T, slots, d, N, **sizes, CHUNK=CHUNK)
    gB, gC = (v[0] if blocks == 1 else v.sum(0) for v in (gB, gC))
    gA, gD, gbias = sums[:, :N].sum(0).t().contiguous(), sums[:, N].sum(0), sums[:, N + 1].sum(0)
    return gu, gdt, gA, gB.to(x.B.dtype), gC.to(x.C.dtype), gD, gz, gbias
