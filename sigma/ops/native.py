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
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigma.errors import excerpt
from sigma.files import atomic_path, sweep_stale
from sigma.ops.rows import Rows

log = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("c")
FLAGS = ["-O3", "-march=native", "-fopenmp", "-fPIC"]
DIGEST = 32  # bytes
PARTS = 64  # as in c/common.h: parts of a batch whose sums are added here


def processor() -> str:
    """What the processor can do, as Linux lists it."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return "".join(line for line in lines if line.startswith(("flags", "Features")))


@functools.cache
def native_library() -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernels, or None where they cannot be had; and the reason in words.

    They are built on first use (some seconds) and kept in the user's cache folder, under a key of
    sources, compiler, flags and processor.
    """
    if platform.system() != "Linux":
        return None, "no C kernel for this system"
    try:
        name = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
        compiler = shlex.split(name or "")  # CC may hold flags
        if not compiler:
            return None, "no C compiler is at hand"
        flags = [*FLAGS, *["-mprefer-vector-width=512"] * (platform.machine() == "x86_64")]
        sources = [path.read_bytes() for path in sorted(SOURCES.iterdir())]
        key = hashlib.sha256(repr((sources, compiler, flags, processor())).encode()).digest()
        path = cache_folder() / f"kernels-{key.hex()[:16]}.so"
        library = stored(path, key)
        if library is None:
            library = build(compiler, flags)
            store(path, key, library)
        return load(library), "a C compiler is at hand"
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().partition("\n")[0]
        said = excerpt(said, 200) or f"it ended with {error.returncode}"
        reason = f"{name} cannot compile the C kernels: {said}"
    except subprocess.TimeoutExpired as error:
        reason = f"{name} took longer than {error.timeout} seconds for the C kernels"
    except (OSError, ValueError, RuntimeError) as error:  # the last where there is no home
        reason = f"the C kernels cannot be built or loaded: {error}"
    log.warning("PyTorch's slower operations take over, as %s.", reason)
    return None, reason


def cache_folder() -> Path:
    """Of this project, by the XDG Base Directory Specification: a relative path does not count."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base) / "sigma-rec" if os.path.isabs(base) else Path.home() / ".cache" / "sigma-rec"


def digest(library: bytes, key: bytes) -> bytes:
    """Stands behind the library in its file: what is damaged or of another key is not loaded."""
    return hashlib.blake2b(library, digest_size=DIGEST, key=key).digest()


def stored(path: Path, key: bytes) -> bytes | None:
    """The library in this file, or None (with a logged line) where it is not what was built."""
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise OSError("what is there is no file")
        content = path.read_bytes()
        if digest(content[:-DIGEST], key) != content[-DIGEST:]:
            raise OSError("the file is damaged")
    except OSError as error:
        reason = error.strerror or error
        log.warning("The compiled kernels %s are built again: %s.", path, reason)
        return None
    return content[:-DIGEST]


def store(path: Path, key: bytes, library: bytes) -> None:
    """Keep a library for the next start; where that is impossible, warn and go on without."""
    try:
        with atomic_path(path) as partial:
            partial.write_bytes(library + digest(library, key))
        # The latter two are of earlier versions.
        sweep_stale(path.parent, ".*.partial", "tmp*", "scan-*.so")
    except OSError as error:
        log.warning(
            "The compiled kernels could not be kept as %s (%s), so the next start compiles again; "
            "mend that, or set XDG_CACHE_HOME to another folder.",
            path,
            error.strerror or error,
        )


def build(compiler: list[str], flags: list[str]) -> bytes:
    """The compiled library.

    OpenMP's functions are left to be found in the runtime PyTorch has loaded, so that both share
    one set of threads.
    """
    with tempfile.TemporaryDirectory(prefix="sigma-rec-") as folder:
        objects, library = f"{folder}/kernels.o", Path(folder, "kernels.so")
        # Linked without -fopenmp, see above.
        for command in (
            [*compiler, *flags, "-c", str(SOURCES / "kernels.c"), "-o", objects],
            [*compiler, "-shared", objects, "-o", str(library), "-lm"],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        return library.read_bytes()


def load(library: bytes) -> ctypes.CDLL:
    """From memory: what was checked is what runs, and a file cut off later ends no training."""
    memory = os.memfd_create("kernels")  # stays open: the loader knows a library by this path
    with open(memory, "wb", closefd=False) as file:
        file.write(library)
    # RTLD_NOW: a missing OpenMP runtime shows here, not in the middle of training.
    return ctypes.CDLL(f"/proc/self/fd/{memory}", mode=os.RTLD_NOW)


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
    function = getattr(native_library()[0], typed_name)
    function.restype = None
    function(*arguments, ctypes.c_int(torch.get_num_threads()))


def solid(*values: Any) -> list[Any]:
    """The values with all tensors contiguous."""
    return [x.contiguous() if isinstance(x, Tensor) else x for x in values]


def parts_of(rows: Rows, *shared: Tensor) -> list[Tensor]:
    """Room for the gradients of what all rows share: of each part of the batch, to be added."""
    parts = min(len(rows.offsets) - 1, PARTS)
    return [x.new_empty(parts, *x.shape) for x in shared]
