"""A small task and batches for it."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sigma.capture import Inputs
from sigma.datamodules.batches import Batch, FlatSequences
from sigma.losses import CrossEntropy
from sigma.models.base import Model
from sigma.models.mamba import Mamba
from sigma.models.sigma import Sigma
from sigma.ops import Rows
from sigma.task import SequenceTask

COUNTS = torch.ones(20, dtype=torch.int64)


def flat(users: int = 100) -> FlatSequences:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 25, (users,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    items = torch.randint(1, 21, (int(offsets[-1]),), generator=generator, dtype=torch.int32)
    return FlatSequences(items, offsets, 12)


def batch() -> Batch:
    data = flat()
    return data.batch(data.offsets[1:] - 1, evaluates=True)


def inputs(data: Batch) -> Inputs:
    return Inputs(data.items, data.rows, data.places, data.targets, data.twins)


def small_sigma() -> Sigma:
    torch.manual_seed(0)
    mamba = functools.partial(Mamba, state_size=4)
    return Sigma(20, mamba=mamba, hidden_size=8, dropout=0.0, r=2).double()


def small_task(model: Model | None = None, **options: object) -> SequenceTask:
    adam = functools.partial(torch.optim.Adam, lr=1e-3)
    parts = {"optimizer": adam, "loss": CrossEntropy(COUNTS)} | options
    return SequenceTask(model or small_sigma(), **parts)  # type: ignore[arg-type]


def attach(task: SequenceTask, monkeypatch: pytest.MonkeyPatch, **trainer: object) -> None:
    """A stand-in for a trainer."""
    settings = {"world_size": 1, "precision": "32-true", "gradient_clip_val": None} | trainer
    task.trainer = SimpleNamespace(**settings)  # type: ignore[assignment]
    monkeypatch.setattr(task, "log", lambda *_, **__: None)


class Fixed(Model):
    """Scores all items alike."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        return torch.zeros(len(places), 3) + self.weight

    def logits(self, states: Tensor, items: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return states.sum(1, keepdim=True).expand(-1, 20)
