"""The gated recurrent unit on packed rows, registered with PyTorch.

The inputs' part of the gates, W x + b, is one product over all places and made outside; what is
here is the recurrence. Gradients of its weight are one product, too, after the way back in time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.ops import native, plain
from sigma.ops.dispatch import kernel_backend
from sigma.ops.registry import register
from sigma.ops.rows import Rows, typed

STEP = 2**15  # places whose states are copied at a time on the CPU


def _bytes_of_row(gates: Tensor):  # type: ignore[no-untyped-def]
    return lambda length: 4 * length * gates.shape[1] * gates.element_size()


def gru_rows(
    gates: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, longest: int
) -> tuple[Tensor, Tensor]:
    """States (T, G), and r, z, n and U_n h + b_n side by side, (T, 4 G), for the gradient.

    ``blocked`` computes the latter again, and has the gates there and zeros beside them.
    """
    backend = kernel_backend("auto", gates)
    with torch.autocast(gates.device.type, enabled=False):
        if backend == "triton":
            from sigma.ops import triton_gru

            return triton_gru.forward(gates.contiguous(), weight, bias, offsets, longest)
        if backend == "cpu":
            return native.gru_forward(gates, weight, bias, offsets)
        size = weight.shape[1]
        out = gates.new_zeros(gates.shape[0], size)
        blocks = plain.blocks_of(offsets, _bytes_of_row(gates))
        states = plain.by_blocks(plain.gru, blocks, out, [gates], [weight, bias])
        return states, F.pad(gates, (0, size))


def _shape(gates, weight, bias, offsets, longest):  # type: ignore[no-untyped-def]
    size = weight.shape[1]
    return gates.new_empty(gates.shape[0], size), gates.new_empty(gates.shape[0], 4 * size)


def gru_rows_backward(
    grad: Tensor, saved: Tensor, states: Tensor, weight: Tensor, bias: Tensor,
    offsets: Tensor, longest: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of gates, weight and bias."""
    backend, size = kernel_backend("auto", states), weight.shape[1]
    ghidden: Tensor | None
    with torch.autocast(states.device.type, enabled=False):
        if backend == "triton":
            from sigma.ops import triton_gru

            ggates, ghidden = triton_gru.backward(
                grad.contiguous(), saved, states, weight, offsets, longest
            )
        elif backend == "cpu":
            ggates, ghidden = native.gru_backward(grad, saved, states, weight, offsets, False)
        else:
            gates = saved[:, : 3 * size]
            blocks = plain.blocks_of(offsets, _bytes_of_row(gates))
            (gx,), (gweight, gbias) = plain.gradients_by_blocks(
                plain.gru, blocks, grad, [gates], [weight, bias]
            )
            assert gx is not None
            return gx, gweight, gbias
        # What is pushed onto U h + b: of r and z as onto the gates, of n that times r.
        pushed, of_n = ggates[:, : 2 * size], ggates[:, 2 * size :]
        gweight, gbias = torch.zeros_like(weight), torch.zeros_like(weight[:, 0])
        gbias[: 2 * size] = pushed.sum(0)
        places = torch.arange(states.shape[0], device=states.device)
        first = offsets[Rows(offsets, longest).row_of(places)] == places
        step = STEP if states.device.type == "cpu" else max(states.shape[0], 1)
        for i in range(0, states.shape[0], step):
            here = slice(i, i + step)
            onto_n = of_n[here] * saved[here, :size] if ghidden is None else ghidden[here]
            gbias[2 * size :] += onto_n.sum(0)
            # The state before each; a row's first has none. Behind the last row nothing is pushed.
            before = states[here].roll(1, 0)
            if i:
                before[0] = states[i - 1]
            before.masked_fill_(first[here, None], 0)
            gweight[: 2 * size].addmm_(pushed[here].t(), before)
            gweight[2 * size :].addmm_(onto_n.t(), before)
        return ggates, gweight, gbias


def _backward_shapes(grad, saved, states, weight, bias, offsets, longest):  # type: ignore[no-untyped-def]
    gates = saved.new_empty(saved.shape[0], weight.shape[0])
    return gates, torch.empty_like(weight), torch.empty_like(bias)


gru_backward_op = register(gru_rows_backward, _backward_shapes)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, weight, bias, offsets, ctx.longest = inputs
    states, saved = output
    ctx.mark_non_differentiable(saved)
    ctx.save_for_backward(saved, states, weight, bias, offsets)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    *tensors, offsets = ctx.saved_tensors
    grads = gru_backward_op(grad, *tensors, offsets, ctx.longest)
    return (*grads, None, None)


gru_op = register(gru_rows, _shape, _save, _backward)


def gru(gates: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
    """Gated recurrent unit of each row; equations as ``reference.gru``.

    Args:
        gates: (T, 3 G) the inputs' part W x + b, of r, z and n side by side.
        weight: (3 G, G) U.
        bias: (3 G,) b, or None for none.
        rows: of the packed batch.

    Returns:
        h (T, G) in the type of ``gates``; zeros behind the last row.
    """
    exact = torch.promote_types(gates.dtype, weight.dtype)
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    states, _ = gru_op(
        typed(gates, exact), typed(weight, exact), typed(bias, exact), rows.offsets, rows.longest
    )
    return typed(states, gates.dtype)
