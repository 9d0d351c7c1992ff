"""The CPU's kernels: C, built once by the machine's own compiler, called through ctypes.

They work on CPU tensors of float32 or float64. Places behind the last row are not read, and outputs
and gradients there are zero. Results do not depend on the number of threads.
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

from sigma.ops.rows import Rows

log = logging.getLogger(__name__)

FLAGS = ["-O3", "-march=native", "-fopenmp", "-fPIC"]
PARTS = 64  # as in c/common.h: parts of a batch whose sums are added here


def processor() -> str:
    """What the processor can do, as Linux lists it."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return "".join(line for line in lines if line.startswith(("flags", "Features")))


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
    folder, x86 = Path(__file__).with_name("c"), platform.machine() == "x86_64"
    flags = [*FLAGS, "-mprefer-vector-width=512"] if x86 else FLAGS
    try:
        sources = [path.read_bytes() for path in sorted(folder.iterdir())]
        key = hashlib.sha256(repr((sources, compiler, flags, processor())).encode()).hexdigest()
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sigma-rec"
        library = cache / f"kernels-{key[:16]}.so"
        if not library.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as work:
                objects, built = f"{work}/kernels.o", f"{work}/kernels.so"
                # Linked without -fopenmp, see above.
                for command in (
                    [compiler, *flags, "-c", str(folder / "kernels.c"), "-o", objects],
                    [compiler, "-shared", objects, "-o", built, "-lm"],
                ):
                    subprocess.run(command, check=True, capture_output=True, timeout=120)
                os.replace(built, library)
        # RTLD_NOW: a missing OpenMP runtime shows here, not in the middle of training.
        return ctypes.CDLL(str(library), mode=os.RTLD_NOW)
    except (OSError, subprocess.SubprocessError) as error:
        log.info("no native CPU kernels (%s); using PyTorch's", error)
        return None


def call(name: str, kind: torch.dtype, rows: Rows, *values: Tensor | float | None) -> None:
    """The kernel ``name`` for this type: number and offsets of the rows, the values, threads.

    Args:
        name: of the kernel.
        kind: float32 or float64.
        rows: of the packed batch.
        values: contiguous tensors as pointers, None as the null pointer, and numbers.
    """
    assert kind in (torch.float32, torch.float64)
    offsets = rows.offsets.contiguous()
    arguments: list[Any] = []
    for value in (len(offsets) - 1, offsets, *values):
        if isinstance(value, int):  # a bool, too
            arguments.append(ctypes.c_long(value))
        elif isinstance(value, float):
            arguments.append(ctypes.c_double(value))
        elif value is None:
            arguments.append(None)
        else:
            assert value.dtype in (kind, torch.int64)
            arguments.append(ctypes.c_void_p(value.data_ptr()))
    typed_name = f"{name}_{'float' if kind == torch.float32 else 'double'}"
    function = getattr(native_library(), typed_name)
    function.restype = None
    function(*arguments, ctypes.c_int(torch.get_num_threads()))


def solid(*values: Any) -> list[Any]:
    """The values with all tensors contiguous."""
    return [x.contiguous() if isinstance(x, Tensor) else x for x in values]


def parts_of(rows: Rows, *shared: Tensor) -> list[Tensor]:
    """Room for the gradients of what all rows share: of each part of the batch, to be added."""
    parts = min(len(rows.offsets) - 1, PARTS)
    return [x.new_empty(parts, *x.shape) for x in shared]
