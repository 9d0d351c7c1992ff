"""The selective scan on packed rows (Mamba, Gu & Dao 2023, algorithm 2).

    Δ_t = softplus(dt_t + dt_bias)
    h_t = exp(Δ_t A) ⊙ h_{t-1} + Δ_t u_t B_t,    h_{-1} = 0 in each row
    y_t = (h_t C_t + D ⊙ u_t) ⊙ SiLU(z_t)

Symbols: T places, d channels, N states of a channel, t a position in its row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.ops import blocked, native, reference
from sigma.ops.dispatch import choose_backend, has_mamba_ssm, has_triton
from sigma.ops.inputs import Gradients, Scan
from sigma.ops.moves import packed, padded, whole_rows
from sigma.ops.registry import Kernels, Operation
from sigma.ops.rows import Rows, typed
from sigma.ops.stream import Stream

NO_STEP = -1000.0  # softplus of it is 0


def shapes(x: Scan) -> tuple[Tensor, Tensor]:
    return x.u.new_empty(x.u.shape), x.u.new_empty(0)


def cpu_forward(x: Scan, rows: Rows) -> tuple[Tensor, Tensor]:
    x = Scan(*native.solid(*x))
    y, nothing = shapes(x)
    native.call("scan_forward", y.dtype, rows, len(y), *x.A.shape, *x, y)
    return y, nothing


def cpu_backward(grad: Tensor, y: Tensor, saved: Tensor, x: Scan, rows: Rows) -> Gradients:
    grad, *inputs = native.solid(grad, *x)
    x = Scan(*inputs)
    gu, gdt, gB, gC = (torch.empty_like(v) for v in (x.u, x.dt, x.B, x.C))
    gz = None if x.z is None else torch.empty_like(x.z)
    gA, gD, gbias = native.parts_of(rows, x.A, x.D, x.dt_bias)
    grads = gu, gdt, gA, gB, gC, gD, gz, gbias
    native.call("scan_backward", y.dtype, rows, len(y), *x.A.shape, *x, grad, *grads)
    return gu, gdt, gA.sum(0), gB, gC, gD.sum(0), gz, gbias.sum(0)


def scan_of_block(x: Scan) -> Tensor:
    """(n, L, d) -> (n, L, d)."""
    delta = F.softplus(x.dt + x.dt_bias)
    h = torch.zeros(x.u.shape[0], *x.A.shape, dtype=x.A.dtype, device=x.u.device)
    ys = []
    for t in range(x.u.shape[1]):
        step = delta[:, t, :, None]
        h = torch.exp(step * x.A) * h + step * x.u[:, t, :, None] * x.B[:, t, None, :]
        ys.append((h * x.C[:, t, None, :]).sum(-1))
    y = torch.stack(ys, dim=1) + x.D * x.u
    return y if x.z is None else y * F.silu(x.z)


def reference_forward(x: Scan, rows: Rows) -> tuple[Tensor, Tensor]:
    return reference.selective_scan(x, rows.offsets), shapes(x)[1]


BLOCKED = blocked.kernels(
    scan_of_block, ("u", "dt", "B", "C", "z"), lambda x: x.A.numel() * x.A.element_size(), shapes
)
scan_op = Operation(
    "selective_scan",
    Scan,
    8,
    shapes,
    {
        "cpu": Kernels(cpu_forward, cpu_backward),
        "triton": "sigma.ops.triton_scan",
        "blocked": BLOCKED,
        "reference": Kernels(reference_forward, BLOCKED.backward),
    },
)


def mamba_ssm_scan(x: Scan, rows: Rows) -> Tensor:
    """By mamba-ssm, which knows no packed rows: on rows padded to the longest."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def wide(v: Tensor) -> Tensor:  # one type for all but A, D and the bias, and positions last
        return padded(v.to(x.u.dtype), rows, rows.longest).transpose(1, 2).contiguous()

    u, dt, B, C = (wide(v) for v in (x.u, x.dt, x.B, x.C))
    z = None if x.z is None else wide(x.z)
    A, D, dt_bias = (v.float() for v in (x.A, x.D, x.dt_bias))
    with torch.autocast(u.device.type, enabled=False):
        y = selective_scan_fn(u, dt, A, B, C, D, z, dt_bias, delta_softplus=True)
    return packed(y.transpose(1, 2), rows, len(x.u))


def scan_from(x: Scan, h: Tensor) -> tuple[Tensor, Tensor]:
    """y (B, n, d) and the states after it, from those before it, (B, d, N); without a gate."""
    delta = F.softplus(x.dt + x.dt_bias)
    driven, ys = delta * x.u, []
    for t in range(x.u.shape[1]):
        decay = (delta[:, t, :, None] * x.A).exp_()
        h = (decay * h).addcmul_(driven[:, t, :, None], x.B[:, t, None])
        ys.append((h @ x.C[:, t, :, None])[..., 0])
    return torch.stack(ys, dim=1) + x.D * x.u, h


def scan_from_start(x: Scan, backend: str) -> tuple[Tensor, Tensor]:
    """The same from a state of 0, by a backend, which returns no states.

    So they are read by N places more, where Δ = 0 and u = 0 leave them as they are, and each C
    holds a 1 for one of them.
    """
    size, number = x.u.shape[1], x.B.shape[-1]
    more = 0, 0, 0, number
    one = torch.eye(number, dtype=x.C.dtype, device=x.C.device).expand(len(x.C), -1, -1)
    C = torch.cat([x.C, one], dim=1)
    u, dt, B = F.pad(x.u, more), F.pad(x.dt, more, value=NO_STEP), F.pad(x.B, more)
    u, dt, B, C = (v.flatten(0, 1) for v in (u, dt, B, C))
    rows = whole_rows(len(x.u), size + number, u.device)
    y = selective_scan(u, dt, x.A, B, C, x.D, None, x.dt_bias, rows, backend)
    y = y.unflatten(0, (-1, size + number))
    return y[:, :size], y[:, size:].transpose(1, 2)


def scan_of_stream(x: Scan, rows: Stream, backend: str) -> Tensor:
    """Of the next n places of each row; what they leave is h."""
    u, dt, B, C = (rows.side_by_side(v) for v in (x.u, x.dt, x.B, x.C))
    block = Scan(u, dt, x.A, B, C, x.D, None, x.dt_bias)
    shape = len(u), *x.A.shape
    h = rows.before("selective_scan", *shape)
    if h is None and rows.width > 1:
        y, h = scan_from_start(block, backend)
    else:
        if x.A.stride(1) == 0:  # Mamba-2's, one for all states of a channel
            block = block._replace(A=x.A[:, :1])
        y, h = scan_from(block, x.A.new_zeros(shape) if h is None else h)
    rows.leave("selective_scan", h)
    y = y.flatten(0, 1)
    return y if x.z is None else y * F.silu(x.z)


@torch.compiler.assume_constant_result
def is_detour(backend: str, device: str) -> bool:
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
    """Selective scan of each row.

    Inputs of lower precision are computed in float32, as the state must be. Kernels for CUDA know
    no float64; ``blocked`` takes their place.

    Args:
        u: and the next seven, see ``inputs.Scan``.
        rows: of the packed batch.
        backend: see ``choose_backend``.

    Returns:
        y (T, d) in the type of ``u``; zeros behind the last row.

    Raises:
        UserError: see ``choose_backend``.
    """
    if not isinstance(rows, Stream) and is_detour(backend, u.device.type):
        return mamba_ssm_scan(Scan(u, dt, A, B, C, D, z, dt_bias), rows)
    exact, result = torch.promote_types(u.dtype, A.dtype), u.dtype
    A, D, dt_bias = (typed(x, exact) for x in (A, D, dt_bias))
    if u.device.type != "cuda" or isinstance(rows, Stream):  # Triton reads half precision as it is
        u, dt, B, C = (typed(x, exact) for x in (u, dt, B, C))
        z = None if z is None else typed(z, exact)
    inputs = Scan(u, dt, A, B, C, D, z, dt_bias)
    if isinstance(rows, Stream):
        return typed(scan_of_stream(inputs, rows, backend), result)
    return typed(scan_op(inputs, rows, backend), result)
