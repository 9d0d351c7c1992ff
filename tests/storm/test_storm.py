"""Each part of the storm, for some seconds: it tries something, and nothing goes wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.front_door import ROOT
from tests.storm.__main__ import SHARES


@pytest.mark.storm
@pytest.mark.slow
@pytest.mark.parametrize("name", SHARES)
def test_a_part_tries_and_nothing_goes_wrong(name: str, tmp_path: Path) -> None:
    out, keep = tmp_path / "storm.json", tmp_path / "examples"
    command = [sys.executable, "-m", "tests.storm", "--minutes=0.3", f"--only={name}"]
    done = subprocess.run(
        [*command, f"--out={out}", f"--keep={keep}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    part = json.loads(out.read_text())["parts"][name]
    note = part["note"] or ""
    assert not note.startswith("ended early"), note
    if note.startswith("left out"):
        pytest.skip(note)
    assert sum(part["tried"].values()) > 0
    assert {what: times for what, (times, _) in part["faults"].items() if times} == {}
    assert not keep.exists()  # no examples, so no folder of them
