"""Amazon Beauty, 2014 5-core: 22,363 users, 12,101 items, 198,502 interactions (the paper's)."""

from pathlib import Path

from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers.sequence_text import read_sequence_text


class Beauty(SequenceDataModule):
    def read(self) -> Interactions:
        return read_sequence_text(Path(str(self.path)))
