"""The Triton kernels of packed rows are held to the reference in float64.

On CUDA, and everywhere interpreted. Triton decides when it is imported whether its kernels are
compiled or interpreted, and Lightning and torchmetrics import it. So the interpreter has a process
of its own: the last test here runs this file again.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sigma.ops import reference

pytest.importorskip("triton", reason="needs triton")
from sigma.ops import triton_conv, triton_scan

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Where this file is run as it is, the processor's turn comes in the last test.
DEVICES = ["cpu" if INTERPRETED else pytest.param("cuda", marks=[pytest.mark.gpu, no_cuda])]
on_each_device = pytest.mark.parametrize("device", DEVICES)
SCAN = ["u", "dt", "A", "B", "C", "D", "z", "dt_bias"]
CONV = ["x", "weight", "bias"]
SHARED = ("A", "D", "dt_bias", "weight", "bias")
Inputs = dict[str, Tensor | None]

# Lengths of rows, and how many places there are behind the last.
ROWS = {
    "lengths one to nine, an empty row, a tail": ([1, 0, 5, 9, 4, 0], 7),
    "all alike": ([6, 6, 6], 0),
    "positions of one": ([1, 1, 1, 1, 1], 1),
    "one row": ([11], 2),
    "only a tail": ([0, 0], 3),
    "no row at all": ([], 5),
}
on_all_rows = pytest.mark.parametrize("case", ROWS.values(), ids=ROWS.keys())


def scan_inputs(places: int, d: int, n: int, gated: bool = True) -> Inputs:
    g = torch.Generator().manual_seed(0)
    shapes = [(places, d)] * 2 + [(d, n)] + [(places, n)] * 2 + [(d,), (places, d), (d,)]
    x: Inputs = {k: torch.randn(s, generator=g) for k, s in zip(SCAN, shapes, strict=True)}
    x["A"] = -4 * x["A"].abs()  # type: ignore[union-attr]
    if not gated:
        x["z"] = None
    return x


def conv_inputs(places: int, d: int, k: int) -> Inputs:
    g = torch.Generator().manual_seed(0)
    shapes = [(places, d), (d, k), (d,)]
    return {k: torch.randn(s, generator=g) for k, s in zip(CONV, shapes, strict=True)}


def weighting(y: Tensor) -> Tensor:
    """A gradient of y that is 0 nowhere, and exact in bfloat16."""
    return (1 + torch.arange(y.numel(), device=y.device) % 7).view_as(y).to(y.dtype) / 8


def spoilt(x: Tensor, last: int) -> Tensor:
    """The same with NaN behind the last row, the strides too."""
    if 0 in x.stride():  # one column for all
        return spoilt(x[:, 0].clone()[:, None], last).expand(x.shape)
    copy = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)
    copy[last:] = float("nan")
    return copy


def triton_run(
    x: Inputs, lengths: list[int], device: str, gy: Tensor | None = None, silu: bool | None = None
) -> dict[str, Tensor]:
    """Output, then the gradients; what stands behind the last row is NaN in all that is read."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    last, longest = int(offsets[-1]), max(lengths, default=0)
    values = {
        k: None if v is None else v.to(device) if k in SHARED else spoilt(v.to(device), last)
        for k, v in x.items()
    }
    offsets = offsets.to(device)
    if silu is None:
        rest = (*values.values(), offsets, longest)
        y = triton_scan.forward(*rest)  # type: ignore[arg-type]
        gy = spoilt(weighting(y) if gy is None else gy.to(device), last)
        grads = triton_scan.backward(gy, *rest)  # type: ignore[arg-type]
    else:
        rest = (*values.values(), offsets, longest, silu)
        y = triton_conv.forward(*rest)  # type: ignore[arg-type]
        gy = spoilt(weighting(y) if gy is None else gy.to(device), last)
        grads = triton_conv.backward(gy, *rest)  # type: ignore[arg-type,assignment]
    named = dict(zip(x, grads, strict=True))
    assert all((named[k] is None) == (x[k] is None) for k in x)
    got = {"y": y} | {k: v for k, v in named.items() if v is not None}
    for name, value in got.items():
        assert name in SHARED or not value[last:].any(), f"{name} behind the last row"
    return got


def exact_run(
    x: Inputs, lengths: list[int], gy: Tensor | None = None, silu: bool | None = None
) -> dict[str, Tensor]:
    leaves = {k: None if v is None else v.detach().double().requires_grad_() for k, v in x.items()}
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    if silu is None:
        y = reference.selective_scan(*leaves.values(), offsets)  # type: ignore[arg-type]
    else:
        y = reference.causal_conv(*leaves.values(), offsets, silu)  # type: ignore[arg-type]
    present = {k: v for k, v in leaves.items() if v is not None}
    if not y.requires_grad:  # no place in any row
        return {"y": y} | {k: torch.zeros_like(v) for k, v in present.items()}
    grads = torch.autograd.grad(y, list(present.values()), weighting(y) if gy is None else gy)
    return {"y": y.detach()} | dict(zip(present, grads, strict=True))


def check(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Every tensor as a whole to ``tolerance`` of its largest entry.

    A GPU's exp2 and division are approximate by two units in the last place.
    """
    assert got.keys() == want.keys()
    for name, exact in want.items():
        assert got[name].shape == exact.shape
        if exact.numel():
            limit = tolerance * (5 if got[name].is_cuda else 1) * exact.abs().max()
            error = (got[name].cpu().double() - exact).abs().max()
            assert error <= limit, (name, error, limit)


def check_half(got: dict[str, Tensor], want: dict[str, Tensor], dtype: torch.dtype) -> None:
    """One rounding at the end and none before, entry by entry."""
    for name, value in got.items():
        assert value.dtype == (torch.float32 if name in SHARED else dtype)
    check(*({k: v for k, v in run.items() if k in SHARED} for run in (got, want)))
    ulps = 1 if INTERPRETED and dtype == torch.bfloat16 else 0.51  # it cuts bfloat16 off
    slack = 1e-5 if INTERPRETED else 5e-5  # a GPU's exp2 and division are approximate
    for name in got.keys() - set(SHARED):
        torch.testing.assert_close(
            got[name].cpu().double(), want[name], rtol=ulps * torch.finfo(dtype).eps, atol=slack,
            msg=f"{name} is further from the reference than one rounding",
        )  # fmt: skip


def strided(x: Tensor, device: str) -> Tensor:
    """The same values with neither dimension in a line."""
    wide = torch.zeros(2 * x.shape[1] + 3, len(x) + 1, device=device)
    view = wide.t()[: len(x), 1 : 2 * x.shape[1] + 1 : 2]
    view.copy_(x)
    return view


@on_each_device
@on_all_rows
@pytest.mark.parametrize("gated", [True, False])
def test_scan_equals_reference(device: str, case: tuple[list[int], int], gated: bool) -> None:
    lengths, tail = case
    x = scan_inputs(sum(lengths) + tail, 5, 3, gated)
    check(triton_run(x, lengths, device), exact_run(x, lengths))


@on_each_device
@pytest.mark.parametrize("shape", [(1, 1), (40, 32), (64, 16), (20, 64)])
def test_scan_in_blocks_of_channels(device: str, shape: tuple[int, int]) -> None:
    x = scan_inputs(20, *shape)
    check(triton_run(x, [9, 0, 8], device), exact_run(x, [9, 0, 8]))


@on_each_device
def test_scan_of_a_long_row(device: str) -> None:
    x = scan_inputs(135, 3, 4)
    check(triton_run(x, [2, 131], device), exact_run(x, [2, 131]), 3e-6)


@on_each_device
def test_many_states_take_several_warps(device: str) -> None:
    assert triton_scan.tile_sizes(17, 130) == (16, 256, 8, 8)
    x = scan_inputs(7, 17, 130)
    check(triton_run(x, [2, 4], device), exact_run(x, [2, 4]))


@on_each_device
@pytest.mark.parametrize("bound", ["PROGRAMS", "SCRATCH"])
def test_a_program_takes_several_rows(
    device: str, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_scan, bound, 4)
    lengths = [6, 1, 0, 5, 9]
    x = scan_inputs(23, 40, 20)
    check(triton_run(x, lengths, device), exact_run(x, lengths))


def test_the_scratch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Launch(dict):  # type: ignore[type-arg]
        def __missing__(self, grid: tuple[int]) -> object:
            return lambda *a, **_: sizes.append((grid[0], a[16].numel() * a[16].element_size()))

    monkeypatch.setattr(triton_scan, "_backward", Launch())
    for rows, longest in ((4096, 200), (4096, 10_000), (1, 10_000)):
        x = scan_inputs(8, 128, 32)
        meta = [v.to("meta") for v in x.values() if v is not None]
        offsets = torch.empty(rows + 1, dtype=torch.int64, device="meta")
        triton_scan.backward(meta[0], *meta, offsets, longest)  # type: ignore[arg-type]
    assert all(size <= 512 * 2**20 for _, size in sizes)
    assert sizes[0][0] >= 8 * 132


@on_each_device
def test_scan_of_strided_tensors(device: str) -> None:
    x = scan_inputs(20, 6, 4)
    lengths, gy = [9, 3, 6], torch.randn(20, 6)
    views = {k: v if k in SHARED else strided(v, device) for k, v in x.items()}  # type: ignore[arg-type]
    got = triton_run(views, lengths, device, strided(gy, device))
    check(got, exact_run(x, lengths, gy.double()))
    expanded = triton_run(x, lengths, device, torch.ones(20, 1).expand(20, 6))
    check(expanded, exact_run(x, lengths, torch.ones(20, 6).double()))


@on_each_device
@pytest.mark.parametrize("raw", [-20.0, 0.0, 19.9, 30.0])
def test_tiny_and_large_steps(device: str, raw: float) -> None:
    """1 + e^-20 is 1 in float32, but Δ is not 0."""
    x = scan_inputs(16, 4, 8)
    x["dt"] = torch.full_like(x["dt"], raw)  # type: ignore[arg-type]
    x["dt_bias"] = torch.zeros(4)
    if raw > 0:
        x["A"] /= 100  # type: ignore[operator, assignment]  # else nothing is left of a state
    check(triton_run(x, [9, 7], device), exact_run(x, [9, 7]))
    x["D"] = torch.zeros(4)  # without the skip there is only what Δ carries
    check(triton_run(x, [9, 7], device), exact_run(x, [9, 7]))


@on_each_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scan_keeps_a_float32_state(device: str, dtype: torch.dtype) -> None:
    x = scan_inputs(30, 5, 3)
    half = {k: v if v is None or k in SHARED else v.to(dtype) for k, v in x.items()}
    check_half(triton_run(half, [20, 8], device), exact_run(half, [20, 8]), dtype)


@on_each_device
def test_mixed_types(device: str) -> None:
    x = scan_inputs(12, 40, 20)
    for name in ("u", "B"):
        x[name] = x[name].bfloat16()  # type: ignore[union-attr]
    got, want = triton_run(x, [8, 3], device), exact_run(x, [8, 3])
    assert {k: v.dtype for k, v in got.items() if v.dtype == torch.bfloat16}.keys() == {
        "y", "u", "B"}  # fmt: skip
    check({k: got[k] for k in ("dt", "A", "C", "z")}, {k: want[k] for k in ("dt", "A", "C", "z")})
    check(got, want, 2**-7)


@on_each_device
@pytest.mark.parametrize("name", ["u", "dt", "B"])
def test_nan_in_a_row_is_not_hidden(device: str, name: str) -> None:
    x = scan_inputs(12, 3, 8)
    x[name][6, 1] = float("nan")  # type: ignore[index]
    y = triton_run(x, [4, 6], device)["y"]
    assert y[6:10, 1].isnan().all()
    assert not y[:6].isnan().any()  # nor earlier in the row


@on_each_device
@on_all_rows
@pytest.mark.parametrize("silu", [True, False])
def test_conv_equals_reference(device: str, case: tuple[list[int], int], silu: bool) -> None:
    lengths, tail = case
    x = conv_inputs(sum(lengths) + tail, 5, 4)
    check(triton_run(x, lengths, device, silu=silu), exact_run(x, lengths, silu=silu))


@on_each_device
@pytest.mark.parametrize("shape", [(1, 1), (40, 3), (140, 4), (6, 8)])
def test_conv_of_every_width(device: str, shape: tuple[int, int]) -> None:
    lengths = [2, 150, 0, 7, 3]
    x = conv_inputs(165, *shape)
    check(triton_run(x, lengths, device, silu=True), exact_run(x, lengths, silu=True), 3e-6)


@on_each_device
def test_a_conv_program_takes_several_tiles(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_conv, "PROGRAMS", 3)
    lengths = [1, 2, 3] * 20
    x = conv_inputs(130, 100, 4)
    check(triton_run(x, lengths, device, silu=True), exact_run(x, lengths, silu=True), 3e-6)


@on_each_device
def test_conv_of_strided_tensors(device: str) -> None:
    x = conv_inputs(20, 6, 4)
    lengths, gy = [9, 3, 6], torch.randn(20, 6)
    wide = torch.cat([gy, x["x"]], 1).to(device)  # type: ignore[list-item]
    for view in (wide[:, 6:], strided(x["x"], device)):  # type: ignore[arg-type]
        got = triton_run(x | {"x": view}, lengths, device, strided(gy, device), silu=True)
        check(got, exact_run(x, lengths, gy.double(), silu=True))


@on_each_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_conv(device: str, dtype: torch.dtype) -> None:
    x = conv_inputs(30, 5, 4)
    x["x"] = x["x"].to(dtype)  # type: ignore[union-attr]
    got, want = (run(x, [20, 8], *rest, silu=True) for run, rest in
                 ((triton_run, (device,)), (exact_run, ())))  # type: ignore[operator]  # fmt: skip
    check_half(got, want, dtype)


@on_each_device
def test_repeated_runs_give_the_same_bits(device: str) -> None:
    lengths = [8, 1, 0, 9]
    for x, silu in ((scan_inputs(20, 40, 20), None), (conv_inputs(20, 40, 4), True)):
        one, two = (triton_run(x, lengths, device, silu=silu) for _ in range(2))
        assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
@no_cuda
@pytest.mark.parametrize("shape", [(300, 50, 128, 32), (64, 201, 128, 16), (9, 33, 200, 64)])
def test_full_size_on_cuda(shape: tuple[int, int, int, int]) -> None:
    rows, longest, d, n = shape
    lengths = [1 + 37 * i % longest for i in range(rows)]
    x = scan_inputs(sum(lengths) + 100, d, n)
    check(triton_run(x, lengths, "cuda"), exact_run(x, lengths), 3e-6)
    x = conv_inputs(sum(lengths) + 100, d, 4)
    check(triton_run(x, lengths, "cuda", silu=True), exact_run(x, lengths, silu=True), 3e-6)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_everything_in_the_interpreter() -> None:
    unwanted = ("PYTEST_", "COV_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
