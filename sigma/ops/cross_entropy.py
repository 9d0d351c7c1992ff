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

MIN_ROWS = 32  # fewer make the products wait for the table to be read
CHUNK_BYTES = {"cpu": 4 * 2**20, "cuda": 512 * 2**20}  # of scores; a cache, and few launches


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
        grad_states = torch.empty_like(states, dtype=exact)
        grad_table = torch.zeros_like(table, dtype=exact) if learns else None
        grad_bias = torch.zeros_like(table[:, 0], dtype=exact) if learns else None
        total = states.new_zeros((), dtype=exact)
        real = (targets >= 0).to(exact)
        count = real.sum()
        columns = torch.arange(len(table), device=table.device)
        step = chunk_rows(len(table), exact, states.device)
        for i in range(0, len(states), step):
            chunk, here = x[i : i + step], real[i : i + step, None]
            target = targets[i : i + step, None].clamp(min=0)
            scores = (chunk @ w.t()).to(exact)
            if bias is not None:
                scores += bias
            hit = scores.gather(1, target)
            top = scores.amax(1, keepdim=True)
            weight = scores.sub_(top).exp_().sum(1, keepdim=True)
            total += ((weight.log() + top - hit) * here).sum()
            if grad_table is None or grad_bias is None:
                continue
            gradient = scores.mul_(here / weight)
            if states.device.type == "cpu":
                gradient.scatter_(1, target, gradient.gather(1, target) - here)
            else:  # a scatter that must be deterministic sorts first
                gradient.sub_((columns == target) * here)
            if bias is not None:
                grad_bias += gradient.sum(0)
            gradient = gradient.to(product_type)
            grad_states[i : i + step] = gradient @ w
            if product_type == exact:
                grad_table.addmm_(gradient.t(), chunk)
            else:
                grad_table += gradient.t() @ chunk
        if learns:
            ctx.save_for_backward(grad_states, grad_table, grad_bias, count)
            ctx.types = states.dtype, table.dtype, None if bias is None else bias.dtype
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_table, grad_bias, count = ctx.saved_tensors
        scale = grad / count
        states_type, table_type, bias_type = ctx.types
        return (
            (grad_states * scale).to(states_type),
            (grad_table * scale).to(table_type),
            None if bias_type is None else (grad_bias * scale).to(bias_type),
            None,
            None,
            None,
        )


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
