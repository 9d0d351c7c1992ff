"""LFM-1b's listening events, ``LFM-1b_LEs.txt``: numbers between tabs, no header."""

from collections.abc import Mapping
from pathlib import Path

from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers.stream import read_delimited
from sigma.datamodules.readers.table import choose_columns

FIELDS = ("user_id", "artist_id", "album_id", "track_id", "timestamp")


def read_listening_events(
    path: Path, columns: Mapping[str, str | None] | None = None, malformed: str = "error"
) -> Interactions:
    """Items are tracks unless ``columns`` names another field for them."""
    names = choose_columns(FIELDS, columns, path)
    return read_delimited(path, names, "\t", FIELDS, quoted=False, malformed=malformed)
