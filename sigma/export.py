"""A trained model as one file: ``python -m sigma.export run=<folder> out=model.pt2`` or model.onnx.

The file runs where this project is not: ``model.pt2`` with PyTorch alone (``torch.export.load``),
``model.onnx`` with onnxruntime alone. It is a program of ordinary operations with its weights, and
has the raw ids of the items and its settings beside it. Before it takes its name it is read back
and held to the model on histories of the test.

It reads items by number: 1 is the first id of the list, 0 is no item. Zeros may stand anywhere in a
row, before the history, behind it or within, and are left out; so may an item that the model does
not know. Of a row of zeros alone the scores mean nothing.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sigma
from sigma.datamodules.base import SequenceDataModule
from sigma.errors import UserError
from sigma.models.base import Model, title
from sigma.models.popularity import Popularity
from sigma.ops import Rows, padded, rows_of
from sigma.ops.plain import decompositions
from sigma.ranking.scores import scores
from sigma.recommend import TrainedRun, load
from sigma.runs.files import ROW, atomic_path
from sigma.runs.messages import explained
from sigma.runs.row import Row

FORMAT = 1
SETTINGS, ITEMS = "settings.json", "items.json"  # beside the program in a .pt2
USERS = 256  # of the test, whose scores are compared
TOLERANCE = 1e-5  # of a score, relative where it is above 1
LARGEST_ONNX = 2**31  # bytes: protobuf holds no more in a file


class Inputs(NamedTuple):
    """What the file reads, B histories.

    Attributes:
        items: (B, L) int64, numbers of a history's last items, oldest first; 0 is none.
        times: (B, L) int64 beside them, of a model that reads times.
        now: (B,) int64, the time to recommend for, of a model that reads it.
    """

    items: Tensor
    times: Tensor | None = None
    now: Tensor | None = None

    def named(self, rows: slice = slice(None)) -> dict[str, Tensor]:
        """Those that there are."""
        return {name: x[rows] for name, x in self._asdict().items() if x is not None}


class ExportedModel(nn.Module):
    """A model from a table of histories to scores (B, K), or to the k best and their numbers.

    Args:
        model: in evaluation.
        k: None for the scores of all items, column j of item j + 1.
        unseen: score -inf for the items of the row.
    """

    def __init__(self, model: Model, k: int | None = None, unseen: bool = False) -> None:
        super().__init__()
        self.model, self.k, self.unseen = model, k, unseen

    def forward(
        self, items: Tensor, times: Tensor | None = None, now: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Of ``Inputs``."""
        history = items
        if self.model.mask_token is not None:  # stands for the item to predict
            history = F.pad(items, (0, 1), value=self.model.mask_token)
        number, width = history.shape
        real = history > 0
        # A row without any item holds one that is none.
        real = real | (~real.any(1, keepdim=True) & (torch.arange(width) == 0))
        rows = rows_of(real.sum(1), width)
        place = torch.where(real.flatten(), real.flatten().cumsum(0) - 1, number * width)

        def packed(x: Tensor) -> Tensor:
            """(B, L) -> (T,) with T = B L: zeros behind the last row."""
            return x.new_zeros(number * width + 1).scatter(0, place, x.flatten())[:-1]

        ends = rows.offsets[1:] - 1
        if times is not None:
            packed_times = packed(times)
            after = None if now is None else packed_times.roll(-1).scatter(0, ends, now)
            rows = rows._replace(times=packed_times, next_times=after)
        states = self.model(packed(history), rows, ends)
        if isinstance(self.model, Popularity):  # whose ``logits`` look whether it has counted
            result = self.model.scores(states)
        else:
            result = scores(self.model, states)
        if self.unseen:
            seen = torch.zeros(number, result.shape[1] + 1, dtype=torch.bool)
            result = result.masked_fill(seen.scatter(1, items, True)[:, 1:], float("-inf"))
        if self.k is None:
            return result
        best, column = result.topk(min(self.k, result.shape[1]))
        return best, column + 1


def program(model: ExportedModel, inputs: Inputs) -> torch.export.ExportedProgram:
    """The model as a program of PyTorch's own operations, for any number of rows.

    Raises:
        UserError: the model has no such program.
    """
    inner = model.model
    if inner.counted and not isinstance(inner, Popularity):
        raise UserError(
            f"{title(inner)} looks its scores up in lists of as many entries as were counted, and "
            "an exported program has fixed shapes; use python -m sigma.recommend for it."
        )
    values = {name: torch.cat([x[:1]] * 5) for name, x in inputs.named().items()}
    shapes = {name: {0: torch.export.Dim("batch", min=1)} for name in values}
    width = inputs.items.shape[1] + 1
    with torch.no_grad():
        exported = torch.export.export(model, (), values, dynamic_shapes=shapes)
        exported = exported.run_decompositions(decompositions(width))
    ours = {str(n.target) for n in exported.graph.nodes if str(n.target).startswith("sigma.")}
    assert not ours, f"operations of this project are left: {ours}"
    return exported
