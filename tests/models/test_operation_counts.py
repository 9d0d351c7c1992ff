"""Operations as RecBole 1.2.0's ``get_flops`` counts them, which the SIGMA authors' log prints.

One row of N = 50 items goes through the tests' slow computations, which the models equal; their
pieces count, by RecBole's rules and thop's, which it calls.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from tests.models import checks, slow, test_mamba4rec, test_sigma_released

N, D = 50, 64


class Operations:
    """Takes the place of the pieces of a slow computation."""

    def __init__(self) -> None:
        self.number = (N + 1) * D  # embeddings: the history's, and the item's that is scored

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        self.number += layer.weight.numel()  # biases and activations are free
        return x.new_zeros(len(layer.weight))

    def norm(self, x: Tensor, layer: nn.LayerNorm) -> Tensor:
        self.number += 2 * len(x)
        return x

    def conv(self, xs: list[Tensor], layer: nn.Conv1d, *args: object) -> list[Tensor]:
        self.number += len(xs) * layer.weight.numel()
        return xs

    def gru(self, xs: list[Tensor], layer: nn.GRU, bias: bool) -> list[Tensor]:
        assert not bias
        size = len(xs[0])
        # Three maps of input and state, with their sum; r ⊙, z ⊙, (1 - z) ⊙ and a sum.
        self.number += len(xs) * (3 * (2 * size * size + size) + 4 * size)
        return xs

    def mamba(self, xs: list[Tensor], layer: nn.Module) -> list[Tensor]:
        return xs  # free: its kernel reads the weights and calls none of its modules


def count(
    monkeypatch: pytest.MonkeyPatch, name: str, states: Callable[..., Any], **settings: object
) -> int:
    model = instantiate(
        checks.composed(name).model, num_items=9, hidden_size=D, _convert_="all", **settings
    )
    operations = Operations()
    for module in (slow, test_sigma_released, test_mamba4rec):
        for piece in ("linear", "norm", "conv", "gru", "mamba"):
            if hasattr(module, piece):
                monkeypatch.setattr(module, piece, getattr(operations, piece))
    states(model, torch.ones(N, dtype=torch.long))
    return operations.number


def released(monkeypatch: pytest.MonkeyPatch, name: str, **settings: object) -> int:
    options = dict(checks.composed(name).model) | settings

    def states(model: Any, row: Tensor) -> None:
        test_sigma_released.by_loops(model, row[None], torch.tensor([N]), options)

    return count(monkeypatch, name, states, **settings)


def test_rules_give_the_counts_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def mamba4rec(model: Any, row: Tensor) -> None:
        test_mamba4rec.row_states(model, row, N)

    assert count(monkeypatch, "mamba4rec_one_layer", mamba4rec) == 1_660_864  # log, cell 68
    unused = N * D * D  # the first of two products with W2
    # RecBole's own function on the released file without the line that cannot run, and on the
    # file as it was first published, which has no convolution and flips columns 0 … 94.
    assert released(monkeypatch, "sigma_released") + unused == 5_164_864
    first = test_sigma_released.UPLOADED
    assert released(monkeypatch, "sigma_released", **first) + unused == 4_550_464


@pytest.mark.parametrize("flipped_gate", ["forward", "none"])
def test_logged_sigma_has_the_logs_count(
    flipped_gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = released(monkeypatch, "sigma_logged", flipped_gate=flipped_gate)
    assert number == 3_526_464  # cells 34 to 62 and 66
    assert number - 2 * N * D * D == 3_116_864  # cell 64, without the gate's two maps


def test_logged_sigma_is_the_released_one_but_for_what_the_log_contradicts() -> None:
    logged, file = (dict(checks.composed(f"sigma_{name}").model) for name in ("logged", "released"))
    changes = {"name": "sigma_logged", "gate_dropout": 0.3} | test_sigma_released.LOGGED
    assert logged == file | changes
    assert logged["dropout"] == 0.2
