"""README and pages: short, whole, and what they show runs."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.in_process import call
from tests.runs.front_door import ROOT, write_sequences

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BUILT = {"report.md"}  # made with the site
TEXT = README.read_text()


def block(language: str, heading: str) -> str:
    """The first code block of a language below a heading."""
    section = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    match = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert match is not None
    return match.group(1)


def example(heading: str, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lay the example's two files outside the package; their name."""
    python, config = block("python", heading), block("yaml", heading)
    module, _, _ = yaml.safe_load(config)["_target_"].rpartition(".")
    name = module.rpartition(".")[2]
    (folder / f"{name}.py").write_text(python)
    path = folder / "conf" / kind / f"{name}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(config.replace(module, name))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_the_readme_is_one_page() -> None:
    assert len(TEXT.splitlines()) <= 200
    assert len(TEXT.encode()) <= 12_288


def test_the_example_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = example("Add a model", "model", tmp_path, monkeypatch)
    data = write_sequences(tmp_path / "data.txt", users=60, items=30)
    command = [
        f"--config-dir={tmp_path / 'conf'}",
        f"model={name}",
        "model.hidden_size=8",
        "dataset=custom",
        f"dataset.path={data}",
        f"dataset.root={tmp_path / 'root'}",
        "logger=none",
        "trainer.max_epochs=2",
    ]
    assert call(monkeypatch, *command, f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert json.loads((tmp_path / "run" / "row.json").read_text())["model"] == name
    # It is causal, so one pass over a history may train it, too.
    command += [f"hydra.run.dir={tmp_path / 'other'}", "objective=all_positions", "loss=bce"]
    assert call(monkeypatch, *command) == 0
    lines = [
        len([line for line in block(language, "Add a model").splitlines() if line.strip()])
        for language in ("python", "yaml")
    ]
    assert f"{lines[0]} lines of Python and {lines[1]} of YAML" in TEXT


def test_the_example_data_set_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = example("Add a data set", "dataset", tmp_path, monkeypatch)
    sequences = write_sequences(tmp_path / "data.txt", users=60, items=30).read_text()
    lines = ["user,item,time"]
    for history in sequences.splitlines():
        user, *items = history.split()
        lines += [f"{user},{item},{time}" for time, item in enumerate(items)]
    (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "root" / name / "orders.csv").write_text("\n".join(lines))
    folder = tmp_path / "run"
    command = [
        f"--config-dir={tmp_path / 'conf'}",
        "model=popularity",
        f"dataset={name}",
        f"dataset.root={tmp_path / 'root'}",
        "logger=none",
        f"hydra.run.dir={folder}",
    ]
    assert call(monkeypatch, *command) == 0
    row = json.loads((folder / "row.json").read_text())
    assert row["dataset"] == name
    assert row["data"]["users"] == 60


def test_the_readme_lists_the_models_there_are() -> None:
    table = TEXT.split("## Models\n", 1)[1].split("\n## ", 1)[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    names = {name for cell in cells for name in re.findall(r"`([a-z0-9_]+)`", cell)}
    assert names == {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path = link.partition("#")[0]
        if path and ":" not in path and path not in BUILT:
            assert (page.parent / path).is_file(), link
    for module in re.findall(r"python -m ((?:experiments|sigma)[\w.]*)", text):
        assert importlib.util.find_spec(module) is not None, module
    for name in re.findall(r"experiment=(\w+)", text):
        assert (ROOT / "conf" / "experiment" / f"{name}.yaml").is_file(), name


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells, one after the other; of a shelf the next item comes next."""
    notebook = json.loads((ROOT / "docs" / "own_data.ipynb").read_text())
    shutil.copy(ROOT / "train.py", tmp_path)
    for name in ("conf", "sigma"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec("".join(cell["source"]), names)
    assert names["basket"]["item"].iloc[0] == "shelf2-6"


def test_the_citation_is_valid() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    authors = citation["preferred-citation"]["authors"]
    bibtex = TEXT.split("author = {")[1].split("}")[0]
    names = [f"{author['family-names']}, {author['given-names']}" for author in authors]
    assert re.split(r"\s+and\s+", bibtex) == names
