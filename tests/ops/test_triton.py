"""What is of the Triton kernels alone: tiles, programs, strides, half precision."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sigma.ops import Rows, rows_of

pytest.importorskip("triton", reason="needs triton")
from triton import language as tl

from sigma.ops import triton_conv, triton_gru, triton_scan
from sigma.ops.inputs import Scan
from tests.ops.cases import (
    INTERPRETED,
    Where,
    attend_inputs,
    by_triton,
    check,
    conv_inputs,
    draws,
    exact,
    gru_inputs,
    held_to_the_reference,
    leaves_of,
    no_cuda,
    run,
    scan_inputs,
)


@by_triton
@pytest.mark.parametrize("shape", [(1, 1), (40, 32), (64, 16), (20, 64)])
def test_scan_in_blocks_of_channels(where: Where, shape: tuple[int, int]) -> None:
    held_to_the_reference(scan_inputs(20, *shape), rows_of(torch.tensor([9, 0, 8])), where)


@by_triton
def test_many_states_take_several_warps(where: Where) -> None:
    assert list(triton_scan.tile_sizes(17, 130).values()) == [16, 256, 8, 8]
    held_to_the_reference(scan_inputs(7, 17, 130), rows_of(torch.tensor([2, 4])), where)


@by_triton
@pytest.mark.parametrize("bound", ["PROGRAMS", "SCRATCH"])
def test_a_scan_program_takes_several_rows(
    where: Where, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_scan, bound, 4)
    held_to_the_reference(scan_inputs(23, 40, 20), rows_of(torch.tensor([6, 1, 0, 5, 9])), where)


def test_the_scratch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    programs, sizes = [], []

    class Launch(dict):  # type: ignore[type-arg]
        def __missing__(self, grid: tuple[int]) -> Any:
            def launch(*arguments: Any, **rest: Any) -> None:
                states = arguments[5]
                programs.append(grid[0])
                sizes.append(states.numel() * states.element_size())

            return launch

    monkeypatch.setattr(triton_scan, "_backward", Launch())
    x = Scan(*(v.detach().float().to("meta") for v in scan_inputs(8, 128, 32)))
    for number, longest in ((4096, 200), (4096, 10_000), (1, 10_000)):
        offsets = torch.empty(number + 1, dtype=torch.int64, device="meta")
        triton_scan.backward(x.u, x.u, x.u, x, Rows(offsets, longest))
    assert all(size <= 512 * 2**20 for size in sizes)
    assert programs[0] >= 8 * 132


@by_triton
@pytest.mark.parametrize("shape", [(1, 1), (40, 3), (140, 4), (6, 8)])
def test_conv_of_every_width(where: Where, shape: tuple[int, int]) -> None:
    rows = rows_of(torch.tensor([2, 150, 0, 7, 3]))
    held_to_the_reference(conv_inputs(165, *shape), rows, where, 4e-6)


@by_triton
def test_a_conv_program_takes_several_tiles(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_conv, "PROGRAMS", 3)
    held_to_the_reference(conv_inputs(130, 100), rows_of(torch.tensor([1, 2, 3] * 20)), where, 4e-6)


@by_triton
def test_gru_takes_its_product_in_chunks(where: Where) -> None:
    assert triton_gru.tile_sizes(72)["BLOCK_K"] == 32
    held_to_the_reference(gru_inputs(6, 72), rows_of(torch.tensor([3, 1])), where)


@by_triton
def test_gru_sorts_many_rows(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(torch.tensor([2, 0, 5, 1] * 5))
    assert triton_gru.row_order(rows.offsets) is None
    monkeypatch.setattr(triton_gru, "UNSORTED", 1)
    assert triton_gru.row_order(rows.offsets) is not None
    held_to_the_reference(gru_inputs(42, 16), rows, where)


def strided(x: Tensor) -> Tensor:
    """The same values with neither dimension in a line."""
    wide = x.new_zeros(2 * x.shape[1] + 3, len(x) + 1)
    view = wide.t()[: len(x), 1 : 2 * x.shape[1] + 1 : 2]
    return view.copy_(x)


def columns(x: Tensor) -> Tensor:
    """The same values as some columns of a wider matrix."""
    return torch.cat([x, x], 1)[:, x.shape[1] :]


def one_column(x: Tensor) -> Tensor:
    """The same values, of which one column is for all, if they are equal."""
    equal = bool((x.nan_to_num() == x[:, :1].nan_to_num()).all())
    return x[:, :1].expand(x.shape) if equal else x


@by_triton
@pytest.mark.parametrize("layout", [strided, columns, one_column])
def test_strides_of_scan_and_conv(where: Where, layout: Callable[[Tensor], Tensor]) -> None:
    """Of the inputs and of the gradient of the result."""
    rows, grad = rows_of(torch.tensor([9, 3, 6])), draws(9)(20, 6).detach()
    if layout is one_column:
        grad = grad[:, :1].expand(20, 6)
    for x in (scan_inputs(20, 6, 4), conv_inputs(20, 6)):
        check(run(x, rows, where, grad, layout), exact(x, rows, grad))


def half_run(
    x: Any, names: set[str], rows: Rows, where: Where, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results of inputs some of which are rounded, and of the reference on these."""
    rounded = {
        k: v.detach().to(dtype).requires_grad_() for k, v in leaves_of(x).items() if k in names
    }
    x = x._replace(**rounded)
    grad = draws(9)(*x[0].shape).detach().to(dtype)
    results = run(x, rows, where, grad)
    assert {k for k, v in results.items() if v.dtype == dtype} == {"result", *names}
    return results, exact(x, rows, grad)


@by_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None])
def test_half_precision_scan_and_conv_keep_float32_sums(
    where: Where, dtype: torch.dtype | None
) -> None:
    """One rounding at the end and none before, entry by entry; of all inputs or of some."""
    rows = rows_of(torch.tensor([20, 8]))
    cases: list[tuple[Any, set[str]]] = [
        (scan_inputs(30), {"u", "dt", "B", "C", "z"}),
        (conv_inputs(30), {"x"}),
    ]
    if dtype is None:
        dtype, cases = torch.bfloat16, [(scan_inputs(30, 40, 20), {"u", "B"})]
    ulps = 1 if INTERPRETED and dtype == torch.bfloat16 else 0.51  # it cuts bfloat16 off
    slack = 1e-5 if INTERPRETED else 5e-5  # a GPU's exp2 and division are approximate
    for x, names in cases:
        results, want = half_run(x, names, rows, where, dtype)
        exactly = results.keys() - names - {"result"}
        check({k: results[k] for k in exactly}, {k: want[k] for k in exactly})
        for name in ("result", *names):
            error = (results[name].cpu().double() - want[name]).abs()
            bound = ulps * torch.finfo(dtype).eps * want[name].abs() + slack
            assert (error <= bound).all(), name


@by_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_attention(
    where: Where, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if INTERPRETED:  # it multiplies bfloat16 as the integers that it stores them in
        from triton.runtime.interpreter import InterpreterBuilder

        product = InterpreterBuilder.create_dot

        def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
            if a.dtype.scalar == tl.bfloat16:
                a, b = self.cast_impl(a, tl.float32), self.cast_impl(b, tl.float32)
            return product(self, a, b, *rest)

        monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    rows = rows_of(torch.tensor([3, 20]))
    results, want = half_run(attend_inputs(rows, 25), {"q", "k", "v"}, rows, where, dtype)
    check(results, want, 8 * torch.finfo(dtype).eps)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
@no_cuda
@pytest.mark.parametrize("shape", [(300, 50, 128, 32), (64, 201, 128, 16), (9, 33, 200, 64)])
def test_full_size_on_cuda(shape: tuple[int, int, int, int]) -> None:
    number, longest, d, n = shape
    where = Where("triton", torch.float32, "cuda")
    rows = rows_of(torch.tensor([1 + 37 * i % longest for i in range(number)]))
    size = int(rows.offsets[-1]) + 100
    held_to_the_reference(scan_inputs(size, d, n), rows, where, 4e-6)
    held_to_the_reference(conv_inputs(size, d), rows, where, 4e-6)
    few = rows_of(rows.offsets.diff()[:20])
    size = int(few.offsets[-1]) + 5
    held_to_the_reference(gru_inputs(size, d), few, where, 4e-6)
    for which in ("all", "last"):
        x = attend_inputs(few, size, 2, min(d // 2, 128), which)
        held_to_the_reference(x, few, where, 5e-6)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_all_kernels_in_the_interpreter() -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    files = [__file__, str(Path(__file__).with_name("test_kernels.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
