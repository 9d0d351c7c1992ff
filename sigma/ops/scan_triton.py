"""The selective scan as one Triton kernel forward and one backward (Mamba, Gu & Dao 2023, alg. 2).

A program owns one row and BLOCK_D channels, or several rows in turn backward. The state, a
(BLOCK_N, BLOCK_D) tile, stays in registers and time is a plain loop: thousands of rows fill an H100
without splitting time, so a scan across threads would only add products, shuffles and barriers to
exponentials that are, counted in instructions, the bound anyway.

Backward runs forward once to leave a checkpoint every CHUNK positions in a scratch that does not
grow with the rows. Then, chunk by chunk from the end, it recomputes the CHUNK states, keeps them in
registers (the loop over a chunk is unrolled, so they are a tuple) and walks the adjoint through
them, where gy_t is already multiplied by SiLU(z_t):

    g_t   = C_t gy_t + a_{t+1} g_{t+1}                       a_t = exp(Δ_t A)
    gC_t  = Σ_d h_t gy_t          gB_t = Σ_d g_t Δ_t u_t     gA = Σ_t Δ_t g_t a_t h_{t-1}
    gu_t  = D gy_t + Δ_t Σ_n g_t B_t
    gΔ_t  = u_t Σ_n g_t B_t + Σ_n A g_t a_t h_{t-1}

There are no atomics: sums across programs are parts that PyTorch adds, so a repeated run gives the
same bits. float32, bfloat16 and float16 tensors of any strides; float64 is not for this kernel.
"""

# Kernels are typed by Triton when they are compiled, not by annotations.
# mypy: disallow-untyped-defs=False

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 6  # states a program holds at once in backward; more do not fit the registers of sm_90
PROGRAMS = 8192  # of backward, about: bounds the scratch; several waves on the largest GPUs
LN2 = tl.constexpr(math.log(2.0))
LOG2E = tl.constexpr(math.log2(math.e))


@triton.jit
def _load(x, stride, row, t, column, keep):
    """x[row, t, column] in float32; zero where not ``keep``. ``row`` and ``t`` are int64."""
    at = x + row * stride[0] + t * stride[1] + column.to(tl.int64) * stride[2]
    return tl.load(at, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def _store(x, stride, row, t, column, keep, value):
    at = x + row * stride[0] + t * stride[1] + column.to(tl.int64) * stride[2]
    tl.store(at, value.to(x.dtype.element_ty), mask=keep)


@triton.jit
def _softplus(x):
    """softplus(x) and its derivative; beyond 20 both round to PyTorch's x and 1.

    log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3, is exact for tiny e, unlike log of 1 + e, and
    cheap: tl.log is not.
    """
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2.0 + e)
    q = s * s
    p = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return tl.maximum(x, 0.0) + 2.0 * s * p, tl.where(x > 0.0, 1.0, e) / (1.0 + e)


@triton.jit(do_not_specialize=["L"])
def _forward(u, dt, A, B, C, D, z, bias, y, su, sdt, sB, sC, sz, sy, L, d, N,
             BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    blocks = tl.cdiv(d, BLOCK_D)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    chan = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    kd, kn = chan < d, n < N
    # Padded channels and states have u = B = C = 0: their h stays 0.
    a2 = tl.load(A + n[:, None] * d + chan[None, :], mask=kn[:, None] & kd[None, :], other=0.0)
    skip = tl.load(D + chan, mask=kd, other=0.0)
    shift = tl.load(bias + chan, mask=kd, other=0.0)
    h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for i in range(L):
        t = row * 0 + i
        ut = _load(u, su, row, t, chan, kd)
        delta, _ = _softplus(_load(dt, sdt, row, t, chan, kd) + shift)
        bt = _load(B, sB, row, t, n, kn)
        ct = _load(C, sC, row, t, n, kn)
        h = tl.exp2(delta[None, :] * a2) * h + (delta * ut)[None, :] * bt[:, None]
        out = tl.sum(h * ct[:, None], 0) + skip * ut
        if z is not None:
            zt = _load(z, sz, row, t, chan, kd)
            out *= zt * tl.sigmoid(zt)
        _store(y, sy, row, t, chan, kd, out)


@triton.jit(do_not_specialize=["rows", "parts", "L"])
def _backward(gy, u, dt, A, B, C, D, z, bias, gu, gdt, gA, gB, gC, gD, gz, gbias, states,
              sgy, su, sdt, sB, sC, sz, sg, sn, rows, parts, L, d, N,
              BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """Gradients of (B, L, d) have strides ``sg``; gB and gC, (blocks, B, L, N), have ``sn``.

    ``states`` (programs, chunks, BLOCK_N, BLOCK_D) is the scratch.
    """
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(d, BLOCK_D)
    chunks = tl.cdiv(L, CHUNK)
    part, block = pid // blocks, pid % blocks
    chan = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    kd, kn = chan < d, n < N
    tile = n[:, None] * d + chan[None, :]
    kt = kn[:, None] & kd[None, :]
    a2 = tl.load(A + tile, mask=kt, other=0.0)
    skip = tl.load(D + chan, mask=kd, other=0.0)
    shift = tl.load(bias + chan, mask=kd, other=0.0)
    gB += block * rows * sn[0]
    gC += block * rows * sn[0]
    states += pid * chunks * BLOCK_N * BLOCK_D + n[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)
    sum_a = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    sum_d = tl.zeros((BLOCK_D,), tl.float32)
    sum_bias = tl.zeros((BLOCK_D,), tl.float32)

    for r in range(part.to(tl.int32), rows, parts):
        row = pid * 0 + r
        tl.debug_barrier()  # the scratch still holds the row before
        h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for c in range(chunks - 1):
            tl.store(states + c * BLOCK_N * BLOCK_D, h)
            for i in range(CHUNK):
                t = row * 0 + c * CHUNK + i
                ut = _load(u, su, row, t, chan, kd)
                delta, _ = _softplus(_load(dt, sdt, row, t, chan, kd) + shift)
                bt = _load(B, sB, row, t, n, kn)
                h = tl.exp2(delta[None, :] * a2) * h + (delta * ut)[None, :] * bt[:, None]
        tl.store(states + (chunks - 1) * BLOCK_N * BLOCK_D, h)
        tl.debug_barrier()

        g = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)  # a_{t+1} g_{t+1}
        for back in range(chunks):
            c = chunks - 1 - back
            h = tl.load(states + c * BLOCK_N * BLOCK_D)
            before = (h,)  # h_{t-1} for every t of the chunk
            for i in tl.static_range(CHUNK - 1):
                # Without this branch ptxas loads all of the chunk first, and spills.
                if c * CHUNK + i < L:
                    t = row * 0 + c * CHUNK + i
                    ut = _load(u, su, row, t, chan, kd)
                    delta, _ = _softplus(_load(dt, sdt, row, t, chan, kd) + shift)
                    bt = _load(B, sB, row, t, n, kn)
                    h = tl.exp2(delta[None, :] * a2) * h + (delta * ut)[None, :] * bt[:, None]
                before += (h,)  # type: ignore[assignment]
            for j in tl.static_range(CHUNK):
                if c * CHUNK + CHUNK - 1 - j < L:
                    t = row * 0 + c * CHUNK + (CHUNK - 1 - j)
                    ut = _load(u, su, row, t, chan, kd)
                    delta, slope = _softplus(_load(dt, sdt, row, t, chan, kd) + shift)
                    bt = _load(B, sB, row, t, n, kn)
                    ct = _load(C, sC, row, t, n, kn)
                    gout = _load(gy, sgy, row, t, chan, kd)
                    w = delta * ut
                    a = tl.exp2(delta[None, :] * a2)
                    ah = a * before[CHUNK - 1 - j]
                    h = ah + w[None, :] * bt[:, None]
                    if z is not None:
                        zt = _load(z, sz, row, t, chan, kd)
                        gate = tl.sigmoid(zt)
                        out = tl.sum(h * ct[:, None], 0) + skip * ut
                        gzt = gout * out * gate * (1.0 + zt * (1.0 - gate))
                        _store(gz, sg, row, t, chan, kd, gzt)
                        gout *= zt * gate
                    g += gout[None, :] * ct[:, None]
                    gah = g * ah
                    gb = tl.sum(g * bt[:, None], 0)
                    ga = tl.sum(gah * a2, 0)
                    _store(gu, sg, row, t, chan, kd, skip * gout + delta * gb)
                    graw = (ut * gb + LN2 * ga) * slope
                    _store(gdt, sg, row, t, chan, kd, graw)
                    _store(gB, sn, row, t, n, kn, tl.sum(g * w[None, :], 1))
                    _store(gC, sn, row, t, n, kn, tl.sum(h * gout[None, :], 1))
                    sum_a += delta[None, :] * gah
                    sum_d += gout * ut
                    sum_bias += graw
                    g *= a

    tl.store(gA + part * N * d + tile, sum_a, mask=kt)
    tl.store(gD + part * d + chan, sum_d, mask=kd)
    tl.store(gbias + part * d + chan, sum_bias, mask=kd)


def tile_sizes(d: int, N: int, per_thread: int) -> tuple[int, int, int]:
    """BLOCK_D, BLOCK_N and num_warps, such that a thread holds ``per_thread`` numbers of a state.

    All of N is in one program, so that sums over it stay there. One warp is best, as its barriers
    cost nothing; but under 16 channels the parts of gB and gC would outweigh the other tensors.
    """
    block_n = triton.next_power_of_2(N)
    block_d = min(triton.next_power_of_2(d), max(16, min(32, 32 * per_thread // block_n)))
    return block_d, block_n, min(max(block_d * block_n // (32 * per_thread), 1), 8)


class TritonScan(torch.autograd.Function):
    """The Triton kernels; arguments and result as ``selective_scan_reference``, N up to 256.

    u, dt, B, C, z: float32, bfloat16 or float16, each of its own; A, D, dt_bias: float32. States
    and sums are float32, gradients have their inputs' types.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                z: Tensor | None, dt_bias: Tensor) -> Tensor:  # fmt: skip
        ctx.save_for_backward(u, dt, A, B, C, D, z, dt_bias)
        rows, L, d = u.shape
        N = A.shape[1]
        y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
        block_d, block_n, warps = tile_sizes(d, N, 32)
        with torch.cuda.device_of(u):
            _forward[(rows * triton.cdiv(d, block_d),)](
                u, dt, _base2(A), B, C, D.contiguous(), z, dt_bias.contiguous(), y,
                u.stride(), dt.stride(), B.stride(), C.stride(), None if z is None else z.stride(),
                y.stride(), L, d, N, BLOCK_D=block_d, BLOCK_N=block_n, num_warps=warps,
            )  # fmt: skip
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, A, B, C, D, z, dt_bias = ctx.saved_tensors
        rows, L, d = u.shape
        N = A.shape[1]
        block_d, block_n, warps = tile_sizes(d, N, 16)
        blocks = triton.cdiv(d, block_d)
        parts = triton.cdiv(rows, max(1, triton.cdiv(rows * blocks, PROGRAMS)))

        def new(*shape: int, like: Tensor | None = None) -> Tensor:
            return torch.empty(
                shape, dtype=torch.float32 if like is None else like.dtype, device=u.device
            )

        gu, gdt = new(*u.shape, like=u), new(*u.shape, like=dt)
        gz = None if z is None else new(*u.shape, like=z)
        gB = new(blocks, rows, L, N, like=B if blocks == 1 else None)
        gC = new(blocks, rows, L, N, like=C if blocks == 1 else None)
        gA, gD, gbias = new(parts, N, d), new(parts, d), new(parts, d)
        states = new(parts * blocks, triton.cdiv(L, CHUNK), block_n, block_d)
        with torch.cuda.device_of(u):
            _backward[(parts * blocks,)](
                gy, u, dt, _base2(A), B, C, D.contiguous(), z, dt_bias.contiguous(),
                gu, gdt, gA, gB, gC, gD, gz, gbias, states,
                gy.stride(), u.stride(), dt.stride(), B.stride(), C.stride(),
                None if z is None else z.stride(), gu.stride(), gB.stride()[1:],
                rows, parts, L, d, N,
                BLOCK_D=block_d, BLOCK_N=block_n, CHUNK=CHUNK, num_warps=warps,
            )  # fmt: skip
        gB, gC = (x[0] if blocks == 1 else x.sum(0) for x in (gB, gC))
        return (
            gu, gdt, gA.sum(0).t().contiguous(), gB.to(B.dtype), gC.to(C.dtype),
            gD.sum(0), gz, gbias.sum(0),
        )  # fmt: skip


def _base2(A: Tensor) -> Tensor:
    """A log2(e), (N, d): the kernels use exp2, and channels in a line are loaded in a line."""
    return (A.t() * math.log2(math.e)).contiguous()
