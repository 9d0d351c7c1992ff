"""The Yelp Open Dataset: ``yelp_academic_dataset_review.json``, names from ``…business.json``."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa

from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers.lines import open_raw, readable
from sigma.datamodules.readers.stream import Columns, read_json_lines
from sigma.errors import UserError


def read_yelp(path: Path, businesses: Path | None = None, malformed: str = "error") -> Interactions:
    """Reviews, one JSON object a line; ``date`` (no zone, read as UTC) becomes seconds."""
    columns = Columns("user_id", "business_id", "date")
    return read_json_lines(path, columns, pa.string(), _names(businesses), malformed)


def _names(path: Path | None) -> pd.DataFrame | None:
    if path is None:
        return None
    ids, titles, genres = [], [], []
    with readable(path), open_raw(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                ids.append(str(record["business_id"]))
                titles.append(record["name"])
                genres.append((record.get("categories") or "").replace(", ", "|"))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number}: not a business's record ({type(error).__name__}); "
                    "fetch the file again or remove it to go on without names."
                ) from error
    names = {"title": titles, "genres": genres}
    return pd.DataFrame(names, pd.Index(ids, dtype=object), dtype=object)
