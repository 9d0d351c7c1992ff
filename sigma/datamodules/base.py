"""The machinery every data set shares: locate, read, preprocess, cache, split, batch."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import lightning as L
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sigma.arguments import Count, checked
from sigma.datamodules.batches import (
    Batch,
    BatchLoader,
    FlatSequences,
    filled,
    pinned,
    tensors_of,
    with_tensors,
)
from sigma.datamodules.cache import cache_key, load, save
from sigma.datamodules.download import Source, download
from sigma.datamodules.formats import RawData
from sigma.datamodules.locate import locate, search
from sigma.datamodules.objectives import NextItem, Objective
from sigma.datamodules.preprocess import Sequences, preprocess
from sigma.datamodules.readers.lines import readable
from sigma.datamodules.splits import Split, global_time, leave_one_out
from sigma.datamodules.statistics import DatasetStatistics, Expected, describe
from sigma.errors import UserError

log = logging.getLogger(__name__)

Bound = Annotated[int, Field(ge=0)] | None
Fraction = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class Prepared:
    """What a data module is once its data is ready."""

    sequences: Sequences
    split: Split
    flat: FlatSequences


class SequenceDataModule(L.LightningDataModule):
    """Base of every data set; a subclass says only what differs.

    Class attributes a data set sets: ``files``, the names its raw file may have, the best first;
    ``sources``, where to download it; ``missing``, the sentence for when there are none;
    ``expected``, the counts it should have.

    Args:
        name: of the data set, as in run folders and tables.
        path: local file, folder or zip with the raw data, in any format of ``formats.py``; None
            looks in ``root/<name>`` and downloads into it.
        root: folder of downloads and processed data.
        max_length: L, the number of last items a model sees.
        batch_size: rows of the objective (samples, or windows of histories) per training step, over
            all processes.
        eval_batch_size: users per evaluation step.
        user_bounds: [lower, upper) on a user's interactions, None for no bound.
        item_bounds: the same for items.
        drop_duplicates: keep only the first interaction of a user with an item.
        split: which of ``splits.py``.
        val_fraction: share of interactions in validation, for ``global_time``.
        test_fraction: share of interactions in test, for ``global_time``.
        mask_history: leave a user's history out of the ranking (the paper does not).
        seed: of the training order.
        columns: names of the ``user``, ``item`` and ``timestamp`` columns of a table; those left
            out are recognised by their usual names.
        malformed: ``error`` refuses a file of text with a malformed line; ``skip`` leaves such
            lines out and says so, up to 1 % of the lines (or 10). Parquet has no lines.
        objective: which samples an epoch holds; None is ``NextItem``.

    Raises:
        ValueError: an argument out of its range.
    """

    files: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    missing: str = (
        "The data set {name} is not downloaded by itself; put its file into {folder}, or name a "
        "local copy with dataset.path=."
    )
    expected: Expected | None = None

    @checked
    def __init__(
        self,
        name: str = "",
        path: str | Path | None = None,
        root: str | Path = "data",
        max_length: Count = 50,
        batch_size: Count = 2048,
        eval_batch_size: Count = 4096,
        user_bounds: tuple[Bound, Bound] = (5, None),
        item_bounds: tuple[Bound, Bound] = (5, None),
        drop_duplicates: bool = False,
        split: Literal["leave_one_out", "global_time"] = "leave_one_out",
        val_fraction: Fraction = 0.1,
        test_fraction: Fraction = 0.1,
        mask_history: bool = False,
        seed: int = 2020,
        columns: Mapping[Literal["user", "item", "timestamp"], str | int | None] | None = None,
        malformed: Literal["error", "skip"] = "error",
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        if path is not None and not str(path).strip():
            raise ValueError("path is empty; give a file, or None for the data set's own")
        self.name: str = name or type(self).__name__.lower()
        self.path = None if path is None else Path(path).expanduser()
        self.root = Path(root).expanduser()
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.user_bounds = user_bounds
        self.item_bounds = item_bounds
        self.drop_duplicates = drop_duplicates
        self.split_name = split
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.mask_history = mask_history
        self.seed = seed
        columns = columns or {}
        self.columns = {str(role): str(name) for role, name in columns.items() if name is not None}
        self.malformed = malformed
        self.objective = objective or NextItem()

    def raw(self) -> RawData:
        """The raw file: ``path``, or what lies in ``root/<name>``, or a download into it.

        Raises:
            UserError: there is none and none can be had; says which file to put where.
        """
        folder = self.root / self.name
        unpack = self.root / "unpacked" / self.name
        if self.path is not None:
            return locate(self.path, unpack, self.files, self.columns)
        if not folder.is_dir() or search(folder, self.files) is None:
            if not self.sources:
                raise UserError(self.missing.format(name=self.name, folder=folder.absolute()))
            download(self.name, self.sources, folder)
        return locate(folder, unpack, self.files, self.columns)

    def build(self) -> Sequences:
        """Raw data -> sequences, from the cache under ``root/processed`` if it holds them."""
        raw = self.raw()
        filters = (self.user_bounds, self.item_bounds, self.drop_duplicates)
        with readable(raw.path):
            key = cache_key(raw.files, [raw.format, self.columns, self.malformed, *filters])
        cached = self.root / "processed" / f"{self.name}-{key}.arrow"
        sequences = load(cached, key)
        if sequences is None:
            sequences = preprocess(raw.read(self.columns, self.malformed), *filters)
            save(cached, key, sequences)
        if sequences.skipped is not None:
            log.warning(sequences.skipped.sentence(raw.path))
        return sequences

    def prepare_data(self) -> None:
        """Download and process on one process, so that the others find the result."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Prepare the data, unless it is.

        Raises:
            UserError: no data, data that cannot be read, or too little of it.
        """
        _ = self.prepared

    @cached_property
    def prepared(self) -> Prepared:
        """The data read, filtered and split; ``setup`` makes it."""
        sequences = self.build()
        if self.split_name == "leave_one_out":
            split = leave_one_out(sequences)
        else:
            split = global_time(sequences, self.val_fraction, self.test_fraction)
        if not (len(split.train) and len(split.val) and len(split.test)):
            raise UserError(
                f"{self.name} leaves no samples to train, validate and test on: some user needs "
                "four interactions or more; raise dataset.user_bounds or take more data."
            )
        items, offsets = torch.from_numpy(sequences.items), torch.from_numpy(sequences.offsets)
        mismatch = describe(self.name, sequences, split, self.expected).mismatch()
        if mismatch is not None:
            log.warning(mismatch)
        return Prepared(sequences, split, FlatSequences(items, offsets, self.max_length))

    @property
    def sequences(self) -> Sequences:
        return self.prepared.sequences

    @property
    def split(self) -> Split:
        return self.prepared.split

    @property
    def flat(self) -> FlatSequences:
        return self.prepared.flat

    @property
    def statistics(self) -> DatasetStatistics:
        """Counts of the data, beside those expected."""
        return describe(self.name, self.sequences, self.split, self.expected)

    @property
    def num_items(self) -> int:
        return self.sequences.num_items

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _for_device(self, batch: Batch) -> Batch:
        """For CUDA of one of a few sizes, and where it can be copied from in the background."""
        if self.trainer is None or self.trainer.strategy.root_device.type != "cuda":
            return batch
        return pinned(filled(batch))

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """At once, where Lightning would look into every part of it."""
        copies = (x.to(device, non_blocking=True) for x in tensors_of(batch))
        moved: Batch = with_tensors(batch, copies)
        return moved

    def training_histories(self) -> tuple[Tensor, Tensor]:
        """What training may see: items (n,), users one after the other, offsets (users + 1,)."""
        starts, stops = self.sequences.offsets[:-1], self.sequences.offsets[1:]
        ends = self.split.train_end
        parts = np.stack([ends - starts, stops - ends], axis=1)
        seen = np.repeat(np.tile([True, False], len(starts)), parts.ravel())
        offsets = np.concatenate([[0], np.cumsum(parts[:, 0])])
        return torch.from_numpy(self.sequences.items[seen]), torch.from_numpy(offsets)

    def item_counts(self) -> Tensor:
        """Training interactions (K,) int64 of items 1 … K."""
        items, _ = self.training_histories()
        return torch.bincount(items, minlength=self.num_items + 1)[1:]

    def train_dataloader(self) -> BatchLoader:
        rows = self.objective.setup(self.sequences, self.split, self.max_length)

        def make(some: Tensor, generator: torch.Generator) -> Batch:
            return self._for_device(self.objective.batch(self.flat, some, generator))

        return BatchLoader(make, rows, self.batch_size, True, self.seed, *self._rank())

    def _evaluation_loader(self, positions: np.ndarray) -> BatchLoader:
        rank, world_size = self._rank()

        def make(some: Tensor, _: torch.Generator) -> Batch:
            batch = self.flat.batch(some, self.mask_history)
            return self._for_device(self.objective.evaluation(batch, self.num_items))

        rows = torch.from_numpy(positions)[rank::world_size]
        return BatchLoader(make, rows, self.eval_batch_size)

    def val_dataloader(self) -> BatchLoader:
        return self._evaluation_loader(self.split.val)

    def test_dataloader(self) -> BatchLoader:
        return self._evaluation_loader(self.split.test)
