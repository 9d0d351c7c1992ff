"""Small data for runs."""

from pathlib import Path

import pytest

from tests.runs.front_door import write_sequences


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("data") / "tiny.txt", users=60, items=30)
