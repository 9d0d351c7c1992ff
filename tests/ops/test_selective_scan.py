"""Every scan backend is held to the reference, and the reference to plain loops."""

import math

import pytest
import torch
from torch import Tensor

from sigma.errors import UserError
from sigma.ops import choose_backend, selective_scan
from sigma.ops.scan_cpu import BlockedScan, native_library

needs_compiler = pytest.mark.skipif(native_library() is None, reason="no C compiler here")
BACKENDS = ["blocked", pytest.param("cpu", marks=needs_compiler)]
NAMES = ["u", "dt", "A", "B", "C", "D", "z", "dt_bias"]


def inputs(
    rows: int, length: int, d: int, n: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return [draw(rows, length, d), draw(rows, length, d), -draw(d, n).abs() * 4,
            draw(rows, length, n), draw(rows, length, n), draw(d), draw(rows, length, d),
            draw(d)]  # fmt: skip


def run(x: list[Tensor | None], backend: str) -> list[Tensor]:
    """Output, then the gradients of a fixed weighting of it."""
    leaves = [None if v is None else v.detach().clone().requires_grad_() for v in x]
    y = selective_scan(*leaves, backend=backend)  # type: ignore[arg-type]
    weight = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view_as(y).to(y.dtype)
    (y * weight).sum().backward()
    return [y.detach()] + [v.grad for v in leaves if v is not None and v.grad is not None]


def scalar_scan(x: list[Tensor | None]) -> list:
    """The equations of Mamba's algorithm 2, one number at a time."""
    u, dt, A, B, C, D, z, bias = (None if v is None else v.tolist() for v in x)
    y = []
    for b in range(len(u)):
        states = [[0.0] * len(A[0]) for _ in A]
        y.append([])
        for t in range(len(u[b])):
            out = []
            for d in range(len(A)):
                delta = math.log1p(math.exp(dt[b][t][d] + bias[d]))
                total = D[d] * u[b][t][d]
                for n in range(len(A[d])):
                    states[d][n] = (
                        math.exp(delta * A[d][n]) * states[d][n] + delta * B[b][t][n] * u[b][t][d]
                    )
                    total += C[b][t][n] * states[d][n]
                if z is not None:
                    total *= z[b][t][d] / (1 + math.exp(-z[b][t][d]))
                out.append(total)
            y[-1].append(out)
    return y


@pytest.mark.parametrize("gated", [True, False])
def test_reference_equals_scalar_loops(gated: bool) -> None:
    x = inputs(2, 5, 3, 4)
    if not gated:
        x[6] = None
    expected = torch.tensor(scalar_scan(x), dtype=torch.float64)
    torch.testing.assert_close(selective_scan(*x, backend="reference"), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        *[(3, 7, 5, 4), (40, 11, 6, 8), (5, 1, 3, 16), (33, 9, 4, 32), (2, 3, 1, 64), (1, 2, 7, 5)],
        # Over one chunk of positions and one vector of channels, and both to the full.
        *[(2, 150, 19, 5), (33, 65, 17, 8), (2, 64, 16, 16), (1, 130, 33, 3)],
    ],
)
def test_backend_equals_reference_in_float64(backend: str, shape: tuple, gated: bool) -> None:
    x = inputs(*shape)
    if not gated:
        x[6] = None
    for name, got, want in zip(["y", *NAMES], run(x, backend), run(x, "reference"), strict=False):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_is_as_close_as_float32_can_be(backend: str) -> None:
    x = inputs(9, 130, 18, 32, torch.float32)
    want = run([None if v is None else v.double() for v in x], "reference")
    for got, exact in zip(run(x, backend), want, strict=True):
        error = (got.double() - exact).abs().max() / exact.abs().max()
        assert error < 5e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [-15.0, 15.0, 40.0])
def test_tiny_and_large_steps(backend: str, shift: float) -> None:
    x = inputs(3, 6, 4, 8)
    assert x[7] is not None
    x[7] = x[7] + shift
    for got, want in zip(run(x, backend), run(x, "reference"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_against_finite_differences(backend: str) -> None:
    x = [v.requires_grad_() for v in inputs(2, 4, 3, 4) if v is not None]
    assert torch.autograd.gradcheck(lambda *a: selective_scan(*a, backend=backend), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs(backend: str) -> None:
    x = inputs(3, 6, 4, 8)
    strided = [None if v is None else v.repeat_interleave(2, -1)[..., ::2] for v in x]
    for got, want in zip(run(strided, backend), run(x, "reference"), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_inputs_keep_a_float32_state(backend: str) -> None:
    x = inputs(3, 40, 4, 8, torch.float32)
    halved = [v if v is None or i in (2, 5, 7) else v.bfloat16() for i, v in enumerate(x)]
    exact = [None if v is None else v.double() for v in halved]
    y = selective_scan(*halved, backend=backend)  # type: ignore[arg-type]
    want = selective_scan(*exact, backend="reference")  # type: ignore[arg-type]
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), want, rtol=2**-7, atol=1e-2)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(7, 5, 3, 4)
    whole = run(x, "blocked")
    monkeypatch.setattr(BlockedScan, "_rows", staticmethod(lambda u, A: 2))
    for got, want in zip(run(x, "blocked"), whole, strict=True):
        torch.testing.assert_close(got, want)


@needs_compiler
def test_native_result_does_not_depend_on_threads() -> None:
    x = inputs(70, 9, 6, 16, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(x, "cpu")
        torch.set_num_threads(2)
        two = run(x, "cpu")
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_nan_is_not_hidden(backend: str) -> None:
    x = inputs(2, 4, 3, 8, torch.float32)
    assert x[0] is not None
    x[0][1, 2, 1] = float("nan")
    y = selective_scan(*x, backend=backend)  # type: ignore[arg-type]
    assert y[1, 2:, 1].isnan().all()
    assert not y[0].isnan().any()


def test_without_a_compiler_pytorch_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("sigma.ops.dispatch.native_library", lambda: None)
    for name in ("auto", "cpu"):
        chosen = choose_backend(name, torch.device("cpu"))
        assert chosen == ("blocked", "no C compiler is at hand")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert choose_backend("auto", torch.device("cpu")) == ("blocked", "no C kernel for Darwin")


def test_cuda_takes_triton_before_mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for triton, mamba_ssm, wanted in [
        (True, True, "triton"), (False, True, "mamba_ssm"), (False, False, "blocked")
    ]:  # fmt: skip
        monkeypatch.setattr("sigma.ops.dispatch._has_triton", lambda found=triton: found)
        monkeypatch.setattr("sigma.ops.dispatch._has_mamba_ssm", lambda found=mamba_ssm: found)
        assert choose_backend("auto", cuda)[0] == wanted
    assert choose_backend("auto", torch.device("meta"))[0] == "blocked"


def test_unknown_and_impossible_backends() -> None:
    with pytest.raises(UserError, match="choose from auto"):
        choose_backend("fast", torch.device("cpu"))
    with pytest.raises(UserError, match="CUDA device"):
        choose_backend("mamba_ssm", torch.device("cpu"))
    with pytest.raises(UserError, match="CUDA device"):
        choose_backend("triton", torch.device("cpu"))
    with pytest.raises(UserError, match="cannot run on cuda"):
        choose_backend("cpu", torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["auto", "blocked", "mamba_ssm"])
def test_cuda_equals_reference(backend: str) -> None:
    if backend == "mamba_ssm":
        pytest.importorskip("mamba_ssm")
    x = inputs(5, 12, 8, 16, torch.float32)
    want = run([None if v is None else v.double() for v in x], "reference")
    on_gpu = [None if v is None else v.cuda() for v in x]
    for got, exact in zip(run(on_gpu, backend), want, strict=True):
        assert (got.cpu().double() - exact).abs().max() / exact.abs().max() < 1e-4


def test_no_position_is_an_empty_answer() -> None:
    x = [v[:, :0] if v is not None and v.ndim == 3 else v for v in inputs(3, 2, 5, 4)]
    for backend in BACKENDS:
        name = backend if isinstance(backend, str) else "cpu"
        assert selective_scan(*x, backend=name).shape == (3, 0, 5)  # type: ignore[arg-type]
