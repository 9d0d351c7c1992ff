"""A data set that comes split: a file each for training, validation and test."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sigma.datamodules.formats import RawData, Settings
from sigma.datamodules.interactions import Interactions, joined
from sigma.errors import UserError, listed

PARTS = {  # words in the names of a split's own files
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class SplitFiles:
    """Three raw files in one folder; otherwise like ``RawData``."""

    path: Path
    raw: tuple[RawData, ...]  # training, validation, test

    @classmethod
    def find(cls, folder: Path, recognise: Callable[[Path], RawData]) -> "SplitFiles":
        return cls(folder, tuple(map(recognise, split_files(folder))))

    @property
    def format(self) -> str:
        return "split " + ", ".join(raw.format for raw in self.raw)

    @property
    def files(self) -> list[Path]:
        return [file for raw in self.raw for file in raw.files]

    def read(self, columns: Settings = None, malformed: str = "error") -> Interactions:
        """All interactions, the files one after the other, with the part each is of."""
        files = [raw.read(columns, malformed) for raw in self.raw]
        parts = np.repeat(np.arange(len(files), dtype=np.int8), [len(file) for file in files])
        return replace(joined(files), parts=parts)


def split_files(folder: Path) -> list[Path]:
    """The files of a folder that hold training, validation and test, told by their names.

    Raises:
        UserError: a part has no file, or several.
    """
    if not folder.is_dir():
        raise UserError(
            f"dataset.split=files needs the folder of three files in dataset.path, and {folder} "
            "is none."
        )
    names = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    files = []
    for part, words in PARTS.items():
        fits = [p for p in names if set(re.split(r"[\W_]+", p.name.lower())) & set(words)]
        if len(fits) != 1:
            raise UserError(
                f"{folder} holds {len(fits) or 'no'} files of the {part} part: of all names one "
                f"must have the word '{part}', as in reviews.{part}.csv; it holds: "
                f"{listed((p.name for p in names), 80) or 'nothing'}."
            )
        files += fits
    return files
