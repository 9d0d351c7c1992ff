"""The simulated shop as a data set: no download, and its best possible hit rate is known."""

from typing import Any

from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.preprocess import Sequences, preprocess
from sigma.datamodules.simulator import Shop


class Simulated(SequenceDataModule):
    """Sequences of a ``Shop``; built anew at each start, in less time than a cache would save.

    Args:
        shop: what to simulate; None is the default shop.
        options: of ``SequenceDataModule``, but for ``path``.
    """

    def __init__(self, shop: Shop | None = None, **options: Any) -> None:
        super().__init__(**options)
        if self.path is not None:
            raise ValueError("a simulated shop reads no file: leave path out, or use Custom")
        self.shop = shop or Shop()

    def build(self) -> Sequences:
        purchases = self.shop.interactions()
        total = len(purchases)  # they are used up
        sequences = preprocess(purchases, *self.filters)
        self.survivors = len(sequences.items) / total
        return sequences

    def achievable_hit_rate(self, k: int = 10, split: str = "test") -> float | None:
        """Best HR@k that any model can expect on ``val`` or ``test``.

        By the full history, so a model that sees ``max_length`` items has a little less to reach.
        None where settings change the process that the shop knows: duplicates dropped, history
        masked, or over 2 % of the data filtered away.
        """
        positions = {"val": self.split.val, "test": self.split.test}[split]
        if self.duplicates != "keep" or self.survivors < 0.98:
            return None
        return self.shop.achievable(self.sequences, positions, k)
