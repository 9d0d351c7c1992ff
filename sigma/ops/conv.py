"""The causal depthwise convolution on packed rows, registered with PyTorch."""

import functools
import importlib.util

import torch
from torch import Tensor

from sigma.ops import native, plain
from sigma.ops.dispatch import kernel_backend
from sigma.ops.registry import register
from sigma.ops.rows import Rows, typed


def causal_conv_rows(
    x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, longest: int, silu: bool
) -> Tensor:
    """See ``causal_conv``; all of one type, but for Triton."""
    backend = kernel_backend("auto", x)
    with torch.autocast(x.device.type, enabled=False):
        if backend == "triton":
            from sigma.ops import triton_conv

            return triton_conv.forward(x, weight, bias, offsets, longest, silu)
        if backend == "cpu":
            return native.conv_forward(x, weight, bias, offsets, silu)
        return plain.conv(x, weight, bias, offsets, silu)


def _shape(x, weight, bias, offsets, longest, silu):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


def causal_conv_rows_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, longest: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    backend = kernel_backend("auto", x)
    with torch.autocast(x.device.type, enabled=False):
        if backend == "triton":
            from sigma.ops import triton_conv

            return triton_conv.backward(grad, x, weight, bias, offsets, longest, silu)
        if backend == "cpu":
            return native.conv_backward(grad, x, weight, bias, offsets, silu)

        def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return plain.conv(x, weight, bias, offsets, silu)

        y, pull = plain.pullback(function, x, weight, bias)
        gx, gweight, gbias = pull(grad.to(y.dtype))
        return gx.contiguous(), gweight.contiguous(), gbias.contiguous()


def _backward_shapes(grad, x, weight, bias, offsets, longest, silu):  # type: ignore[no-untyped-def]
    return tuple(t.new_empty(t.shape) for t in (x, weight, bias))


conv_backward_op = register(causal_conv_rows_backward, _backward_shapes)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.longest, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    grads = conv_backward_op(grad, *ctx.saved_tensors, ctx.longest, ctx.silu)
    return (*grads, None, None, None)


conv_op = register(causal_conv_rows, _shape, _save, _backward)


@functools.cache
def has_causal_conv1d() -> bool:
    """Whether the package causal-conv1d can be imported."""
    if importlib.util.find_spec("causal_conv1d") is None:
        return False
    try:
        from causal_conv1d import causal_conv1d_fn  # noqa: F401
    except Exception:  # a build for another CUDA or PyTorch fails in many ways
        return False
    return True


def _causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, rows: Rows, silu: bool) -> Tensor:
    """By causal-conv1d, which tells rows apart by ``seq_idx``; channels last, (1, d, T)."""
    from causal_conv1d import causal_conv1d_fn

    size = x.shape[0]
    number = torch.searchsorted(
        rows.offsets, torch.arange(size, device=x.device), right=True
    ).int()[None]  # fmt: skip
    y = causal_conv1d_fn(
        x.contiguous().t()[None], weight.to(x.dtype), bias.to(x.dtype), seq_idx=number,
        activation="silu" if silu else None,
    )  # fmt: skip
    return y[0].t()


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, rows: Rows, silu: bool = False, backend: str = "auto"
) -> Tensor:
    """Causal depthwise convolution within each row; equations as ``reference.causal_conv``.

    Args:
        x: (T, d).
        weight: (d, k); its last tap meets the current position.
        bias: (d,).
        rows: of the packed batch.
        silu: SiLU of the result.
        backend: ``mamba_ssm`` takes causal-conv1d where it is installed.

    Returns:
        (T, d) in the type of ``x``; zeros behind the last row.
    """
    if backend == "mamba_ssm" and x.is_cuda and has_causal_conv1d():
        return _causal_conv1d(x, weight, bias, rows, silu)
    exact = torch.promote_types(x.dtype, weight.dtype)
    result = x.dtype
    if x.device.type != "cuda":  # Triton reads half precision as it is
        x = typed(x, exact)
    y = conv_op(x, typed(weight, exact), typed(bias, exact), rows.offsets, rows.longest, silu)
    return typed(y, result)
