"""Data sets as they are downloaded: the folder and its archive give the interactions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.datamodules import published
from tests.datamodules import raw_files as raw
from tests.datamodules.reading import read, same
from tests.datamodules.test_readers import rows_of

ROWS = raw.interactions(n=60)


SESSIONS = {"columns": {"user": "sessionId"}}  # most of them are of unknown users


@pytest.mark.parametrize("name", published.NAMES)
def test_published(name: str, tmp_path: Path) -> None:
    folder = published.write(tmp_path / "x", name, ROWS)
    settings = SESSIONS if name == "diginetica" else {}
    data = read(folder, **settings)
    expected = ROWS
    if name in published.BY_USER:
        order = list(dict.fromkeys(row.user for row in ROWS))
        expected = sorted(ROWS, key=lambda row: order.index(row.user))
    if data.timestamps is None:
        assert name in published.TIMELESS
        rows = rows_of(replace(data, timestamps=np.zeros(len(data), np.int64)))
        assert rows == [row._replace(time=0) for row in expected]
    else:
        rows, unit = rows_of(data), data.timestamps[0] // ROWS[0].time
        assert rows == [row._replace(time=row.time * unit) for row in expected]
    assert data.skipped is None
    assert same(read(raw.zipped(folder, ["zip", "tar", "gztar"][len(name) % 3]), **settings), data)
