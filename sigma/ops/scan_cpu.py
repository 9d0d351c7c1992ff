"""CPU backends of the selective scan.

``blocked``: PyTorch alone; rows are taken in blocks, and backward recomputes each block's states,
so the (B, L, d, N) tensor of the whole batch never exists.
``cpu``: the C kernel beside this file, built once by the machine's own compiler.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sigma.ops.reference import selective_scan_reference

log = logging.getLogger(__name__)

# Rows are blocked so that the states of one block, over all positions, take about this much.
BLOCK_BYTES = 32 * 2**20
KERNEL_ROWS = 32  # ROWS in scan_kernel.c


class BlockedScan(torch.autograd.Function):
    """The reference, block of rows by block of rows; arguments as ``selective_scan_reference``."""

    @staticmethod
    def _rows(u: Tensor, A: Tensor) -> int:
        return max(1, BLOCK_BYTES // (u.shape[1] * A.numel() * u.element_size()))

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                z: Tensor | None, dt_bias: Tensor) -> Tensor:  # fmt: skip
        ctx.save_for_backward(u, dt, A, B, C, D, z, dt_bias)
        n = BlockedScan._rows(u, A)
        return torch.cat([
            selective_scan_reference(
                u[i : i + n], dt[i : i + n], A, B[i : i + n], C[i : i + n], D,
                None if z is None else z[i : i + n], dt_bias,
            )
            for i in range(0, len(u), n)
        ])  # fmt: skip

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, A, B, C, D, z, dt_bias = ctx.saved_tensors
        rowwise = [u, dt, B, C] + ([] if z is None else [z])
        shared = [A, D, dt_bias]
        row_grads = [torch.empty_like(x) for x in rowwise]
        shared_grads = [torch.zeros_like(x) for x in shared]
        n = BlockedScan._rows(u, A)
        for i in range(0, len(u), n):
            part = [x[i : i + n].detach().requires_grad_() for x in rowwise]
            a, d, bias = (x.detach().requires_grad_() for x in shared)
            with torch.enable_grad():
                y = selective_scan_reference(
                    part[0], part[1], a, part[2], part[3], d, None if z is None else part[4], bias
                )
                got = torch.autograd.grad(y, [*part, a, d, bias], grad[i : i + n])
            for out, g in zip(row_grads, got, strict=False):
                out[i : i + n] = g
            for total, g in zip(shared_grads, got[len(part) :], strict=True):
                total += g
        gu, gdt, gB, gC = row_grads[:4]
        gz = None if z is None else row_grads[4]
        gA, gD, gbias = shared_grads
        return gu, gdt, gA, gB, gC, gD, gz, gbias


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The compiled kernel, built on first use (about two seconds); None where it cannot be.

    The file is kept in the user's cache folder under a key of source, flags and processor.
    OpenMP's functions are left to be found in the runtime PyTorch has loaded, so that both share
    one set of threads.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None or platform.system() != "Linux":
        return None
    source = Path(__file__).with_name("scan_kernel.c")
    flags = ["-O3", "-march=native", "-fopenmp", "-fPIC"]
    if platform.machine() == "x86_64":
        flags.append("-mprefer-vector-width=512")
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        processor = "".join(line for line in lines if line.startswith(("flags", "Features")))
        key = hashlib.sha256(
            source.read_bytes() + repr((compiler, flags, processor)).encode()
        ).hexdigest()[:16]
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sigma-rec"
        library = cache / f"scan-{key}.so"
        if not library.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                objects, built = Path(folder) / "scan.o", Path(folder) / "scan.so"
                for command in (
                    [compiler, *flags, "-c", str(source), "-o", str(objects)],
                    [compiler, "-shared", str(objects), "-o", str(built), "-lm"],
                ):
                    subprocess.run(command, check=True, capture_output=True, timeout=120)
                os.replace(built, library)
        # RTLD_NOW: a missing OpenMP runtime shows here, not in the middle of training.
        return ctypes.CDLL(str(library), mode=os.RTLD_NOW)
    except (OSError, subprocess.SubprocessError) as error:
        log.info("no native CPU scan (%s); using PyTorch's", error)
        return None


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


class NativeScan(torch.autograd.Function):
    """The C kernel; arguments as ``selective_scan_reference``, float32 or float64."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                z: Tensor | None, dt_bias: Tensor) -> Tensor:  # fmt: skip
        u = u.contiguous()
        rest = [None if x is None else x.contiguous() for x in (dt, A, B, C, D, z, dt_bias)]
        inputs = [u, *rest]
        ctx.save_for_backward(*inputs)
        y = torch.empty_like(u)
        NativeScan._call("forward", inputs, [y])
        return y

    @staticmethod
    def _call(which: str, inputs: list[Tensor | None], outputs: list[Tensor | None]) -> None:
        u, A = inputs[0], inputs[2]
        assert u is not None
        assert A is not None
        library = native_library()
        real = "float" if u.dtype == torch.float32 else "double"
        function = getattr(library, f"scan_{which}_{real}")
        sizes = [ctypes.c_long(n) for n in (*u.shape, A.shape[1])]
        function(*sizes, *map(_pointer, inputs), *map(_pointer, outputs), torch.get_num_threads())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = list(ctx.saved_tensors)
        u, dt, A, B, C, D, z, _ = inputs
        blocks = -(-len(u) // KERNEL_ROWS)
        gu, gdt = torch.empty_like(u), torch.empty_like(dt)
        gA = A.new_zeros(blocks, *A.shape)
        gD, gbias = D.new_zeros(blocks, *D.shape), D.new_zeros(blocks, *D.shape)
        gB, gC = torch.zeros_like(B), torch.zeros_like(C)
        gz = None if z is None else torch.empty_like(z)
        NativeScan._call(
            "backward", [*inputs, grad.contiguous()], [gu, gdt, gA, gB, gC, gD, gz, gbias]
        )
        return gu, gdt, gA.sum(0), gB, gC, gD.sum(0), gz, gbias.sum(0)
