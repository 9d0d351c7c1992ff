"""The machinery every data set shares: find, read, preprocess, cache, split, batch."""

from pathlib import Path

import lightning as L
import torch

from sigma.datamodules.batches import BatchLoader, FlatSequences
from sigma.datamodules.interactions import Interactions
from sigma.datamodules.objectives import NextItem
from sigma.datamodules.preprocess import Sequences, preprocess
from sigma.datamodules.splits import Split, global_time, leave_one_out
from sigma.errors import UserError


class SequenceDataModule(L.LightningDataModule):
    """Base of every data set; a subclass says only what differs.

    Args:
        path: local file or folder with the raw data; None looks in ``root`` and downloads.
        root: folder of downloads and processed data.
        max_length: L, the number of last items a model sees.
        batch_size: training samples per step, over all processes.
        eval_batch_size: users per evaluation step.
        user_bounds: [lower, upper) on a user's interactions, None for no bound.
        item_bounds: the same for items.
        drop_duplicates: keep only the first interaction of a user with an item.
        split: ``leave_one_out`` or ``global_time``.
        val_fraction: share of interactions in validation, for ``global_time``.
        test_fraction: share of interactions in test, for ``global_time``.
        mask_history: leave a user's history out of the ranking (the paper does not).
        trim: cut each batch to its longest row (only for models that padding does not change).
        seed: of the training order.
        objective: which samples an epoch holds; None is ``NextItem``.
    """

    def __init__(
        self,
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
        trim: bool = True,
        seed: int = 2020,
        objective: NextItem | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.root = Path(root)
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
        self.trim = trim
        self.seed = seed
        self.objective = objective or NextItem()
        self.sequences: Sequences | None = None
        self.split: Split | None = None

    def read(self) -> Interactions:
        """Raw data -> interactions; the one thing a data set must say."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if self.sequences is not None:
            return
        self.sequences = preprocess(
            self.read(), self.user_bounds, self.item_bounds, self.drop_duplicates
        )
        if self.split_name == "leave_one_out":
            self.split = leave_one_out(self.sequences)
        elif self.split_name == "global_time":
            self.split = global_time(self.sequences, self.val_fraction, self.test_fraction)
        else:
            raise UserError(
                f"Unknown dataset.split '{self.split_name}'; choose leave_one_out or global_time."
            )
        self.flat = FlatSequences(
            torch.from_numpy(self.sequences.items),
            torch.from_numpy(self.sequences.offsets),
            self.max_length,
        )

    @property
    def num_items(self) -> int:
        assert self.sequences is not None
        return self.sequences.num_items

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def train_dataloader(self) -> BatchLoader:
        assert self.sequences is not None and self.split is not None
        rank, world_size = self._rank()
        positions = torch.from_numpy(self.objective.train_positions(self.sequences, self.split))
        return BatchLoader(
            self.flat, positions, self.batch_size, True, self.seed, rank, world_size, self.trim
        )

    def _evaluation_loader(self, positions: torch.Tensor) -> BatchLoader:
        rank, world_size = self._rank()
        return BatchLoader(
            self.flat,
            positions[rank::world_size],
            self.eval_batch_size,
            trim=self.trim,
            mask_history=self.mask_history,
        )

    def val_dataloader(self) -> BatchLoader:
        assert self.split is not None
        return self._evaluation_loader(torch.from_numpy(self.split.val))

    def test_dataloader(self) -> BatchLoader:
        assert self.split is not None
        return self._evaluation_loader(torch.from_numpy(self.split.test))
