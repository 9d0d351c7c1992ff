"""Registering an operation with PyTorch, so that compile, export and capture see it as one."""

from collections.abc import Callable
from typing import Any

import torch

# Lives as long as the module: operations end with their library.
LIBRARY = torch.library.Library("sigma", "FRAGMENT")


def register(
    function: Callable[..., Any],
    fake: Callable[..., Any],
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """``function`` as the operation ``sigma::<its name>``.

    Args:
        function: on tensors of any device; its annotations are the schema, and it returns new
            tensors. It runs below autograd and may use ``torch.func``.
        fake: the result's shapes and types, from the same arguments.
        save: (ctx, inputs, output), keeps what ``backward`` needs.
        backward: (ctx, *gradients of the output) -> gradients of the inputs.
    """
    name = function.__name__
    LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
    LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sigma::{name}", fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"sigma::{name}", backward, setup_context=save, lib=LIBRARY)
    return getattr(torch.ops.sigma, name).default
