"""Every model under PyTorch's compiler and its export, and steps that wait for nothing."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sigma.capture import Inputs
from sigma.losses import BPR, CrossEntropy
from sigma.ops import Rows
from tests.models import checks


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in checks.WAYS if name in checks.TRAINED])
def test_compiles_once_for_all_sizes(name: str) -> None:
    """``task.compile=true``: states and gradients are those without.

    Of a few the gradient is traced, too, which takes long; they have all operations among them.
    """
    model = checks.without_dropout(name).double()
    torch.compiler.reset()
    backend = "aot_eager" if name in ("sigma", "sasrec", "linrec", "sigma_released") else "eager"
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for i, lengths in enumerate((checks.LENGTHS, (3, 9, 7), (4, 1, 6, 9, 2))):
        items, rows = checks.batch(lengths)
        with torch.compiler.set_stance("default" if i == 0 else "fail_on_recompile"):
            states = compiled(items, rows, checks.ends(rows))
        # The compiled graph comes second, since it is not retained.
        checks.assert_same(model, checks.last_states(model, items, rows), states)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"), [*((name, {}) for name in checks.WAYS), *checks.SWITCHED], ids=str
)
def test_exports_for_all_sizes(name: str, settings: dict[str, Any]) -> None:
    model = checks.build(name, **settings)
    sizes = {0: torch.export.Dim.DYNAMIC}
    items, rows = checks.batch()
    exported = torch.export.export(
        model,
        (items, rows, checks.ends(rows)),
        dynamic_shapes=(sizes, Rows(sizes, None, sizes, sizes), sizes),
    )
    for lengths in (checks.LENGTHS, (3, 9, 7), (4, 1, 6, 9, 2)):
        items, rows = checks.batch(lengths)
        got = exported.module()(items, rows, checks.ends(rows))
        torch.testing.assert_close(got, checks.last_states(model, items, rows))


# --- a step waits for nothing ---


def shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in tree_leaves(value) if isinstance(x, Tensor)]


class Calls(TorchDispatchMode):
    """Every operation called, with the shapes it is given and returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "sigma":
            # Elsewhere: within a mode such as this one it could not use ``torch.func``.
            with ThreadPoolExecutor(1) as pool:
                out = pool.submit(torch.no_grad()(func), *args, **(kwargs or {})).result()
        else:
            out = func(*args, **(kwargs or {}))
        self.seen.append((str(func), shapes(args), shapes(out)))
        return out


WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "loss"),
    [
        *((*pair, CrossEntropy) for pair in checks.EVERY_TRAINED),
        ("sigma", {}, BPR),
        ("bert4rec", {}, BPR),
    ],
    ids=str,
)
def test_a_step_calls_the_same_operations_whatever_the_lengths(
    name: str, settings: dict[str, Any], loss: type[nn.Module]
) -> None:
    """So it can be captured on CUDA: no shape depends on the data, and nothing asks the device.

    Operations of ``sigma.ops`` count as one each.
    """
    model = checks.built(name, **settings)
    losses, results = loss(torch.ones(checks.K, dtype=torch.int64)), []
    for lengths in (checks.LENGTHS, (4, 4, 6, 3), (1, 1, 6, 9)):
        items, rows = checks.batch(lengths)
        items = F.pad(items, (0, 1))
        rows = checks.timed(rows, len(items))
        inputs = Inputs(items, rows, checks.ends(rows), checks.TARGETS, (items, rows))
        with Calls() as calls:
            torch.autograd.grad(
                checks.step_loss(model, inputs, losses), list(model.parameters()), allow_unused=True
            )
        results.append(calls.seen)
    assert results[0] == results[1] == results[2]
    called = {name.split(".")[1] for name, *_ in results[0]}
    assert not called.intersection(WAITS)
