"""The CPU's kernels: C, built once by the machine's own compiler, called through ctypes.

Plain functions on CPU tensors of float32 or float64, without autograd; equations, shapes and the
meaning of ``offsets`` as in ``sigma.ops.reference``. Places behind the last row are not read, and
outputs and gradients there are zero. Results do not depend on the number of threads.

Symbols: T places, B rows, M queries, H heads.
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

import torch
from torch import Tensor

log = logging.getLogger(__name__)

PARTS = 64  # as in c/common.h: parts of a batch whose sums are added here


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The compiled kernels, built on first use (some seconds); None where they cannot be.

    The file is kept in the user's cache folder under a key of sources, flags and processor.
    OpenMP's functions are left to be found in the runtime PyTorch has loaded, so that both share
    one set of threads.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None or platform.system() != "Linux":
        return None
    folder = Path(__file__).with_name("c")
    flags = ["-O3", "-march=native", "-fopenmp", "-fPIC"]
    if platform.machine() == "x86_64":
        flags.append("-mprefer-vector-width=512")
    try:
        sources = [path.read_bytes() for path in sorted(folder.iterdir())]
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        processor = "".join(line for line in lines if line.startswith(("flags", "Features")))
        parts = repr((sources, compiler, flags, processor))
        key = hashlib.sha256(parts.encode()).hexdigest()[:16]
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sigma-rec"
        library = cache / f"kernels-{key}.so"
        if not library.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as work:
                objects, built = Path(work) / "kernels.o", Path(work) / "kernels.so"
                for command in (
                    [compiler, *flags, "-c", str(folder / "kernels.c"), "-o", str(objects)],
                    [compiler, "-shared", str(objects), "-o", str(built), "-lm"],
                ):
                    subprocess.run(command, check=True, capture_output=True, timeout=120)
                os.replace(built, library)
        # RTLD_NOW: a missing OpenMP runtime shows here, not in the middle of training.
        return ctypes.CDLL(str(library), mode=os.RTLD_NOW)
    except (OSError, subprocess.SubprocessError) as error:
        log.info("no native CPU kernels (%s); using PyTorch's", error)
        return None


def _call(name: str, dtype: torch.dtype, *values: Tensor | int | float | None) -> None:
    """A kernel for ``dtype``: tensors as pointers, then the number of threads."""
    assert dtype in (torch.float32, torch.float64)
    arguments: list[ctypes.c_void_p | ctypes.c_long | ctypes.c_double] = []
    for value in values:
        if isinstance(value, int):
            arguments.append(ctypes.c_long(value))
        elif isinstance(value, float):
            arguments.append(ctypes.c_double(value))
        else:
            arguments.append(ctypes.c_void_p(None if value is None else value.data_ptr()))
    function = getattr(
        native_library(), f"{name}_{'float' if dtype == torch.float32 else 'double'}"
    )
    function.restype = None
    function(*arguments, ctypes.c_int(torch.get_num_threads()))


def _solid(*tensors: Tensor) -> list[Tensor]:
    return [x.contiguous() for x in tensors]


def scan_forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor,
    offsets: Tensor,
) -> Tensor:
    """``selective_scan`` of the reference: y (T, d)."""
    u, dt, A, B, C, D, dt_bias, offsets = _solid(u, dt, A, B, C, D, dt_bias, offsets)
    z = None if z is None else z.contiguous()
    y = torch.empty_like(u)
    sizes = (len(u), len(offsets) - 1, *A.shape)
    _call("scan_forward", u.dtype, *sizes, offsets, u, dt, A, B, C, D, z, dt_bias, y)
    return y


def scan_backward(
    gy: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor,
    offsets: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of u, dt, A, B, C, D, z and dt_bias from that of y."""
    gy, u, dt, A, B, C, D, dt_bias, offsets = _solid(gy, u, dt, A, B, C, D, dt_bias, offsets)
    z = None if z is None else z.contiguous()
    gu, gdt, gB, gC = (torch.empty_like(x) for x in (u, dt, B, C))
    gz = None if z is None else torch.empty_like(z)
    rows = len(offsets) - 1
    parts = min(rows, PARTS)
    gA, gD, gbias = (x.new_empty(parts, *x.shape) for x in (A, D, dt_bias))
    _call(
        "scan_backward",
        u.dtype,
        len(u),
        rows,
        *A.shape,
        offsets,
        u,
        dt,
        A,
        B,
        C,
        D,
        z,
        dt_bias,
        gy,
        gu,
        gdt,
        gA,
        gB,
        gC,
        gD,
        gz,
        gbias,
    )
    return gu, gdt, gA.sum(0), gB, gC, gD.sum(0), gz, gbias.sum(0)


def _columns(x: Tensor) -> Tensor:
    """(T, d) whose channels lie side by side; columns of a wider matrix are taken as they are."""
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, silu: bool) -> Tensor:
    """``causal_conv`` of the reference: y (T, d). Of x only the channels must lie side by side."""
    x = _columns(x)
    weight, bias, offsets = _solid(weight, bias, offsets)
    y = x.new_empty(x.shape)
    sizes = (len(x), len(offsets) - 1, *weight.shape)
    _call("conv_forward", x.dtype, *sizes, offsets, x, x.stride(0), weight, bias, int(silu), y)
    return y


def conv_backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias from that of y."""
    x = _columns(x)
    gy, weight, bias, offsets = _solid(gy, weight, bias, offsets)
    gx, rows, (d, k) = x.new_empty(x.shape), len(offsets) - 1, weight.shape
    sums = weight.new_empty(min(rows, PARTS), d, k + 1)
    _call(
        "conv_backward",
        x.dtype,
        len(x),
        rows,
        d,
        k,
        offsets,
        x,
        x.stride(0),
        weight,
        bias,
        int(silu),
        gy,
        gx,
        sums,
    )
    total = sums.sum(0)
    return gx, total[:, :k].contiguous(), total[:, k].contiguous()


def gru_forward(
    gates: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """``gru`` of the reference.

    Returns:
        the states (T, G), and what backward needs, (T, 4 G): r, z, n and U_n h_{t-1} + b_n side by
        side.
    """
    gates, weight, bias, offsets = _solid(gates, weight, bias, offsets)
    size = weight.shape[1]
    states = gates.new_empty(len(gates), size)
    saved = gates.new_empty(len(gates), 4 * size)
    sizes = (len(gates), len(offsets) - 1, size)
    _call("gru_forward", gates.dtype, *sizes, offsets, gates, weight, bias, states, saved)
    return states, saved


def gru_backward(
    gstates: Tensor,
    saved: Tensor,
    states: Tensor,
    weight: Tensor,
    offsets: Tensor,
    hidden: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Gradients, from that of the states, of what the gates' functions are of.

    Returns:
        of the pre-activations of r, z and n, (T, 3 G), which is the gradient of ``gates``; and of
        U_n h_{t-1} + b_n, (T, G). With the first 2 G columns of the former it is the gradient of
        U h_{t-1} + b, of which those of weight and bias are one matrix product and one sum. None
        without ``hidden``: it is the gradient of n's pre-activation times r.
    """
    gstates, saved, states, weight, offsets = _solid(gstates, saved, states, weight, offsets)
    size = weight.shape[1]
    ggates = states.new_empty(len(states), 3 * size)
    ghidden = torch.empty_like(states) if hidden else None
    sizes = (len(states), len(offsets) - 1, size)
    _call(
        "gru_backward",
        states.dtype,
        *sizes,
        offsets,
        gstates,
        saved,
        states,
        weight,
        ggates,
        ghidden,
    )
    return ggates, ghidden


def _dropout(dropout: float, seed: int) -> tuple[int, float, int]:
    """What the kernels ask: steps of 2^-16 dropped, the factor of the rest, and 64 bits of seed."""
    steps = 2**16 if dropout >= 1 else min(round(dropout * 2**16), 2**16 - 1)
    return steps, 1 / (1 - steps / 2**16) if steps < 2**16 else 0.0, seed & (2**64 - 1)


def attend_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    query_offsets: Tensor,
    places: Tensor,
    causal: bool,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """``attend`` of the reference, with dropout of the weights.

    Args:
        q: (M, H, d).
        k: (T, H, d).
        v: (T, H, d).
        offsets: (B + 1,) of the rows.
        query_offsets: (B + 1,), row b asks the queries query_offsets[b] … query_offsets[b + 1] - 1.
        places: (M,) of the queries, ascending.
        causal: a query sees its own position and those before it, otherwise its whole row.
        dropout: rounded to a multiple of 2^-16.
        seed: with head, query and key it decides what is dropped.

    Returns:
        (M, H, d), and the logarithm of the softmax's denominator, (M, H). Both are zero from
        query_offsets[B] on.
    """
    q, k, v, offsets, query_offsets, places = _solid(q, k, v, offsets, query_offsets, places)
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2])
    _call(
        "attend_forward",
        q.dtype,
        len(q),
        len(offsets) - 1,
        *q.shape[1:],
        offsets,
        q,
        k,
        v,
        query_offsets,
        places,
        int(causal),
        *_dropout(dropout, seed),
        out,
        lse,
    )
    return out, lse


def attend_backward(
    gout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    query_offsets: Tensor,
    places: Tensor,
    causal: bool,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of ``out``; other arguments as in ``attend_forward``."""
    gout, q, k, v, out, lse = _solid(gout, q, k, v, out, lse)
    offsets, query_offsets, places = _solid(offsets, query_offsets, places)
    gq, gk, gv = (torch.empty_like(x) for x in (q, k, v))
    _call(
        "attend_backward",
        q.dtype,
        len(k),
        len(q),
        len(offsets) - 1,
        *q.shape[1:],
        offsets,
        gout,
        q,
        k,
        v,
        out,
        lse,
        query_offsets,
        places,
        int(causal),
        *_dropout(dropout, seed),
        gq,
        gk,
        gv,
    )
    return gq, gk, gv
