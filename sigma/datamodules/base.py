"""The machinery every data set shares: locate, read, preprocess, cache, split, batch."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import lightning as L
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sigma.arguments import Count, Name, checked
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
from sigma.datamodules.preprocess import Duplicates, Sequences, preprocess
from sigma.datamodules.readers.read import Reading
from sigma.datamodules.readers.text import readable
from sigma.datamodules.split_files import split_files
from sigma.datamodules.splits import Moment, Split, Targets, by_files, global_time, leave_one_out
from sigma.datamodules.statistics import DatasetStatistics, Expected, describe
from sigma.errors import UserError

log = logging.getLogger(__name__)

Bound = Annotated[int, Field(ge=0)] | None
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Role = Literal["user", "item", "timestamp", "names"]


class SequenceDataModule(L.LightningDataModule):
    """Base of every data set; a subclass says only what differs.

    Args:
        name: of the data set, as in run folders and tables.
        path: local file, folder, archive or pattern with the raw data, in any format of
            ``formats.py``, or a list of these; None looks in ``root/<name>`` and downloads into it.
        root: folder of downloads and processed data.
        max_length: L, the number of last items a model sees.
        batch_size: rows of the objective (samples, or windows of histories) per training step, over
            all processes.
        eval_batch_size: users per evaluation step.
        user_bounds, item_bounds: [lower, upper) on a user's (item's) interactions.
        duplicates: which of a user's interactions with the same item stay, see ``preprocess``.
        float32_times: order by times rounded to float32, as RecBole does; None and False do not.
        split: ``leave_one_out``, ``global_time``, or ``files`` where ``path`` is a folder of a file
            each for training, validation and test, which are taken as they are.
        val_fraction, test_fraction: shares of the interactions, for ``global_time``.
        val_start, test_start: moments in place of these shares: ISO dates, or times of the data.
        targets: what of a user's validation and test is asked for; see ``splits``.
        train_on_val: train on the validation, too, for a final model; nothing is validated then.
        seed: of the training order.
        columns: names of a table's columns; those left out are recognised by their usual names.
            ``names`` are those of all columns, in order, of a table without a header.
        delimiter: between the fields of a table in text; None finds it.
        encoding: of text; None is UTF-8, or UTF-16 where the file says so.
        time_format: how times are written, such as ``%d.%m.%Y %H:%M``; None recognises them.
        where: keeps the interactions of which this SQL condition on columns holds.
        malformed: ``error`` refuses a file with a malformed line; ``skip`` leaves such lines out
            and says so.
        max_malformed: share of the lines (10 at least) that may be left out so.
        missing: ``error`` refuses a file with a user, item or time that is missing; ``drop``
            leaves such lines out and says so.
        objective: which samples an epoch holds; None is ``NextItem``.

    Raises:
        ValueError: an argument out of its range.
    """

    files: tuple[str, ...] = ()  # names the raw file may have, the best first
    sources: tuple[Source, ...] = ()  # where to download it
    absent = (  # the sentence for when there are none
        "The data set {name} is not downloaded by itself; put its file into {folder}, or name a "
        "local copy with dataset.path=."
    )
    expected: Expected | None = None

    @checked
    def __init__(
        self,
        name: Name = "",
        path: str | Path | list[str] | None = None,
        root: str | Path = "data",
        max_length: Count = 50,
        batch_size: Count = 2048,
        eval_batch_size: Count = 4096,
        user_bounds: tuple[Bound, Bound] = (5, None),
        item_bounds: tuple[Bound, Bound] = (5, None),
        duplicates: Duplicates = "keep",
        float32_times: bool | None = None,
        split: Literal["leave_one_out", "global_time", "files"] = "leave_one_out",
        val_fraction: Fraction = 0.1,
        test_fraction: Fraction = 0.1,
        val_start: Moment | None = None,
        test_start: Moment | None = None,
        targets: Targets = "successive",
        train_on_val: bool = False,
        seed: int = 2020,
        columns: Mapping[Role, str | int | list[str] | None] | None = None,
        delimiter: str | None = None,
        encoding: str | None = None,
        time_format: str | None = None,
        where: str | None = None,
        malformed: Literal["error", "skip"] = "error",
        max_malformed: Share = 0.01,
        missing: Literal["error", "drop"] = "error",
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        if path is not None and not str(path).strip("[] "):
            raise ValueError("path is empty; give a file, or None for the data set's own")
        if (val_start is None) != (test_start is None):
            raise ValueError("val_start and test_start go together; give both, or neither")
        if val_start is not None and split != "global_time":
            raise ValueError(f"val_start and test_start need split=global_time, not {split}")
        if targets != "successive" and split == "leave_one_out":
            raise ValueError(f"targets={targets} needs split=global_time or files, not {split}")
        self.name: str = name or type(self).__name__.lower()
        self.path = path
        self.root = Path(root).expanduser()
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.user_bounds = user_bounds
        self.item_bounds = item_bounds
        self.duplicates = duplicates
        self.filters = (user_bounds, item_bounds, duplicates, float32_times)
        self.split_name = split
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.moments = (val_start, test_start)
        self.targets: Targets = targets
        self.train_on_val = train_on_val
        self.seed = seed
        given = {str(k): v for k, v in (columns or {}).items() if v is not None}
        names = given.pop("names", None)
        if isinstance(names, str | int):
            raise ValueError(f"columns.names={names} is no list; give '[user,item,timestamp]'")
        self.reading = Reading(
            {role: str(name) for role, name in given.items()},
            None if names is None else tuple(map(str, names)),
            *(delimiter, encoding, time_format, where, malformed, missing, max_malformed),
        )
        self.objective = objective or NextItem()

    def raw(self) -> RawData:
        """The raw file: ``path``, or what lies in ``root/<name>``, or a download into it."""
        folder, unpack = self.root / self.name, self.root / "unpacked" / self.name
        if self.split_name == "files":
            return RawData(split_files(self.path or folder), split=True)
        if self.path is None and not (folder.is_dir() and search(folder, self.files)):
            if not self.sources:
                raise UserError(self.absent.format(name=self.name, folder=folder.absolute()))
            download(self.name, self.sources, folder)
        return locate(self.path or folder, unpack, self.files, self.reading)

    def build(self) -> Sequences:
        """Raw data to sequences, from the cache under ``root/processed`` if it holds them."""
        raw = self.raw()
        with readable(raw.path):
            shape = [asdict(self.reading), *self.filters, *["split"] * raw.split]
            key = cache_key(raw.all_files, shape)
        folder = self.root / "processed"
        cached = folder / f"{self.name}-{key}.arrow"
        sequences = load(cached, key)
        if sequences is None:
            sequences = preprocess(raw.read(self.reading, folder), *self.filters)
            save(cached, key, sequences)
        if sequences.skipped is not None:
            log.warning(sequences.skipped.sentence(raw.path))
        return sequences

    def prepare_data(self) -> None:
        """Download and process on one process, so that the others find the result."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read, filter and split the data, unless it is.

        Raises:
            UserError: no data, data that cannot be read, or too little of it.
        """
        _ = self.flat

    @cached_property
    def sequences(self) -> Sequences:
        return self.build()

    @cached_property
    def split(self) -> Split:
        options = (self.targets, self.train_on_val)
        match self.split_name:
            case "leave_one_out":
                split = leave_one_out(self.sequences, self.train_on_val)
            case "global_time":
                fractions = (self.val_fraction, self.test_fraction)
                split = global_time(self.sequences, *fractions, *self.moments, *options)
            case _:
                split = by_files(self.sequences, *options)
        val = len(split.val) or self.train_on_val
        if not (len(split.samples) and val and len(split.test)):
            raise UserError(
                f"{self.name} split by {self.split_name} leaves no samples to train, validate and "
                "test on; raise dataset.user_bounds until some user has four interactions, change "
                "the fractions of global_time, or take more data."
            )
        return split

    @cached_property
    def statistics(self) -> DatasetStatistics:
        """Counts of the data, beside those expected."""
        return describe(self.name, self.sequences, self.split, self.expected)

    @cached_property
    def flat(self) -> FlatSequences:
        mismatch = self.statistics.mismatch()
        if mismatch is not None:
            log.warning(mismatch)
        items, offsets = self.sequences.items, self.sequences.offsets
        return FlatSequences(torch.from_numpy(items), torch.from_numpy(offsets), self.max_length)

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
        background = device.type == "cuda"  # where ``pinned`` has been before
        copies = (x.to(device, non_blocking=background) for x in tensors_of(batch))
        moved: Batch = with_tensors(batch, copies)
        return moved

    def training_histories(self) -> tuple[Tensor, Tensor]:
        """What training may see: items (n,), users one after the other, offsets (users + 1,)."""
        seen, start = self.split.seen(self.sequences), 0
        items = np.empty(len(seen), dtype=np.int32)
        for some in seen.parts():
            items[start : start + len(some)] = self.sequences.items[some]
            start += len(some)
        return torch.from_numpy(items), torch.from_numpy(np.concatenate([[0], seen.ends]))

    def item_counts(self) -> Tensor:
        """Training interactions (K,) int64 of items 1 … K."""
        counts = np.zeros(self.num_items + 1, dtype=np.int64)
        for some in self.split.seen(self.sequences).parts():
            counts += np.bincount(self.sequences.items[some], minlength=len(counts))
        return torch.from_numpy(counts[1:])

    def train_dataloader(self) -> BatchLoader:
        rows = self.objective.setup(self.sequences, self.split, self.max_length)

        def make(some: Tensor, generator: torch.Generator) -> Batch:
            return self._for_device(self.objective.batch(self.flat, some, generator))

        return BatchLoader(make, rows, self.batch_size, True, self.seed, *self._rank())

    def _evaluation_loader(self, positions: np.ndarray) -> BatchLoader:
        rank, world_size = self._rank()

        def make(some: Tensor, _: torch.Generator) -> Batch:
            batch = self.flat.batch(some, evaluates=True)
            return self._for_device(self.objective.evaluation(batch, self.num_items))

        rows = torch.from_numpy(positions)[rank::world_size]
        return BatchLoader(make, rows, self.eval_batch_size)

    def val_dataloader(self) -> BatchLoader:
        return self._evaluation_loader(self.split.val)

    def test_dataloader(self) -> BatchLoader:
        return self._evaluation_loader(self.split.test)
