"""Operations as PyTorch sees them: one node each to compile, export and capture.

An operation on packed rows is declared once, as an ``Operation``: what it reads, the shapes of what
it gives, and the kernels of each backend.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from sigma.ops.dispatch import kernel_backend
from sigma.ops.inputs import Gradients
from sigma.ops.rows import Rows

# Lives as long as the module: operations end with their library.
LIBRARY = torch.library.Library("sigma", "FRAGMENT")
TYPES: Mapping[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    bool: "bool",
    float: "float",
}


def register(
    name: str,
    schema: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """``function`` as the operation ``sigma::<name>``.

    Args:
        name: of the operation.
        schema: arguments and results, in PyTorch's notation.
        function: on tensors of any device; it returns new tensors. It runs below autograd and may
            use ``torch.func``.
        fake: the result's shapes and types, from the same arguments.
        save: (ctx, inputs, output), keeps what ``backward`` needs.
        backward: (ctx, *gradients of the output) -> gradients of the inputs.
    """
    LIBRARY.define(name + schema)
    LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sigma::{name}", fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"sigma::{name}", backward, setup_context=save, lib=LIBRARY)
    return getattr(torch.ops.sigma, name).default


class Kernels(NamedTuple):
    """An operation by one backend.

    Attributes:
        forward: (inputs, rows) -> the result, and what backward reads beside it.
        backward: (gradient of the result, result, what was saved, inputs, rows) -> gradients of the
            inputs that take one, None of an input that is None.
    """

    forward: Callable[[Any, Rows], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor, Any, Rows], Gradients]


class Operation:
    """An operation on packed rows, ``sigma::<name>``, and its gradient ``sigma::<name>_backward``.

    It is called with (inputs, rows, name of a backend), and returns the result.

    Args:
        name: of the operation.
        kind: NamedTuple of what it reads beside the rows, see ``inputs``.
        number: so many of them, the first ones, take a gradient.
        shapes: inputs -> new tensors like the result and like what is saved.
        backends: ``Kernels`` of each backend, or the name of the module that has the functions
            ``forward`` and ``backward``, which is imported when it is needed.
    """

    def __init__(
        self,
        name: str,
        kind: type,
        number: int,
        shapes: Callable[[Any], tuple[Tensor, Tensor]],
        backends: Mapping[str, Kernels | str],
    ) -> None:
        self.kind, self.number, self.shapes, self.backends = kind, number, shapes, backends
        hints = get_type_hints(kind)
        self.tensors = sum(TYPES[hint].startswith("Tensor") for hint in hints.values())
        fields = [f"{TYPES[hint]} {field}" for field, hint in hints.items()]
        fields.insert(self.tensors, "Tensor offsets")
        schema = ", ".join([*fields, "SymInt longest", "str backend"])
        grads = ", ".join(["Tensor"] * number)
        self.backward_op = register(
            f"{name}_backward",
            f"(Tensor grad, Tensor result, Tensor saved, {schema}) -> ({grads})",
            self.backward,
            self.backward_shapes,
        )
        self.op = register(
            name,
            f"({schema}) -> (Tensor, Tensor)",
            self.forward,
            lambda *values: shapes(self.inputs_of(values)),
            self.save,
            self.differentiate,
        )

    def __call__(self, inputs: Any, rows: Rows, backend: str) -> Tensor:
        settings = *inputs[self.tensors :], rows.longest, backend
        result: Tensor = self.op(*inputs[: self.tensors], rows.offsets, *settings)[0]
        return result

    def inputs_of(self, values: tuple[Any, ...]) -> Any:
        """From an operator's arguments, of which the last are offsets, settings and backend."""
        return self.kind(*values[: self.tensors], *values[self.tensors + 1 : -2])

    def unpacked(self, values: tuple[Any, ...]) -> tuple[Any, Any, Rows]:
        """Kernels, inputs and rows."""
        kernels = self.backends[kernel_backend(values[-1], values[0])]
        if isinstance(kernels, str):
            kernels = importlib.import_module(kernels)  # type: ignore[assignment]
        return kernels, self.inputs_of(values), Rows(values[self.tensors], values[-2])

    def forward(self, *values: Any) -> tuple[Tensor, Tensor]:
        kernels, inputs, rows = self.unpacked(values)
        with torch.autocast(inputs[0].device.type, enabled=False):
            result, saved = kernels.forward(inputs, rows)
        return result, saved

    def backward(
        self, grad: Tensor, result: Tensor, saved: Tensor, *values: Any
    ) -> tuple[Tensor, ...]:
        kernels, inputs, rows = self.unpacked(values)
        with torch.autocast(grad.device.type, enabled=False):
            grads = kernels.backward(grad, result, saved, inputs, rows)
        return tuple(grad.new_empty(0) if x is None else x for x in grads)

    def backward_shapes(
        self, grad: Tensor, result: Tensor, saved: Tensor, *values: Any
    ) -> tuple[Tensor, ...]:
        inputs = values[: self.number]
        return tuple(grad.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs)

    def save(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output, *inputs[: self.tensors + 1])
        ctx.settings = inputs[self.tensors + 1 :]

    def differentiate(self, ctx: Any, grad: Tensor, _: Any) -> Gradients:
        values = *ctx.saved_tensors, *ctx.settings
        pairs = zip(values[2:], self.backward_op(grad, *values), strict=False)
        grads = [None if x is None else g for x, g in pairs]
        return (*grads, *[None] * (len(values) - 2 - self.number))
