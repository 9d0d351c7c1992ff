"""Operations as PyTorch sees them: one node each to compile, export and capture.

An operation on packed rows is declared once, by ``declare``: what it reads, the shapes of what it
gives, and the kernels of each backend.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from sigma.ops.dispatch import kernel_backend
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
    backward: Callable[[Tensor, Tensor, Tensor, Any, Rows], tuple[Tensor | None, ...]]


def declare(
    name: str,
    kind: type,
    number: int,
    shapes: Callable[[Any], tuple[Tensor, Tensor]],
    backends: Mapping[str, Kernels | str],
) -> Callable[[Any, Rows, str], Tensor]:
    """An operation on packed rows, ``sigma::<name>``, and its gradient ``sigma::<name>_backward``.

    Args:
        name: of the operation.
        kind: NamedTuple of what it reads beside the rows.
        number: so many of them, the first ones, take a gradient.
        shapes: inputs -> new tensors like the result and what is saved.
        backends: ``Kernels`` of each backend, or the name of the module that has the functions
            ``forward`` and ``backward``, which is imported when it is needed.

    Returns:
        (inputs, rows, name of a backend) -> result.
    """
    hints = get_type_hints(kind)
    tensors = sum(TYPES[hint].startswith("Tensor") for hint in hints.values())
    fields = [f"{TYPES[hint]} {field}" for field, hint in hints.items()]
    fields.insert(tensors, "Tensor offsets")
    schema = ", ".join([*fields, "SymInt longest", "str backend"])

    def unpacked(values: tuple[Any, ...]) -> tuple[Any, Any, Rows]:
        kernels = backends[kernel_backend(values[-1], values[0])]
        if isinstance(kernels, str):
            kernels = importlib.import_module(kernels)  # type: ignore[assignment]
        inputs = kind(*values[:tensors], *values[tensors + 1 : -2])
        return kernels, inputs, Rows(values[tensors], values[-2])

    def forward(*values: Any) -> tuple[Tensor, Tensor]:
        kernels, inputs, rows = unpacked(values)
        with torch.autocast(inputs[0].device.type, enabled=False):
            result, saved = kernels.forward(inputs, rows)
        return result, saved

    def forward_shapes(*values: Any) -> tuple[Tensor, Tensor]:
        return shapes(kind(*values[:tensors], *values[tensors + 1 : -2]))

    def backward(grad: Tensor, result: Tensor, saved: Tensor, *values: Any) -> tuple[Tensor, ...]:
        kernels, inputs, rows = unpacked(values)
        with torch.autocast(grad.device.type, enabled=False):
            grads = kernels.backward(grad, result, saved, inputs, rows)
        return tuple(grad.new_empty(0) if x is None else x for x in grads)

    def backward_shapes(grad: Tensor, *values: Any) -> tuple[Tensor, ...]:
        inputs = values[2 : 2 + number]
        return tuple(grad.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs)

    gradients = ", ".join(["Tensor"] * number)
    backward_schema = f"(Tensor grad, Tensor result, Tensor saved, {schema}) -> ({gradients})"
    backward_op = register(f"{name}_backward", backward_schema, backward, backward_shapes)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output, *inputs[: tensors + 1])
        ctx.settings = inputs[tensors + 1 :]

    def differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        values = ctx.saved_tensors
        grads = backward_op(grad, *values, *ctx.settings)
        present = [None if x is None else g for x, g in zip(values[2:], grads, strict=False)]
        return (*present, *[None] * (len(fields) + 2 - number))

    op = register(
        name, f"({schema}) -> (Tensor, Tensor)", forward, forward_shapes, save, differentiate
    )

    def call(inputs: Any, rows: Rows, backend: str) -> Tensor:
        settings = *inputs[tensors:], rows.longest, backend
        result: Tensor = op(*inputs[:tensors], rows.offsets, *settings)[0]
        return result

    return call
