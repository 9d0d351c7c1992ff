"""One function for the selective scan; the backend is chosen from the tensors or by name."""

import functools
import importlib.util
import os
import platform

import torch
from torch import Tensor, nn

from sigma.errors import UserError
from sigma.ops.reference import selective_scan_reference
from sigma.ops.scan_cpu import BlockedScan, NativeScan, native_library

BACKENDS = ("auto", "reference", "blocked", "cpu", "triton", "mamba_ssm")


@functools.cache
def _has_mamba_ssm() -> bool:
    if importlib.util.find_spec("mamba_ssm") is None:
        return False
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # noqa: F401
    except Exception:  # a build for another CUDA or PyTorch fails in many ways
        return False
    return True


@functools.cache
def _has_triton() -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        import sigma.ops.scan_triton  # noqa: F401

        if torch.cuda.is_available():
            from triton.runtime import driver

            # Builds Triton's driver, for which it needs a C compiler.
            driver.active.get_current_device()
    except Exception:  # as above
        return False
    return True


def choose_backend(name: str, device: torch.device) -> tuple[str, str]:
    """Resolve ``auto`` and check a named backend: ``(backend, reason)``.

    ``cpu`` is the C kernel, or ``blocked`` where no compiler is at hand to build it.

    Raises:
        UserError: unknown backend, or one that cannot run here.
    """
    if name not in BACKENDS:
        raise UserError(f"Unknown scan backend '{name}'; choose from {', '.join(BACKENDS)}.")
    if name == "auto":
        if device.type == "cuda":
            if _has_triton():
                return "triton", "the tensors are on CUDA, and Triton needs no toolkit"
            if _has_mamba_ssm():
                return "mamba_ssm", "the tensors are on CUDA, and Triton is not importable"
            return "blocked", "neither Triton nor mamba-ssm is importable"
        if device.type != "cpu":
            return "blocked", f"no kernel for {device.type}"
        name = "cpu"
    if name == "cpu":
        if device.type != "cpu":
            raise UserError(
                f"The scan backend cpu cannot run on {device.type}; use model.mamba.backend=auto."
            )
        if native_library() is None:
            system = platform.system()
            reason = (
                "no C compiler is at hand" if system == "Linux" else f"no C kernel for {system}"
            )
            return "blocked", reason
        return "cpu", "a C compiler is at hand"
    if name == "mamba_ssm" and (device.type != "cuda" or not _has_mamba_ssm()):
        raise UserError(
            "The scan backend mamba_ssm needs a CUDA device and the package mamba-ssm "
            "(pip install -e '.[cuda]'); use model.mamba.backend=auto."
        )
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if name == "triton" and not (_has_triton() and (device.type == "cuda" or interpreted)):
        raise UserError(
            "The scan backend triton needs a CUDA device and the package triton "
            "(pip install triton); use model.mamba.backend=auto."
        )
    return name, "asked for"


def backend_of(model: nn.Module, device: torch.device) -> tuple[str, str] | tuple[None, None]:
    """``choose_backend`` for the scan of a model that was built; None without a scan."""
    asked = next((m.backend for m in model.modules() if hasattr(m, "backend")), None)
    return (None, None) if asked is None else choose_backend(str(asked), device)


@torch.compiler.disable  # a kernel of its own: there is nothing in it to compile
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

    Inputs of lower precision are computed in float32, as the state must be. Kernels for CUDA know
    no float64; ``blocked`` takes their place.

    Raises:
        UserError: see ``choose_backend``.
    """
    if u.shape[1] == 0:
        return u
    backend, _ = choose_backend(backend, u.device)
    kind = torch.promote_types(u.dtype, A.dtype)
    if kind == torch.float64 and backend in ("triton", "mamba_ssm"):
        backend = "blocked"
    if backend == "mamba_ssm":
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        # One type for all but A, D and the bias, and positions last.
        u, dt, B, C = (x.to(u.dtype).transpose(1, 2).contiguous() for x in (u, dt, B, C))
        gate = None if z is None else z.to(u.dtype).transpose(1, 2).contiguous()
        A, D, dt_bias = (x.float() for x in (A, D, dt_bias))
        with torch.autocast(u.device.type, enabled=False):
            y = selective_scan_fn(u, dt, A, B, C, D, gate, dt_bias, delta_softplus=True)
        return y.transpose(1, 2)
    with torch.autocast(u.device.type, enabled=False):
        A, D, dt_bias = (x.to(kind) for x in (A, D, dt_bias))
        if backend == "triton":  # reads half precision as it is
            from sigma.ops.scan_triton import TritonScan

            return TritonScan.apply(u, dt, A, B, C, D, z, dt_bias)
        out_kind = u.dtype
        u, dt, B, C = (x.to(kind) for x in (u, dt, B, C))
        z = None if z is None else z.to(kind)
        if backend == "reference":
            y = selective_scan_reference(u, dt, A, B, C, D, z, dt_bias)
        elif backend == "cpu":
            y = NativeScan.apply(u, dt, A, B, C, D, z, dt_bias)
        else:
            y = BlockedScan.apply(u, dt, A, B, C, D, z, dt_bias)
    return y.to(out_kind)
