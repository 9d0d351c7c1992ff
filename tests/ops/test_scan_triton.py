"""The Triton kernels are held to the reference in float64: on CUDA, and everywhere interpreted.

Triton decides when it is imported whether its kernels are compiled or interpreted, and Lightning
and torchmetrics import it. So the interpreter has a process of its own: the last test here runs
this file again.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sigma.ops.reference import selective_scan_reference

pytest.importorskip("triton", reason="needs triton")
from sigma.ops.scan_triton import CHUNK, TritonScan, tile_sizes

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Where this file is run as it is, the processor's turn comes in the last test.
DEVICES = ["cpu" if INTERPRETED else pytest.param("cuda", marks=[pytest.mark.gpu, no_cuda])]
on_each_device = pytest.mark.parametrize("device", DEVICES)
NAMES = ["u", "dt", "A", "B", "C", "D", "z", "dt_bias"]
SHARED = ("A", "D", "dt_bias")
Inputs = dict[str, Tensor | None]


def inputs(rows: int, length: int, d: int, n: int, gated: bool = True) -> Inputs:
    g = torch.Generator().manual_seed(0)
    shapes = [(rows, length, d)] * 2 + [(d, n)] + [(rows, length, n)] * 2 + [(d,)]
    shapes += [(rows, length, d), (d,)]
    x: Inputs = {k: torch.randn(s, generator=g) for k, s in zip(NAMES, shapes, strict=True)}
    x["A"] = -4 * x["A"].abs()  # type: ignore[union-attr]
    if not gated:
        x["z"] = None
    return x


def triton_run(x: Inputs, device: str) -> dict[str, Tensor]:
    """Output, then the gradients of a fixed weighting of it, which reach the given tensors."""
    leaves = {k: None if v is None else v.detach().to(device).requires_grad_()
              for k, v in x.items()}  # fmt: skip
    return weighted(TritonScan.apply(*leaves.values()), leaves)


def exact_run(x: Inputs) -> dict[str, Tensor]:
    leaves = {k: None if v is None else v.detach().double().requires_grad_() for k, v in x.items()}
    return weighted(selective_scan_reference(*leaves.values()), leaves)  # type: ignore[arg-type]


def weighted(y: Tensor, leaves: Inputs) -> dict[str, Tensor]:
    # Not 0 anywhere, and exact in bfloat16.
    weight = (1 + torch.arange(y.numel(), device=y.device) % 7).view_as(y).to(y.dtype) / 8
    given = {k: v for k, v in leaves.items() if v is not None}
    grads = torch.autograd.grad(y, list(given.values()), weight)
    return {"y": y.detach()} | dict(zip(given, grads, strict=True))


def check(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Every tensor as a whole to ``tolerance`` of its largest entry.

    A GPU's exp2 and division are approximate by two units in the last place.
    """
    assert got.keys() == want.keys()
    for name, exact in want.items():
        assert got[name].shape == exact.shape
        limit = tolerance * (5 if got[name].is_cuda else 1) * exact.abs().max()
        error = (got[name].cpu().double() - exact).abs().max()
        assert error <= limit, (name, error, limit)


@on_each_device
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    "shape",
    [(3, 7, 5, 3), (2, 1, 4, 8), (1, 2 * CHUNK, 1, 1), (2, 3 * CHUNK + 1, 6, 4), (2, 9, 40, 32)],
    ids=["odd", "one position", "whole chunks", "rest of a chunk", "channel blocks"],
)
def test_equals_reference(device: str, shape: tuple[int, int, int, int], gated: bool) -> None:
    x = inputs(*shape, gated)
    check(triton_run(x, device), exact_run(x))


@on_each_device
def test_many_states_take_several_warps(device: str) -> None:
    assert tile_sizes(17, 130, 16) == (16, 256, 8)
    x = inputs(1, 2, 17, 130)
    check(triton_run(x, device), exact_run(x))


@on_each_device
def test_a_program_takes_several_rows(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sigma.ops.scan_triton.PROGRAMS", 4)
    x = inputs(5, CHUNK + 2, 40, 20)  # blocks of channels too
    check(triton_run(x, device), exact_run(x))


@on_each_device
def test_strided_inputs(device: str) -> None:
    x = inputs(2, 8, 6, 4)
    views: Inputs = dict(x)
    views["u"], views["z"] = torch.cat([x["u"], x["z"]], -1).to(device).chunk(2, -1)  # type: ignore[list-item]
    views["dt"] = x["dt"].to(device).transpose(0, 1).contiguous().transpose(0, 1)  # type: ignore[union-attr]
    views["B"] = x["B"].to(device).repeat_interleave(2, -1)[..., ::2]  # type: ignore[union-attr]
    views["C"] = x["C"].to(device).transpose(1, 2).contiguous().transpose(1, 2)  # type: ignore[union-attr]
    assert not any(views[k].is_contiguous() for k in ("u", "dt", "B", "C", "z"))  # type: ignore[union-attr]
    check(triton_run(views, device), exact_run(x))


@on_each_device
def test_strided_and_expanded_gradients(device: str) -> None:
    x = inputs(2, 8, 6, 4)
    leaves = {k: v.to(device).requires_grad_() for k, v in x.items() if v is not None}
    for weight in (torch.ones(()).expand(2, 8, 6), torch.randn(2, 6, 8).transpose(1, 2)):
        y = TritonScan.apply(*leaves.values())
        got = torch.autograd.grad(y, list(leaves.values()), weight.to(device))
        y = TritonScan.apply(*leaves.values())
        want = torch.autograd.grad(y, list(leaves.values()), weight.contiguous().to(device))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@on_each_device
@pytest.mark.parametrize("raw", [-20.0, 0.0, 19.9, 30.0])
def test_tiny_and_large_steps(device: str, raw: float) -> None:
    """1 + e^-20 is 1 in float32, but Δ is not 0."""
    x = inputs(2, CHUNK + 3, 4, 8)
    x["dt"] = torch.full_like(x["dt"], raw)  # type: ignore[arg-type]
    x["dt_bias"] = torch.zeros(4)
    if raw > 0:
        x["A"] /= 100  # type: ignore[operator, assignment]  # else nothing is left of a state
    check(triton_run(x, device), exact_run(x))
    x["D"] = torch.zeros(4)  # without the skip there is only what Δ carries
    check(triton_run(x, device), exact_run(x))


@on_each_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_a_float32_state(device: str, dtype: torch.dtype) -> None:
    x = inputs(2, 20, 5, 3)
    half = {k: v if v is None or k in SHARED else v.to(dtype) for k, v in x.items()}
    got, want = triton_run(half, device), exact_run(half)
    for name, value in got.items():
        assert value.dtype == (torch.float32 if name in SHARED else dtype)
    check({k: got[k] for k in SHARED}, {k: want[k] for k in SHARED})
    # One rounding at the end and none before, entry by entry. The interpreter cuts bfloat16 off.
    ulps = 1 if INTERPRETED and dtype == torch.bfloat16 else 0.51
    for name in got.keys() - set(SHARED):
        torch.testing.assert_close(
            got[name].cpu().double(), want[name], rtol=ulps * torch.finfo(dtype).eps, atol=1e-5,
            msg=f"{name} is further from the reference than one rounding",
        )  # fmt: skip


@on_each_device
def test_mixed_types(device: str) -> None:
    x = inputs(2, 8, 40, 20)
    for name in ("u", "B"):
        x[name] = x[name].bfloat16()  # type: ignore[union-attr]
    got, want = triton_run(x, device), exact_run(x)
    assert {k: v.dtype for k, v in got.items() if v.dtype == torch.bfloat16}.keys() == {
        "y", "u", "B"}  # fmt: skip
    check({k: got[k] for k in ("dt", "A", "C", "z")}, {k: want[k] for k in ("dt", "A", "C", "z")})
    check(got, want, 2**-7)


@on_each_device
def test_repeated_runs_give_the_same_bits(device: str) -> None:
    x = inputs(3, 8, 40, 20)
    one, two = triton_run(x, device), triton_run(x, device)
    assert all(torch.equal(one[k], two[k]) for k in one)


@on_each_device
@pytest.mark.parametrize("name", ["u", "dt", "B"])
def test_nan_is_not_hidden(device: str, name: str) -> None:
    x = inputs(2, 4, 3, 8)
    x[name][1, 2, 1] = float("nan")  # type: ignore[index]
    y = triton_run(x, device)["y"]
    assert y[1, 2:, 1].isnan().all()
    assert not y[0].isnan().any()


@on_each_device
def test_no_rows(device: str) -> None:
    got = triton_run(inputs(0, 4, 3, 2), device)
    assert got["y"].shape == (0, 4, 3)
    assert not got["A"].any()


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
@no_cuda
@pytest.mark.parametrize("shape", [(300, 50, 128, 32), (64, 201, 128, 16), (9, 33, 200, 64)])
def test_full_size_on_cuda(shape: tuple[int, int, int, int]) -> None:
    x = inputs(*shape)
    exact = exact_run({k: None if v is None else v.cuda() for k, v in x.items()})
    check(triton_run(x, "cuda"), {k: v.cpu() for k, v in exact.items()}, 3e-6)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_everything_in_the_interpreter() -> None:
    unwanted = ("PYTEST_", "COV_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
