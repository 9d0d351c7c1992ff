"""The selective scan on packed rows (Mamba, Gu & Dao 2023), registered with PyTorch."""

import torch
from torch import Tensor

from sigma.ops import native, plain, reference
from sigma.ops.dispatch import choose_backend, has_mamba_ssm, has_triton, kernel_backend
from sigma.ops.moves import packed, padded
from sigma.ops.registry import register
from sigma.ops.rows import Rows, typed


def _bytes_of_row(A: Tensor):  # type: ignore[no-untyped-def]
    return lambda length: length * A.numel() * A.element_size()


def selective_scan_rows(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None,
    dt_bias: Tensor, offsets: Tensor, longest: int, backend: str,
) -> Tensor:  # fmt: skip
    """See ``selective_scan``; all of one type, but for Triton."""
    backend = kernel_backend(backend, u)
    with torch.autocast(u.device.type, enabled=False):
        if backend == "triton":
            from sigma.ops import triton_scan

            return triton_scan.forward(u, dt, A, B, C, D, z, dt_bias, offsets, longest)
        if backend == "cpu":
            return native.scan_forward(u, dt, A, B, C, D, z, dt_bias, offsets)
        if backend == "reference":
            return reference.selective_scan(u, dt, A, B, C, D, z, dt_bias, offsets)
        blocks = plain.blocks_of(offsets, _bytes_of_row(A))
        out = torch.zeros_like(u, memory_format=torch.contiguous_format)
        return plain.by_blocks(plain.scan, blocks, out, [u, dt, B, C, z], [A, D, dt_bias])


def _shape(u, dt, A, B, C, D, z, dt_bias, offsets, longest, backend):  # type: ignore[no-untyped-def]
    return u.new_empty(u.shape)


def selective_scan_rows_backward(
    grad: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
    z: Tensor | None, dt_bias: Tensor, offsets: Tensor, longest: int, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of u, dt, A, B, C, D, z (empty without one) and dt_bias."""
    backend = kernel_backend(backend, u)
    with torch.autocast(u.device.type, enabled=False):
        grads: tuple[Tensor | None, ...]
        if backend == "triton":
            from sigma.ops import triton_scan

            grads = triton_scan.backward(grad, u, dt, A, B, C, D, z, dt_bias, offsets, longest)
        elif backend == "cpu":
            grads = native.scan_backward(grad, u, dt, A, B, C, D, z, dt_bias, offsets)
        else:
            blocks = plain.blocks_of(offsets, _bytes_of_row(A))
            values, shared = [u, dt, B, C, z], [A, D, dt_bias]
            rowwise, across = plain.gradients_by_blocks(plain.scan, blocks, grad, values, shared)
            grads = *rowwise[:2], across[0], *rowwise[2:4], across[1], rowwise[4], across[2]
    gu, gdt, gA, gB, gC, gD, gz, gbias = (u.new_empty(0) if g is None else g for g in grads)
    return gu, gdt, gA, gB, gC, gD, gz, gbias


def _backward_shapes(grad, u, dt, A, B, C, D, z, dt_bias, offsets, longest, backend):  # type: ignore[no-untyped-def]
    shaped = [x.new_empty(x.shape) for x in (u, dt, A, B, C, D)]
    return (
        *shaped,
        u.new_empty(0) if z is None else z.new_empty(z.shape),
        torch.empty_like(dt_bias),
    )


scan_backward_op = register(selective_scan_rows_backward, _backward_shapes)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.longest, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    tensors = ctx.saved_tensors
    *grads, gz, gbias = scan_backward_op(grad, *tensors, ctx.longest, ctx.backend)
    return (*grads, None if tensors[6] is None else gz, gbias, None, None, None)


scan_op = register(selective_scan_rows, _shape, _save, _backward)


def _mamba_ssm(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None,
    dt_bias: Tensor, rows: Rows,
) -> Tensor:  # fmt: skip
    """By mamba-ssm, which knows no packed rows: on rows padded to the longest."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def wide(x: Tensor) -> Tensor:  # one type for all but A, D and the bias, and positions last
        return padded(x.to(u.dtype), rows, rows.longest).transpose(1, 2).contiguous()

    gate = None if z is None else wide(z)
    shared = (x.float() for x in (A, D, dt_bias))
    A, D, dt_bias = shared
    with torch.autocast(u.device.type, enabled=False):
        y = selective_scan_fn(
            wide(u), wide(dt), A, wide(B), wide(C), D, gate, dt_bias, delta_softplus=True
        )
    return packed(y.transpose(1, 2), rows, u.shape[0])


@torch.compiler.assume_constant_result
def _is_detour(backend: str, device: str) -> bool:
    """Whether the scan goes to mamba-ssm."""
    if backend == "auto":
        return device == "cuda" and not has_triton() and has_mamba_ssm()
    if backend == "mamba_ssm":
        choose_backend(backend, torch.device(device))
    return backend == "mamba_ssm"


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor,
    rows: Rows,
    backend: str = "auto",
) -> Tensor:
    """Selective scan of each row; equations and shapes as ``reference.selective_scan``.

    Inputs of lower precision are computed in float32, as the state must be. Kernels for CUDA know
    no float64; ``blocked`` takes their place.

    Args:
        u: (T, d) input.
        dt: (T, d) raw step size.
        A: (d, N), negative.
        B: (T, N).
        C: (T, N).
        D: (d,) skip.
        z: (T, d) gate, or None for no gate.
        dt_bias: (d,).
        rows: of the packed batch.
        backend: see ``choose_backend``.

    Returns:
        y (T, d) in the type of ``u``; zeros behind the last row.

    Raises:
        UserError: see ``choose_backend``.
    """
    if _is_detour(backend, u.device.type):
        return _mamba_ssm(u, dt, A, B, C, D, z, dt_bias, rows)
    exact = torch.promote_types(u.dtype, A.dtype)
    A, D, dt_bias = (typed(x, exact) for x in (A, D, dt_bias))
    result = u.dtype
    if u.device.type != "cuda":  # Triton reads half precision as it is
        u, dt, B, C = (typed(x, exact) for x in (u, dt, B, C))
        z = None if z is None else typed(z, exact)
    y = scan_op(u, dt, A, B, C, D, z, dt_bias, rows.offsets, rows.longest, backend)
    return typed(y, result)
