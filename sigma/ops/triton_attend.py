"""Attention within packed rows: one Triton kernel forward and two backward (FlashAttention-2).

Symbols: T keys and M queries of H heads of d numbers, B rows; r(m) is how many keys of its row
query m sees, its reach; D is the dropout of the weights: 0 with probability p, else 1 / (1 - p).

    S_mj = q_m·k_j / sqrt(d)   for j < r(m)         lse_m = log Σ_j exp S_mj
    P_mj = exp(S_mj - lse_m)                        out_m = Σ_j P_mj D_mj v_j

Backward recomputes P and D block by block, with g the gradient of out:

    delta_m = g_m·out_m = Σ_j P_mj D_mj g_m·v_j     gS_mj = P_mj (D_mj g_m·v_j - delta_m)
    gq_m = Σ_j gS_mj k_j / sqrt(d)                  gk_j = Σ_m gS_mj q_m / sqrt(d)
    gv_j = Σ_m P_mj D_mj g_m

A program owns a block of queries (or of keys, for gk and gv) of one row and head, and loops over
the row's keys (or queries); beyond its row's end it has nothing to do. There are no atomics: a
repeated run gives the same bits. Softmax and sums are float32 for all types of input.
"""

# Kernels are typed by Triton when they are compiled, not by annotations.
# mypy: disallow-untyped-defs=False

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigma.ops.attend import shapes
from sigma.ops.inputs import Attend, Gradients
from sigma.ops.rows import Rows
from sigma.ops.triton_common import LN2, LOG2E, clear_heads, load_heads, store_heads


@triton.jit
def _reach(places, query, real, begin, n):
    """How many keys each query sees, from the row's first on, int32; 0 where not ``real``."""
    reach = tl.where(real, n, 0)
    if places is not None:
        position = tl.load(places + query, mask=real, other=0) - begin
        reach = tl.minimum(reach, position.to(tl.int32) + 1)
    return reach


@triton.jit
def _dropout_mask(seed, query, head, start, p, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which weights dropout leaves: counter (query, key / 4, head) has the numbers of 4 keys."""
    zero = tl.zeros((BLOCK_M, BLOCK_N // 4), tl.int32)
    key = start // 4 + tl.arange(0, BLOCK_N // 4)
    query = query.to(tl.int32)[:, None] + zero
    a, b, c, d = tl.philox(tl.load(seed), query, key[None, :] + zero, head + zero, zero)
    bits = tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), (BLOCK_M, BLOCK_N))
    return tl.uint_to_uniform_float(bits) >= p


@triton.jit
def _tile(tiles, stats, reach, query, head, start, scale, dropout, PRECISION: tl.constexpr):
    """Of queries and the keys from ``start`` on: P D without its 1 / (1 - p), and gS."""
    qs, ks, vs, gs = tiles
    level, delta = stats
    key = start + tl.arange(0, ks.shape[0])
    s = tl.dot(qs, tl.trans(ks), input_precision=PRECISION) * (scale * LOG2E)
    w = tl.where(key[None, :] < reach[:, None], tl.exp2(s - level[:, None] * LOG2E), 0.0)
    gw = tl.dot(gs, tl.trans(vs), input_precision=PRECISION)
    weight = w
    if dropout is not None:
        seed, p, rescale = dropout
        mask = _dropout_mask(seed, query, head, start, p, qs.shape[0], ks.shape[0])
        gw = tl.where(mask, gw * rescale, 0.0)
        weight = tl.where(mask, w, 0.0)
    return weight.to(gs.dtype), (w * (gw - delta[:, None])).to(qs.dtype)


@triton.jit
def _extent(offsets, row):
    """The row's first key (int64), and how many it has (int32)."""
    begin = tl.load(offsets + row)
    return begin, (tl.load(offsets + row + 1) - begin).to(tl.int32)


@triton.jit(do_not_specialize=["rows", "size"])
def _forward(
    inputs,
    dropout,
    tensors,
    rows,
    size,
    H,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``inputs`` are q, k, v, offsets of rows and of queries, and places, if it is causal.

    ``dropout`` is seed, p and 1 / (1 - p), or None, ``size`` how many queries (or keys) there are.
    """
    q, k, v, offsets, query_offsets, places = inputs
    out, lse = tensors
    row, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(query_offsets + row) + tl.program_id(2) * BLOCK_M
    if row == rows:
        clear_heads(out, head, first, size, H, D, BLOCK_M, BLOCK_D)
        clear_heads(lse, head, first, size, H, 1, BLOCK_M, 1)
        return
    last = tl.load(query_offsets + row + 1)
    if first >= last:
        return
    begin, n = _extent(offsets, row)
    query = first + tl.arange(0, BLOCK_M)
    real = query < last
    reach = _reach(places, query, real, begin, n)
    qs = load_heads(q, query, real, head, H, D, BLOCK_D)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)  # of the scores, base 2
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, tl.max(reach, 0), BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        ks = load_heads(k, begin + key, key < n, head, H, D, BLOCK_D)
        vs = load_heads(v, begin + key, key < n, head, H, D, BLOCK_D)
        s = tl.dot(qs, tl.trans(ks), input_precision=PRECISION) * (scale * LOG2E)
        # Every query sees key 0, and so do lanes without one: the peak is finite from here on.
        s = tl.where(key[None, :] < tl.maximum(reach, 1)[:, None], s, float("-inf"))
        top = tl.maximum(peak, tl.max(s, 1))
        w = tl.exp2(s - top[:, None])
        decay = tl.exp2(peak - top)
        total = total * decay + tl.sum(w, 1)
        if dropout is not None:
            seed, p, _ = dropout
            w = tl.where(_dropout_mask(seed, query, head, start, p, BLOCK_M, BLOCK_N), w, 0.0)
        acc = tl.dot(w.to(vs.dtype), vs, acc * decay[:, None], input_precision=PRECISION)
        peak = top
    # A query of a row without keys has a total of 0 and the output 0.
    rescale = 1.0
    if dropout is not None:
        rescale = dropout[2]
    acc *= (rescale / tl.where(total > 0.0, total, 1.0))[:, None]
    store_heads(out, query, real, head, acc, H, D, BLOCK_D)
    tl.store(lse + query * H + head, (peak + tl.log2(total)) * LN2, mask=real)


@triton.jit(do_not_specialize=["rows", "size"])
def _backward_q(
    inputs,
    dropout,
    tensors,
    rows,
    size,
    H,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """gq, and ``delta`` (M, H) for the other kernel."""
    q, k, v, offsets, query_offsets, places = inputs
    gout, out, lse, delta, gq = tensors
    row, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(query_offsets + row) + tl.program_id(2) * BLOCK_M
    if row == rows:
        clear_heads(gq, head, first, size, H, D, BLOCK_M, BLOCK_D)
        return
    last = tl.load(query_offsets + row + 1)
    if first >= last:
        return
    begin, n = _extent(offsets, row)
    query = first + tl.arange(0, BLOCK_M)
    real = query < last
    reach = _reach(places, query, real, begin, n)
    qs = load_heads(q, query, real, head, H, D, BLOCK_D)
    gs = load_heads(gout, query, real, head, H, D, BLOCK_D)
    outs = load_heads(out, query, real, head, H, D, BLOCK_D)
    dot = tl.sum(gs.to(tl.float32) * outs.to(tl.float32), 1)
    tl.store(delta + query * H + head, dot, mask=real)
    stats = tl.load(lse + query * H + head, mask=real, other=0.0), dot
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, tl.max(reach, 0), BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        ks = load_heads(k, begin + key, key < n, head, H, D, BLOCK_D)
        vs = load_heads(v, begin + key, key < n, head, H, D, BLOCK_D)
        tiles = qs, ks, vs, gs
        _, grad = _tile(tiles, stats, reach, query, head, start, scale, dropout, PRECISION)
        acc = tl.dot(grad, ks, acc, input_precision=PRECISION)
    store_heads(gq, query, real, head, acc * scale, H, D, BLOCK_D)


@triton.jit(do_not_specialize=["rows", "size"])
def _backward_kv(
    inputs,
    dropout,
    tensors,
    rows,
    size,
    H,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    q, k, v, offsets, query_offsets, places = inputs
    gout, lse, delta, gk, gv = tensors
    row, head = tl.program_id(0), tl.program_id(1)
    begin, start = tl.load(offsets + row), tl.program_id(2) * BLOCK_N
    if row == rows:
        clear_heads(gk, head, begin + start, size, H, D, BLOCK_N, BLOCK_D)
        clear_heads(gv, head, begin + start, size, H, D, BLOCK_N, BLOCK_D)
        return
    n = (tl.load(offsets + row + 1) - begin).to(tl.int32)
    if start >= n:
        return
    first = tl.load(query_offsets + row)
    last = tl.load(query_offsets + row + 1)
    key = start + tl.arange(0, BLOCK_N)
    for_k = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for_v = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    queries = (last - first).to(tl.int32)
    skip = 0
    if (
        places is not None
    ):  # they ascend strictly, so query i stands so far before the last at least
        final = tl.load(places + last - 1, mask=queries > 0, other=0) - begin
        skip = tl.maximum(start - (final.to(tl.int32) + 1 - queries), 0)
    for i in range(skip, queries, BLOCK_M):
        query = first + i + tl.arange(0, BLOCK_M)
        real = query < last
        reach = _reach(places, query, real, begin, n)
        # Loaded ahead of the loop, these would be held as the operands of a product, which for
        # float32 is more than there are registers. ``key - i < n``, true for any i, prevents that.
        here = (key < n) & (key - i < n)
        ks = load_heads(k, begin + key, here, head, H, D, BLOCK_D)
        vs = load_heads(v, begin + key, here, head, H, D, BLOCK_D)
        qs = load_heads(q, query, real, head, H, D, BLOCK_D)
        gs = load_heads(gout, query, real, head, H, D, BLOCK_D)
        level = tl.load(lse + query * H + head, mask=real, other=0.0)
        stats = level, tl.load(delta + query * H + head, mask=real, other=0.0)
        tiles = qs, ks, vs, gs
        w, grad = _tile(tiles, stats, reach, query, head, start, scale, dropout, PRECISION)
        for_k = tl.dot(tl.trans(grad), qs, for_k, input_precision=PRECISION)
        for_v = tl.dot(tl.trans(w), gs, for_v, input_precision=PRECISION)
    if dropout is not None:
        for_v *= dropout[2]
    store_heads(gk, begin + key, key < n, head, for_k * scale, H, D, BLOCK_D)
    store_heads(gv, begin + key, key < n, head, for_v, H, D, BLOCK_D)


def tile_sizes(d: int, longest: int, queries: int, rows: int) -> tuple[int, int, int]:
    """BLOCK_M, small too for few queries a row, BLOCK_N and warps: sm_90 spills next to nothing."""
    block_n = 16 if longest <= 64 else 32
    if block_n == 32 and d <= 32 and queries > 16 * rows:
        return 32, 32, 4
    return 16, block_n, min(max(block_n * max(triton.next_power_of_2(d), block_n) // 512, 1), 4)


def _launch(kernel: Any, block: str, x: Attend, rows: Rows, size: int, *tensors: Tensor) -> None:
    """``kernel`` on ``tensors``, for all rows and heads; programs of one row more sweep behind.

    A program owns ``block`` (BLOCK_M or BLOCK_N) of ``size`` queries, or keys.
    """
    (H, d), number, p = x.q.shape[1:], len(rows.offsets) - 1, x.dropout
    block_m, block_n, warps = tile_sizes(d, rows.longest, len(x.q), number)
    sizes = {"BLOCK_D": max(16, triton.next_power_of_2(d)), "BLOCK_M": block_m, "BLOCK_N": block_n}
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    q, k, v, query_offsets, places = (t.contiguous() for t in x[:5])
    inputs = q, k, v, rows.offsets, query_offsets, places if x.causal else None
    dropout = (x.seed, p, 1 / (1 - p) if p < 1 else 0.0) if p > 0 else None
    numbers = number, size, H, d**-0.5, d
    with torch.cuda.device_of(q):
        kernel[(number + 1, H, max(1, triton.cdiv(rows.longest, sizes[block])))](
            inputs,
            dropout,
            tensors,
            *numbers,
            **sizes,
            PRECISION=precision,
            num_warps=warps,
            num_stages=2,
        )


def forward(x: Attend, rows: Rows) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of each query's sum of exponentials; d up to 128."""
    out, lse = shapes(x)
    _launch(_forward, "BLOCK_M", x, rows, len(out), out, lse)
    return out, lse


def backward(grad: Tensor, out: Tensor, lse: Tensor, x: Attend, rows: Rows) -> Gradients:
    """Gradients of q, k and v; zero behind the last row's queries and keys."""
    grad, delta = grad.contiguous(), torch.empty_like(lse)
    gq, gk, gv = (v.new_empty(v.shape) for v in x[:3])
    _launch(_backward_q, "BLOCK_M", x, rows, len(gq), grad, out, lse, delta, gq)
    _launch(_backward_kv, "BLOCK_N", x, rows, len(gk), grad, lse, delta, gk, gv)
    return gq, gk, gv
