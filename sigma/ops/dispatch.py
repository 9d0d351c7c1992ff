"""Which backend an operation on packed rows runs on; chosen from the device, or by name.

``cpu`` is the C library, ``triton`` the kernels for CUDA, ``blocked`` PyTorch alone, ``reference``
the scan step by step, and ``mamba_ssm`` the package of that name for the scan: it knows no packed
rows and is given padded ones.
"""

import functools
import importlib.util
import os

import torch
from torch import nn

from sigma.errors import UserError, excerpt
from sigma.ops.native import native_library

BACKENDS = ("auto", "reference", "blocked", "cpu", "triton", "mamba_ssm")


@functools.cache
def mamba_ssm_lack() -> str | None:
    """Why mamba-ssm cannot be used; None where it is installed with its kernel.

    Since 2.3.2 it may be built without, and then fails only when it is called.
    """
    if importlib.util.find_spec("mamba_ssm") is None:
        return "it is not installed: pip install --no-build-isolation -e '.[cuda]'"
    again = "build it for the PyTorch that is here: pip install --no-build-isolation mamba-ssm"
    try:
        from mamba_ssm.ops import selective_scan_interface as interface
    except Exception as error:  # a build for another CUDA or PyTorch fails in many ways
        return f"{type(error).__name__}: {excerpt(error, 200)}; {again}"
    missing = getattr(interface, "selective_scan_cuda", None) is None
    return f"it was built without its Mamba-1 kernel; {again}" if missing else None


def has_mamba_ssm() -> bool:
    return mamba_ssm_lack() is None


@functools.cache
def has_triton() -> bool:
    """Whether Triton's kernels can be built here, for CUDA or its interpreter."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        import sigma.ops.triton_scan  # noqa: F401

        if torch.cuda.is_available():
            from triton.runtime import driver

            # Builds Triton's driver, for which it needs a C compiler.
            driver.active.get_current_device()
    except Exception:  # as above
        return False
    return True


def choose_backend(name: str, device: torch.device) -> tuple[str, str]:
    """Resolve ``auto`` and check a named backend: ``(backend, reason)``.

    ``cpu`` is the C library, or ``blocked`` where it cannot be built.

    Raises:
        UserError: unknown backend, or one that cannot run here.
    """
    if name not in BACKENDS:
        raise UserError(f"Unknown scan backend '{name}'; choose from {', '.join(BACKENDS)}.")
    on_cuda = device.type == "cuda"
    if name == "auto" and on_cuda:
        if has_triton():
            return "triton", "the tensors are on CUDA, and Triton needs no toolkit"
        if has_mamba_ssm():
            return "mamba_ssm", "the tensors are on CUDA, and Triton is not importable"
        return "blocked", "neither Triton nor mamba-ssm is importable"
    if name in ("auto", "cpu") and device.type == "cpu":
        library, reason = native_library()
        return "blocked" if library is None else "cpu", reason
    if name == "auto":
        return "blocked", f"no kernel for {device.type}"
    needs = None
    if name == "cpu":
        needs = "tensors on the CPU"
    if name == "mamba_ssm" and not (on_cuda and has_mamba_ssm()):
        lack = "which is not here" if not on_cuda else str(mamba_ssm_lack())
        needs = f"a CUDA device and the package mamba-ssm with its kernel ({lack})"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if name == "triton" and not ((on_cuda or interpreted) and has_triton()):
        needs = "a CUDA device and the package triton (pip install triton)"
    if needs is not None:
        raise UserError(f"The scan backend {name} needs {needs}; use backend=auto.")
    return name, "asked for"


def kernel_backend(name: str, x: torch.Tensor) -> str:
    """The backend of an operation that mamba-ssm does not have; float64 is not for Triton."""
    backend, _ = choose_backend("auto" if name == "mamba_ssm" else name, x.device)
    if backend == "mamba_ssm" or (backend == "triton" and x.dtype == torch.float64):
        return "blocked"
    return backend


def backend_of(model: nn.Module, device: torch.device) -> tuple[str, str] | tuple[None, None]:
    """``choose_backend`` for the scan of a model that was built; None without a scan."""
    name = next((m.backend for m in model.modules() if hasattr(m, "backend")), None)
    return (None, None) if name is None else choose_backend(str(name), device)


def capture_reason(model: nn.Module, device: torch.device) -> str | None:
    """Why a model's operations on packed rows cannot be captured in a CUDA graph; None if they can.

    PyTorch's operations take rows of like length together, for which they ask the device.
    """
    if any(p.dtype == torch.float64 for p in model.parameters()):
        return "float64 has no kernels here"
    for backend, reason in (choose_backend("auto", device), backend_of(model, device)):
        if backend not in (None, "triton", "mamba_ssm"):
            return f"its operations run on {backend}: {reason}"
    return None
