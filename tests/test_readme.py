"""The README's worked example is run as it stands."""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.in_process import call
from tests.runs.front_door import ROOT, write_sequences

TEXT = (ROOT / "README.md").read_text()


def block(language: str, after: str) -> str:
    """The first code block of a language below a heading."""
    section = TEXT.split(f"## {after}\n", 1)[1].split("\n## ", 1)[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_example_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, yaml = block("python", "Add a model"), block("yaml", "Add a model")
    package = tmp_path / "own"
    package.mkdir()
    (package / "last_item.py").write_text(python)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    text = yaml.replace("sigma.models.last_item", "last_item")
    (tmp_path / "conf" / "model" / "last_item.yaml").write_text(text)
    monkeypatch.syspath_prepend(str(package))
    data = write_sequences(tmp_path / "data.txt", users=60, items=30)
    folder = tmp_path / "run"
    command = [
        f"--config-dir={tmp_path / 'conf'}",
        "model=last_item",
        "model.hidden_size=8",
        "dataset=custom",
        f"dataset.path={data}",
        f"dataset.root={tmp_path / 'root'}",
        "logger=none",
        "trainer.max_epochs=2",
        f"hydra.run.dir={folder}",
    ]
    assert call(monkeypatch, *command) == 0
    row = json.loads((folder / "row.json").read_text())
    assert row["model"] == "last_item"
    # It is causal, so one pass over a history may train it, too.
    command[-1] = f"hydra.run.dir={tmp_path / 'other'}"
    assert call(monkeypatch, *command, "objective=all_positions", "loss=bce") == 0
    sys.modules.pop("last_item", None)
    lines = [len([x for x in part.splitlines() if x.strip()]) for part in (python, yaml)]
    assert f"{lines[0]} lines of Python and {lines[1]} of YAML" in TEXT


def test_every_model_is_in_the_readme_and_every_name_there_exists() -> None:
    table = TEXT.split("## Models\n", 1)[1].split("**Objectives:**", 1)[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`([a-z0-9_]+)`", cell)}
    there = {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")}
    assert named == there
