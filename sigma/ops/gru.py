"""The gated recurrent unit on packed rows, with PyTorch's order and place of the reset gate.

    r_t = σ(a_r + U_r h_{t-1} + b_r),  z_t = σ(a_z + U_z h_{t-1} + b_z)
    n_t = tanh(a_n + r_t ⊙ (U_n h_{t-1} + b_n)),  h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_{t-1},  h_{-1} = 0

The inputs' part of the gates, a = W x + b, is one product over all places and made outside; what is
here is the recurrence. Gradients of its weight are one product, too, after the way back in time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.ops import blocked, native
from sigma.ops.inputs import Gradients, Gru
from sigma.ops.registry import Kernels, Operation
from sigma.ops.rows import Rows, typed

STEP = 2**15  # places whose states are copied at a time on the CPU


def shapes(x: Gru) -> tuple[Tensor, Tensor]:
    """States (T, G), and r, z, n and U_n h + b_n side by side, (T, 4 G)."""
    places, size = x.gates.shape[0], x.weight.shape[1]
    return x.gates.new_empty(places, size), x.gates.new_empty(places, 4 * size)


def cpu_forward(x: Gru, rows: Rows) -> tuple[Tensor, Tensor]:
    x = Gru(*native.solid(*x))
    states, saved = shapes(x)
    native.call("gru_forward", states.dtype, rows, *states.shape, *x, states, saved)
    return states, saved


def cpu_backward(grad: Tensor, states: Tensor, saved: Tensor, x: Gru, rows: Rows) -> Gradients:
    ggates = x.gates.new_empty(x.gates.shape)
    inputs = native.solid(grad, saved, states, x.weight)
    native.call("gru_backward", states.dtype, rows, *states.shape, *inputs, ggates)
    return ggates, *weight_gradients(ggates, None, states, saved, x, rows)


def weight_gradients(
    ggates: Tensor, ghidden: Tensor | None, states: Tensor, saved: Tensor, x: Gru, rows: Rows
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias.

    Args:
        ggates: (T, 3 G), of the gates.
        ghidden: (T, G), of U_n h + b_n; None is that of n's gate times r.
        states: (T, G).
        saved: see ``shapes``.
        x: the inputs.
        rows: of the packed batch.
    """
    size = x.weight.shape[1]
    pushed, of_n = ggates[:, : 2 * size], ggates[:, 2 * size :]
    gweight, gbias = torch.zeros_like(x.weight), torch.zeros_like(x.bias)
    gbias[: 2 * size] = pushed.sum(0)
    places = torch.arange(states.shape[0], device=states.device)
    first = rows.offsets[rows.row_of(places)] == places
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
    return gweight, gbias


def gru_of_block(x: Gru) -> Tensor:
    """(n, L, 3 G) -> (n, L, G)."""
    h, hs = x.gates.new_zeros(len(x.gates), x.weight.shape[1]), []
    for a in x.gates.unbind(1):
        (ar, az, an), u = a.chunk(3, -1), F.linear(h, x.weight, x.bias)
        ur, uz, un = u.chunk(3, -1)
        z = torch.sigmoid(az + uz)
        h = (1 - z) * torch.tanh(an + torch.sigmoid(ar + ur) * un) + z * h
        hs.append(h)
    return torch.stack(hs, dim=1)


gru_op = Operation(
    "gru",
    Gru,
    3,
    shapes,
    {
        "cpu": Kernels(cpu_forward, cpu_backward),
        "triton": "sigma.ops.triton_gru",
        "blocked": blocked.kernels(
            gru_of_block,
            ("gates",),
            lambda x: 4 * x.gates.shape[1] * x.gates.element_size(),
            shapes,
        ),
    },
)


def gru(gates: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
    """Gated recurrent unit of each row.

    Args:
        gates: and the next two, see ``inputs.Gru``; a bias of None is none.
        rows: of the packed batch.

    Returns:
        h (T, G) in the type of ``gates``; zeros behind the last row.
    """
    exact = torch.promote_types(gates.dtype, weight.dtype)
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    inputs = Gru(*(typed(x, exact) for x in (gates, weight, bias)))
    return typed(gru_op(inputs, rows, "auto"), gates.dtype)
