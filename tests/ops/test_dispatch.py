"""Which backend is chosen, and what PyTorch sees of an operation."""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sigma import ops
from sigma.errors import UserError
from sigma.ops import Rows, choose_backend, dispatch, scan, selective_scan
from sigma.ops.inputs import Scan
from tests.ops.cases import (
    INTERPRETED,
    draws,
    no_cuda,
    rows_case,
    same,
    scan_inputs,
    weighted_gradients,
)


@pytest.mark.parametrize(
    ("triton", "mamba_ssm", "want"),
    [(True, True, "triton"), (False, True, "mamba_ssm"), (False, False, "blocked")],
)
def test_cuda_takes_triton_before_mamba_ssm_and_pytorch_takes_over(
    triton: bool, mamba_ssm: bool, want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "has_triton", lambda: triton)
    monkeypatch.setattr(dispatch, "has_mamba_ssm", lambda: mamba_ssm)
    assert choose_backend("auto", torch.device("cuda"))[0] == want
    assert choose_backend("auto", torch.device("meta"))[0] == "blocked"
    monkeypatch.setattr(dispatch, "native_library", lambda: (None, "no compiler"))
    for name in ("auto", "cpu"):
        assert choose_backend(name, torch.device("cpu"))[0] == "blocked"


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        *(("fast", "cpu", "choose from auto"), ("mamba_ssm", "cpu", "CUDA device")),
        *(("triton", "cpu", "CUDA device"), ("cpu", "cuda", "on the CPU")),
    ],
)
def test_unknown_and_impossible_backends(name: str, device: str, message: str) -> None:
    if name == "triton" and INTERPRETED:
        pytest.skip("it interprets here")
    with pytest.raises(UserError, match=message):
        choose_backend(name, torch.device(device))


@pytest.mark.parametrize("kernel", [None, object()])
def test_mamba_ssm_without_its_kernel_does_not_count(
    kernel: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since 2.3.2 the import succeeds without it, and the first call fails."""
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_cuda = kernel  # type: ignore[attr-defined]
    ops, package = ModuleType("mamba_ssm.ops"), ModuleType("mamba_ssm")
    ops.selective_scan_interface = interface  # type: ignore[attr-defined]
    package.ops = ops  # type: ignore[attr-defined]
    package.__spec__ = importlib.machinery.ModuleSpec("mamba_ssm", None)  # type: ignore[attr-defined]
    for module in (package, ops, interface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert (dispatch.mamba_ssm_lack.__wrapped__() is None) == (kernel is not None)


def test_mamba_ssm_is_given_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel, stood in for by the plain block, sees (B, d, L) and gives what ours gives."""

    def selective_scan_fn(u, dt, A, B, C, D, z, bias, delta_softplus):  # type: ignore[no-untyped-def]
        assert delta_softplus
        assert u.is_contiguous()
        u, dt, B, C, z = (x.transpose(1, 2) for x in (u, dt, B, C, z))
        return scan.scan_of_block(Scan(u, dt, A, B, C, D, z, bias)).transpose(1, 2)

    interface = SimpleNamespace(selective_scan_fn=selective_scan_fn)
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", interface)
    rows, size = rows_case("mixed")
    x = [v.detach().float().requires_grad_() for v in scan_inputs(size, 4, 3)]
    monkeypatch.setattr(scan, "is_detour", lambda backend, device: backend == "mamba_ssm")
    y, want = (selective_scan(*x, rows, backend=name) for name in ("mamba_ssm", "blocked"))
    same(y, want, x, rtol=1e-5)


Call = tuple[Callable[..., Tensor], list[Tensor]]


def calls(rows: Rows, size: int) -> dict[str, Call]:
    """Every operation as a function of tensors alone."""
    draw, index, longest = draws(), torch.arange(0, size, 2), rows.longest
    number = rows.offsets.shape[0] - 1
    x = draw(size, 4)
    of_rows: dict[str, Call] = {
        "scan": (lambda r, *x: selective_scan(*x, r), list(scan_inputs(size))),
        "conv": (lambda r, *x: ops.causal_conv(*x, r, True), [x, draw(4, 3), draw(4)]),
        "gru": (lambda r, *x: ops.gru(*x, r), [draw(size, 9), draw(9, 3), draw(9)]),
        "attend": (lambda r, *x: ops.attend(*x, r), [draw(size, 2, 4) for _ in range(3)]),
        "flip": (lambda r, x: ops.flip(x, r, 1), [x]),
        "unfold": (lambda r, x: ops.unfold(x, r, 3), [x]),
        "take": (lambda r, x: ops.take(x, ops.places_of(index, x.shape[0])), [x]),
        "padded": (lambda r, x: ops.padded(x, r, longest), [x]),
        "packed": (lambda r, x: ops.packed(x, r, size), [draw(number, longest, 4)]),
        "spread": (lambda r, x: ops.spread(x, r, index), [draw(number, 4)]),
    }

    def of_offsets(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda offsets, *x: function(Rows(offsets, longest), *x)

    return {name: (of_offsets(function), x) for name, (function, x) in of_rows.items()}


each_call = pytest.mark.parametrize("name", list(calls(*rows_case("mixed"))))


@each_call
def test_compile_sees_each_operation_as_one(name: str) -> None:
    """No graph break, and the same values and gradients."""
    rows, size = rows_case("mixed")
    function, leaves = calls(rows, size)[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got, want = compiled(rows.offsets, *leaves), function(rows.offsets, *leaves)
    same(got, want, leaves)


@each_call
def test_export_keeps_each_operation(name: str) -> None:
    rows, size = rows_case("mixed")
    function, leaves = calls(rows, size)[name]
    values = [x.detach() for x in leaves]

    class Module(nn.Module):
        def forward(self, offsets: Tensor, *x: Tensor) -> Tensor:
            return function(offsets, *x)

    exported = torch.export.export(Module(), (rows.offsets, *values))
    names = {str(n.target) for n in exported.graph.nodes if n.op == "call_function"}
    assert any(n.startswith("sigma.") for n in names), names
    want = function(rows.offsets, *values)
    torch.testing.assert_close(exported.module()(rows.offsets, *values), want)


@pytest.mark.parametrize("name", ["scan", "conv", "gru", "attend"])
def test_pytorchs_own_check_of_a_registered_operation(name: str) -> None:
    """Schema, autograd, fake tensors, and tracing with other sizes."""
    rows, size = rows_case("mixed")
    _, leaves = calls(rows, size)[name]
    offsets, longest = rows.offsets, rows.longest
    one, places, settings = torch.zeros(1, dtype=torch.int64), (), ()
    if name == "conv":
        settings = (True,)
    if name == "attend":
        places, settings = (offsets, torch.arange(size), one), (True, 0.0)
    op = getattr(torch.ops.sigma, {"scan": "selective_scan", "conv": "causal_conv"}.get(name, name))
    torch.library.opcheck(op, (*leaves, *places, offsets, *settings, longest, "auto"))


@pytest.mark.gpu
@no_cuda
@each_call
@pytest.mark.parametrize("case", ["mixed", "many"])
def test_cuda_equals_the_cpu(name: str, case: str) -> None:
    """In float64 by PyTorch alone, in float32 by Triton."""
    rows, size = rows_case(case)
    function, leaves = calls(rows, size)[name]
    want = function(rows.offsets, *leaves)
    grads = weighted_gradients(want, leaves)
    if name in ("take", "spread"):
        pytest.skip("its places lie on the CPU")
    for kind, limit in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        moved = [x.detach().to("cuda", kind).requires_grad_() for x in leaves]
        got = function(rows.offsets.cuda(), *moved)
        assert (got.cpu().double() - want).abs().max() <= limit * want.abs().max()
        for a, b in zip(weighted_gradients(got, moved), grads, strict=True):
            assert (a.cpu().double() - b).abs().max() <= 10 * limit * b.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize(
    ("backend", "triton", "kind", "reason"),
    [
        *(("auto", True, torch.float32, "None"), ("mamba_ssm", True, torch.float32, "None")),
        ("blocked", True, torch.float32, "its operations run on blocked: asked for"),
        ("auto", False, torch.float32, "its operations run on blocked: neither Triton nor"),
        ("auto", True, torch.float64, "float64 has no kernels here"),
    ],
)
def test_what_cannot_be_captured_is_said(
    backend: str, triton: bool, kind: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "has_triton", lambda: triton)
    monkeypatch.setattr(dispatch, "has_mamba_ssm", lambda: backend == "mamba_ssm")
    model = nn.Linear(2, 2, dtype=kind)
    model.backend = backend  # type: ignore[assignment]
    assert str(dispatch.capture_reason(model, torch.device("cuda"))).startswith(reason)
