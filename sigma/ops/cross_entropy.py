"""Softmax cross entropy over a large table of items, without the matrix of all scores.

Rows are taken in chunks; a chunk's scores become its loss and at once its gradient, in place, so
nothing of size M·K is kept for the backward pass, and on the CPU a chunk stays in the cache.

Symbols: M states, D hidden size, K items, s_mk the score of item k for state m.

    loss = 1/M Σ_m (log Σ_k exp s_mk - s_mt),  s = X W^T + b,  t the target of m
    dloss/ds = (softmax(s) - onehot(t)) / M

States whose target is -1 fill a batch up: M counts the others.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sigma.ops.rows import typed

MIN_ROWS = 32  # fewer make the products wait for the table to be read
CHUNK_BYTES = {"cpu": 10 * 2**20, "cuda": 512 * 2**20}  # of scores; a cache, and few launches


def chunk_rows(items: int, kind: torch.dtype, device: torch.device) -> int:
    """Rows whose scores over K items are held at a time."""
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    return max(MIN_ROWS, budget // (items * kind.itemsize))


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of states (M, D) against a table (K, D) with a bias (K,) or None.

    Targets (M,) are rows of the table, or -1. Sums are taken in float32 (float64 of float64
    inputs), the products in ``product_type``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        product_type: torch.dtype,
        learns: bool,
    ) -> Tensor:
        exact = torch.promote_types(states.dtype, torch.float32)
        x, w = states.to(product_type), table.to(product_type)
        grad_table = torch.zeros_like(table, dtype=exact) if learns else None
        grad_bias = torch.zeros_like(table[:, 0], dtype=exact) if learns else None
        real = (targets >= 0).to(exact)[:, None]
        target = targets.clamp(min=0)[:, None]
        step = chunk_rows(len(table), exact, states.device)
        hits, tops, weights, grads = [], [], [], []
        columns_first = w.t()
        parts = (values.split(step) for values in (x, target, real))
        for chunk, place, here in zip(*parts, strict=True):
            scores = typed(torch.mm(chunk, columns_first), exact)
            if bias is not None:
                scores += bias
            hits.append(scores.gather(1, place))
            tops.append(scores.amax(1, keepdim=True))
            weights.append(scores.sub_(tops[-1]).exp_().sum(1, keepdim=True))
            if grad_table is None or grad_bias is None:
                continue
            gradient = scores.mul_(here / weights[-1])
            if states.device.type == "cpu":
                gradient.scatter_add_(1, place, here.neg())
            else:  # a scatter that must be deterministic sorts first
                columns = torch.arange(len(table), device=table.device)
                gradient.sub_((columns == place) * here)
            if bias is not None:
                grad_bias += gradient.sum(0)
            gradient = typed(gradient, product_type)
            grads.append(typed(torch.mm(gradient, w), exact))
            if product_type == exact:
                grad_table.addmm_(gradient.t(), chunk)
            else:
                grad_table += gradient.t() @ chunk
        count = real.sum()
        loss = ((torch.cat(weights).log() + torch.cat(tops) - torch.cat(hits)) * real).sum() / count
        if learns:
            ctx.save_for_backward(torch.cat(grads), grad_table, grad_bias, count)
            ctx.types = states.dtype, table.dtype, None if bias is None else bias.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *totals, count = ctx.saved_tensors
        scale = grad / count
        pairs = zip(totals, ctx.types, strict=True)
        grads = [None if kind is None else (x * scale).to(kind) for x, kind in pairs]
        return (*grads, None, None, None)


def linear_cross_entropy(
    states: Tensor, table: Tensor, bias: Tensor | None, targets: Tensor
) -> Tensor:
    """Mean softmax cross entropy, a scalar: ``F.cross_entropy(X W^T + b, t, ignore_index=-1)``.

    Args:
        states: (M, D).
        table: (K, D).
        bias: (K,) or None.
        targets: (M,) int64 rows of the table; -1 leaves a state out of the mean.
    """
    device = states.device.type
    product_type = torch.promote_types(states.dtype, table.dtype)
    if torch.is_autocast_enabled(device):
        product_type = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        learns = torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in (states, table, bias)
        )
        return LinearCrossEntropy.apply(states, table, bias, targets, product_type, learns)
