"""A data set that comes split: a file each for training, validation and test."""

import re
from pathlib import Path

from sigma.errors import UserError, listed

PARTS = {  # words in the names of a split's own files
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def split_files(path: object) -> list[Path]:
    """The files of a folder that hold training, validation and test, told by their names.

    Raises:
        UserError: a part has no file, or several.
    """
    folder = Path(str(path)).expanduser()
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
