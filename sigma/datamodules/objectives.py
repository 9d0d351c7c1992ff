"""Objectives: which samples an epoch holds and what is predicted from each."""

import numpy as np

from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.splits import Split


class NextItem:
    """The paper's objective: every item of a history is predicted once from all items before it."""

    def train_positions(self, data: Sequences, split: Split) -> np.ndarray:
        """Target positions (samples,) of one training epoch."""
        return split.train
