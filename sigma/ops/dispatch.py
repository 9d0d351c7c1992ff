"""One function for the selective scan; the backend is chosen from the tensors or by name."""

import functools
import importlib.util

import torch
from torch import Tensor

from sigma.errors import UserError
from sigma.ops.reference import selective_scan_reference
from sigma.ops.scan_cpu import BlockedScan, NativeScan, native_library

BACKENDS = ("auto", "reference", "blocked", "native", "mamba_ssm")


@functools.cache
def _has_mamba_ssm() -> bool:
    if importlib.util.find_spec("mamba_ssm") is None:
        return False
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # noqa: F401
    except Exception:  # a build for another CUDA or PyTorch fails in many ways
        return False
    return True


def choose_backend(name: str, device: torch.device) -> tuple[str, str]:
    """Resolve ``auto`` and check a named backend: ``(backend, reason)``.

    Raises:
        UserError: unknown backend, or one that cannot run here.
    """
    if name not in BACKENDS:
        raise UserError(f"Unknown scan backend '{name}'; choose from {', '.join(BACKENDS)}.")
    if name == "auto":
        if device.type == "cuda":
            if _has_mamba_ssm():
                return "mamba_ssm", "mamba-ssm is importable and the tensors are on CUDA"
            return "blocked", "mamba-ssm is not importable"
        if device.type == "cpu":
            if native_library() is not None:
                return "native", "a C compiler is at hand"
            return "blocked", "no C compiler is at hand"
        return "blocked", f"no kernel for {device.type}"
    if name == "mamba_ssm" and (device.type != "cuda" or not _has_mamba_ssm()):
        raise UserError(
            "The scan backend mamba_ssm needs a CUDA device and the package mamba-ssm "
            "(pip install 'sigma-rec[cuda]'); use model.mamba.backend=auto."
        )
    if name == "native" and (device.type != "cpu" or native_library() is None):
        raise UserError(
            "The scan backend native needs the CPU and a C compiler (cc on the PATH); "
            "use model.mamba.backend=auto."
        )
    return name, "asked for"


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Selective scan; equations, shapes and result as ``selective_scan_reference``.

    Inputs of lower precision are computed in float32, as the state must be.

    Raises:
        UserError: see ``choose_backend``.
    """
    backend, _ = choose_backend(backend, u.device)
    if backend == "mamba_ssm":
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        u, dt, B, C = (x.transpose(1, 2).contiguous() for x in (u, dt, B, C))
        gate = None if z is None else z.transpose(1, 2).contiguous()
        y = selective_scan_fn(u, dt, A, B, C, D, gate, dt_bias, delta_softplus=True)
        return y.transpose(1, 2)
    kind = torch.promote_types(u.dtype, A.dtype)
    out_kind, device_type = u.dtype, u.device.type
    with torch.autocast(device_type, enabled=False):
        u, dt, B, C = (x.to(kind) for x in (u, dt, B, C))
        z = None if z is None else z.to(kind)
        A, D, dt_bias = (x.to(kind) for x in (A, D, dt_bias))
        if backend == "reference":
            y = selective_scan_reference(u, dt, A, B, C, D, z, dt_bias)
        elif backend == "native":
            y = NativeScan.apply(u, dt, A, B, C, D, z, dt_bias)
        else:
            y = BlockedScan.apply(u, dt, A, B, C, D, z, dt_bias)
    return y.to(out_kind)
