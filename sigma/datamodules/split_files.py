"""A data set that comes split: a file each for training, validation and test."""

import re
from collections.abc import Sequence
from pathlib import Path

from sigma.errors import UserError, listed

PARTS = {  # words in the files' names
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def split_files(path: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """The files of training, validation and test: a folder's, told by their names, or a list of
    them in this order.

    Raises:
        UserError: a part has no file, or several.
    """
    if not isinstance(path, str | Path):
        files = tuple(Path(one).expanduser() for one in path)
        if len(files) != len(PARTS):
            raise UserError(
                "dataset.split=files needs the files of training, validation and test, in this "
                f"order, in dataset.path, which names {len(files)}."
            )
        for file in files:
            if not file.is_file():
                raise UserError(f"dataset.path={file} is no file; check the path.")
        return files
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"dataset.split=files needs the folder of three files in dataset.path, and {folder} "
            "is none; or give a list, 'dataset.path=[train.csv,val.csv,test.csv]'."
        )
    names = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    result: list[Path] = []
    for part, words in PARTS.items():
        fits = [p for p in names if set(re.split(r"[\W_]+", p.name.lower())) & set(words)]
        if len(fits) != 1:
            raise UserError(
                f"{folder} holds {len(fits) or 'no'} files of the {part} part: of all names one "
                f"must have the word '{part}', as in reviews.{part}.csv; it holds: "
                f"{listed((p.name for p in names), 80) or 'nothing'}."
            )
        result += fits
    return tuple(result)
