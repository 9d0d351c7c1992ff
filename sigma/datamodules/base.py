"""The machinery every data set shares: find, read, preprocess, cache, split, batch."""

import logging
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import numpy as np
import torch

from sigma.datamodules.batches import Batch, BatchLoader, FlatSequences, filled, pinned
from sigma.datamodules.cache import cache_key, load, save
from sigma.datamodules.download import Source, download
from sigma.datamodules.formats import RawData
from sigma.datamodules.locate import locate, search
from sigma.datamodules.objectives import NextItem, Objective
from sigma.datamodules.preprocess import Sequences, preprocess
from sigma.datamodules.readers.lines import readable
from sigma.datamodules.settings import check_settings
from sigma.datamodules.splits import Split, global_time, leave_one_out
from sigma.datamodules.statistics import DatasetStatistics, Expected, describe
from sigma.errors import UserError

log = logging.getLogger(__name__)


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
        split: ``leave_one_out`` or ``global_time``.
        val_fraction: share of interactions in validation, for ``global_time``.
        test_fraction: share of interactions in test, for ``global_time``.
        mask_history: leave a user's history out of the ranking (the paper does not).
        seed: of the training order.
        columns: names of the ``user``, ``item`` and ``timestamp`` columns of a table; those left
            out are told from their usual names.
        malformed: ``error`` refuses a file of text with a malformed line; ``skip`` leaves such
            lines out and says so, up to 1 % of the lines (or 10). Parquet has no lines.
        objective: which samples an epoch holds; None is ``NextItem``.
    """

    files: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    missing: str = (
        "The data set {name} is not downloaded by itself; put its file into {folder}, or name a "
        "local copy with dataset.path=."
    )
    expected: Expected | None = None

    def __init__(
        self,
        name: str = "",
        path: str | None = None,
        root: str = "data",
        max_length: int = 50,
        batch_size: int = 2048,
        eval_batch_size: int = 4096,
        user_bounds: tuple[int | None, int | None] = (5, None),
        item_bounds: tuple[int | None, int | None] = (5, None),
        drop_duplicates: bool = False,
        split: str = "leave_one_out",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        mask_history: bool = False,
        seed: int = 2020,
        columns: Mapping[str, str | None] | None = None,
        malformed: str = "error",
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.name: str = name or type(self).__name__.lower()
        self.columns = columns
        self.malformed = malformed
        self.path = path
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
        self.objective = objective or NextItem()
        self.sequences: Sequences | None = None
        self._item_counts: torch.Tensor | None = None
        self.split: Split | None = None

    def raw(self) -> RawData:
        """The raw file: ``path``, or what lies in ``root/<name>``, or a download into it.

        Raises:
            UserError: there is none and none can be had; says which file to put where.
        """
        folder = self.root / self.name
        unpack = self.root / "unpacked" / self.name
        if self.path is not None:
            return locate(Path(self.path), unpack, self.files, self.columns)
        if not folder.is_dir() or search(folder, self.files) is None:
            if not self.sources:
                raise UserError(self.missing.format(name=self.name, folder=folder.absolute()))
            download(self.name, self.sources, folder)
        return locate(folder, unpack, self.files, self.columns)

    def build(self) -> Sequences:
        """Raw data -> sequences, from the cache under ``root/processed`` if it holds them."""
        raw = self.raw()
        settings = {
            "format": raw.format,
            "columns": self.columns,
            "malformed": self.malformed,
            "user_bounds": self.user_bounds,
            "item_bounds": self.item_bounds,
            "drop_duplicates": self.drop_duplicates,
        }
        with readable(raw.path):
            key = cache_key(raw.files, settings)
        cached = self.root / "processed" / f"{self.name}-{key}.npz"
        sequences = load(cached, key)
        if sequences is None:
            interactions = raw.read(self.columns, self.malformed)
            sequences = preprocess(
                interactions, self.user_bounds, self.item_bounds, self.drop_duplicates
            )
            del interactions
            save(cached, key, sequences)
        if sequences.skipped is not None:
            log.warning(sequences.skipped.sentence(raw.path))
        return sequences

    def prepare_data(self) -> None:
        """Download and process on one process, so that the others find the result."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        if self.sequences is not None:
            return
        check_settings(self)
        sequences = self.build()
        if self.split_name == "leave_one_out":
            self.split = leave_one_out(sequences)
        else:
            self.split = global_time(sequences, self.val_fraction, self.test_fraction)
        if not (len(self.split.train) and len(self.split.val) and len(self.split.test)):
            raise UserError(
                f"{self.name} leaves no samples to train, validate and test on: some user needs "
                "four interactions or more; raise dataset.user_bounds or take more data."
            )
        self.sequences = sequences
        self.flat = FlatSequences(
            torch.from_numpy(sequences.items), torch.from_numpy(sequences.offsets), self.max_length
        )
        mismatch = self.statistics.mismatch()
        if mismatch is not None:
            log.warning(mismatch)

    @property
    def statistics(self) -> DatasetStatistics:
        """Counts of the data after ``setup()``, beside those expected."""
        assert self.sequences is not None
        assert self.split is not None
        return describe(self.name, self.sequences, self.split, self.expected)

    @property
    def num_items(self) -> int:
        assert self.sequences is not None
        return self.sequences.num_items

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _laid_out(self, batch: Batch) -> Batch:
        """For CUDA of one of a few sizes, and where it can be copied from in the background."""
        if self.trainer is None or self.trainer.strategy.root_device.type != "cuda":
            return batch
        return pinned(filled(batch))

    def training_histories(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What training may see: items (n,), users one after the other, offsets (users + 1,)."""
        assert self.sequences is not None
        assert self.split is not None
        starts, ends = self.sequences.offsets[:-1], self.split.train_end
        parts = np.stack([ends - starts, self.sequences.offsets[1:] - ends], axis=1)
        seen = np.repeat(np.tile([True, False], len(starts)), parts.ravel())
        offsets = np.concatenate([[0], np.cumsum(parts[:, 0])])
        return torch.from_numpy(self.sequences.items[seen]), torch.from_numpy(offsets)

    def item_counts(self) -> torch.Tensor:
        """Training interactions (K,) int64 of items 1 … K."""
        if self._item_counts is None:
            items, _ = self.training_histories()
            self._item_counts = torch.bincount(items, minlength=self.num_items + 1)[1:]
        return self._item_counts

    def train_dataloader(self) -> BatchLoader:
        assert self.sequences is not None
        assert self.split is not None
        rows = self.objective.setup(self.sequences, self.split, self.max_length)

        def make(chosen: torch.Tensor, generator: torch.Generator) -> Batch:
            return self._laid_out(self.objective.batch(self.flat, chosen, generator))

        return BatchLoader(make, rows, self.batch_size, True, self.seed, *self._rank())

    def _evaluation_loader(self, positions: torch.Tensor) -> BatchLoader:
        rank, world_size = self._rank()

        def make(chosen: torch.Tensor, _: torch.Generator) -> Batch:
            batch = self.flat.batch(chosen, self.mask_history)
            return self._laid_out(self.objective.evaluation(batch, self.num_items))

        return BatchLoader(make, positions[rank::world_size], self.eval_batch_size)

    def val_dataloader(self) -> BatchLoader:
        assert self.split is not None
        return self._evaluation_loader(torch.from_numpy(self.split.val))

    def test_dataloader(self) -> BatchLoader:
        assert self.split is not None
        return self._evaluation_loader(torch.from_numpy(self.split.test))
