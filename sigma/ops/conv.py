"""The causal depthwise convolution on packed rows.

    y_t = bias + Σ_s weight[:, k - 1 - s] ⊙ x_{t-s},  s = 0 … k - 1, x before the row's start 0

and SiLU of it where asked for.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.ops import native
from sigma.ops.blocked import pullback
from sigma.ops.inputs import Conv, Gradients
from sigma.ops.moves import whole_rows
from sigma.ops.registry import Kernels, Operation
from sigma.ops.rows import Rows, typed
from sigma.ops.stream import Stream


def shapes(x: Conv) -> tuple[Tensor, Tensor]:
    return x.x.new_empty(x.x.shape), x.x.new_empty(0)


def sides(x: Conv) -> Conv:
    """With channels side by side; columns of a wider matrix are taken as they are."""
    v = x.x if x.x.stride(1) == 1 and x.x.stride(0) >= x.x.shape[1] else x.x.contiguous()
    return Conv(v, x.weight.contiguous(), x.bias.contiguous(), x.silu)


def cpu_forward(x: Conv, rows: Rows) -> tuple[Tensor, Tensor]:
    x = sides(x)
    y, nothing = shapes(x)
    native.call("conv_forward", y.dtype, rows, len(y), *x.weight.shape, x.x.stride(0), *x, y)
    return y, nothing


def cpu_backward(grad: Tensor, y: Tensor, saved: Tensor, x: Conv, rows: Rows) -> Gradients:
    x, grad = sides(x), grad.contiguous()
    gx, (gweight, gbias) = grad.new_empty(grad.shape), native.parts_of(rows, x.weight, x.bias)
    sizes = len(y), *x.weight.shape, x.x.stride(0)
    native.call("conv_backward", y.dtype, rows, *sizes, *x, grad, gx, gweight, gbias)
    return gx, gweight.sum(0), gbias.sum(0)


def shifted_products(x: Conv, rows: Rows) -> Tensor:
    """By PyTorch alone, (T, d) -> (T, d)."""
    size, k = x.x.shape[0], x.weight.shape[1]
    places = torch.arange(size, device=x.x.device)
    position = places - rows.offsets[rows.row_of(places)]
    y = torch.addcmul(x.bias, x.x, x.weight[:, -1])
    for s in range(1, k):
        earlier = F.pad(x.x, (0, 0, s, 0))[:size].masked_fill((position < s)[:, None], 0)
        y = torch.addcmul(y, earlier, x.weight[:, k - 1 - s])
    y = F.silu(y) if x.silu else y
    return y.masked_fill((places >= rows.offsets[-1])[:, None], 0)


def blocked_forward(x: Conv, rows: Rows) -> tuple[Tensor, Tensor]:
    return shifted_products(x, rows), shapes(x)[1]


def blocked_backward(grad: Tensor, y: Tensor, saved: Tensor, x: Conv, rows: Rows) -> Gradients:
    def function(v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return shifted_products(Conv(v, weight, bias, x.silu), rows)

    _, pull = pullback(function, *x[:3])
    return tuple(g.contiguous() for g in pull(grad.to(y.dtype)))


conv_op = Operation(
    "causal_conv",
    Conv,
    3,
    shapes,
    {
        "cpu": Kernels(cpu_forward, cpu_backward),
        "triton": "sigma.ops.triton_conv",
        "blocked": Kernels(blocked_forward, blocked_backward),
    },
)


@functools.cache
def has_causal_conv1d() -> bool:
    """Whether the package causal-conv1d can be imported."""
    try:
        from causal_conv1d import causal_conv1d_fn  # noqa: F401
    except Exception:  # none, or a build for another CUDA or PyTorch, which fails in many ways
        return False
    return True


def causal_conv1d(x: Conv, rows: Rows) -> Tensor:
    """By the package, which knows rows by their numbers; channels last, (1, d, T)."""
    from causal_conv1d import causal_conv1d_fn

    places = torch.arange(len(x.x), device=x.x.device)
    numbers = torch.searchsorted(rows.offsets, places, right=True).int()[None]
    weight, bias = x.weight.to(x.x.dtype), x.bias.to(x.x.dtype)
    activation = "silu" if x.silu else None
    y: Tensor = causal_conv1d_fn(
        x.x.contiguous().t()[None], weight, bias, seq_idx=numbers, activation=activation
    )
    return y[0].t()


def conv_of_stream(x: Conv, rows: Stream) -> Tensor:
    """Of the next n places of each row; what they leave are the last k - 1 inputs."""
    before = x.weight.shape[1] - 1
    v = rows.window("causal_conv", x.x, before)  # (B, k - 1 + n, d)
    if rows.width == 1:  # less than the call of a kernel
        y = (v * x.weight.t()).sum(1) + x.bias
        return F.silu(y) if x.silu else y
    longer = whole_rows(len(v), v.shape[1], v.device)
    y = causal_conv(v.flatten(0, 1), x.weight, x.bias, longer, x.silu)
    return y.view_as(v)[:, before:].flatten(0, 1)


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, rows: Rows, silu: bool = False, backend: str = "auto"
) -> Tensor:
    """Causal depthwise convolution within each row.

    Args:
        x: and the next two, see ``inputs.Conv``.
        rows: of the packed batch.
        silu: SiLU of the result.
        backend: ``mamba_ssm`` takes causal-conv1d where it is installed.

    Returns:
        (T, d) in the type of ``x``; zeros behind the last row.
    """
    if isinstance(rows, Stream):
        return typed(conv_of_stream(Conv(x, weight, bias, silu), rows), x.dtype)
    if backend == "mamba_ssm" and x.is_cuda and has_causal_conv1d():
        return causal_conv1d(Conv(x, weight, bias, silu), rows)
    exact, result = torch.promote_types(x.dtype, weight.dtype), x.dtype
    if x.device.type != "cuda":  # Triton reads half precision as it is
        x = typed(x, exact)
    inputs = Conv(x, typed(weight, exact), typed(bias, exact), silu)
    return typed(conv_op(inputs, rows, "auto"), result)
