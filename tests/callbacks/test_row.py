"""The result row tells what was done, not only what was asked for."""

import json
from pathlib import Path

import pytest

from tests.in_process import arguments, call
from tests.runs.front_door import write_sequences


@pytest.mark.filterwarnings("ignore:.*fp16 is not supported on CPU")
def test_the_precision_that_was_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU Lightning takes bf16-mixed where 16-mixed is asked for."""
    data = write_sequences(tmp_path / "tiny.txt", users=60, items=30)
    typed = ["trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.precision=16-mixed"]
    assert call(monkeypatch, *arguments(tmp_path / "run", data, *typed)) == 0
    row = json.loads((tmp_path / "run" / "row.json").read_text())
    assert row["precision"] == "bf16-mixed"
    assert row["config"]["trainer"]["precision"] == "16-mixed"
