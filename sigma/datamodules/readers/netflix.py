"""The Netflix Prize: a film's number and a colon, below it its ratings ``user,rating,date``.

``combined_data_1.txt`` … ``combined_data_4.txt`` hold thousands of films each, ``mv_0000001.txt`` …
of the original ``training_set`` one.
"""

import re
from pathlib import Path

from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers.stream import Columns, read_delimited


def is_heading(line: str) -> bool:
    return re.fullmatch(r"\d+:", line.strip()) is not None


def read_netflix(path: Path, info: Path | None = None, malformed: str = "error") -> Interactions:
    """Ratings in the order of the file; dates (days) become seconds."""
    names = ("user", "rating", "date", "item")
    columns = Columns("user", "item", "date")
    return read_delimited(path, columns, ",", names, quoted=False, malformed=malformed, headed=True)
