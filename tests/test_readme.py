"""The README's worked example is run as it stands; its tables of results are held to the rows."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments.ledger import read
from experiments.lines import Line, lines, model_label
from experiments.readme import renewed
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


def test_the_tree_names_every_file() -> None:
    tree = TEXT.split("## The tree\n", 1)[1]
    for folder in ("sigma", "conf", "tests", "experiments"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".yaml", ".c"} and path.name != "__init__.py":
                assert path.name in tree, path


@pytest.mark.parametrize("dataset", re.findall("<!-- (beauty|ml_.*) -->", TEXT))
def test_every_number_of_the_results_is_the_mean_of_rows(dataset: str) -> None:
    """Of the seeds that are told, from 2020 on: rows may have come since."""
    ledger = read([ROOT / "results" / "rows"])
    found: dict[str, Line] = {}
    for experiment in ("yardsticks", "relatives", "table2_overall"):
        words = (f"experiment={experiment}", f"dataset={dataset}")
        found |= {line.label: line for line in lines(ledger, model_label, *words) if line.rows}
    table = TEXT.split(f"<!-- {dataset} -->\n", 1)[1].split("\n\n", 1)[0]
    told_lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert sorted(cells[0].strip("`") for cells in told_lines) == sorted(found)
    order = []
    for cells in told_lines:
        name, valid, test, *others, last = cells[0].strip("`"), *cells[1:]
        seeds = int(last) if last.isdecimal() else 1
        told = [row for row in found[name].rows if row.seed < 2020 + seeds]
        line = dataclasses.replace(found[name], rows=told)
        assert len(told) == seeds, name
        for split, cell in (("val", valid), ("test", test)):
            means = [line.spread(split, f"{m}@10")[0] or 0 for m in ("hr", "ndcg", "mrr")]
            assert cell == " / ".join(f"{value:.4f}"[1:] for value in means), name
        mean, deviation, _ = line.spread("test", "ndcg@10")
        order.append(mean or 0)
        row = told[0]
        if row.counted:
            assert last == "counted", name
        elif dataset == "beauty":
            assert last == f"{row.content['best_epoch']:.0f} of {row.content['epochs']}", name
        else:
            assert others == ["–" if deviation is None else f"{deviation:.4f}"[1:]], name
    assert len(order) > 5
    assert order == sorted(order, reverse=True)


def test_the_tables_are_those_that_the_script_writes() -> None:
    assert renewed(TEXT, read([ROOT / "results" / "rows"])) == TEXT


@pytest.mark.parametrize(
    ("label", "changed"),
    [("no gru", {"gru": False}), ("no gate", {"gate": False}), ("r = 0", {"r": 0}), ("whole", {})],
)
def test_sigma_without_a_part_is_read_from_the_rows_that_say_so(
    label: str, changed: dict[str, object]
) -> None:
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {label} | ")]
    told, _, seeds = line.strip("| ").split(" | ")[1:4]
    own = {"gru": True, "gate": True, "partial_flip": True, "r": 5, "num_layers": 1} | changed
    found = []
    for path in (ROOT / "results" / "rows").glob("sigma-ml_100k-s*.json"):
        row = json.loads(path.read_text())
        if all(row["config"]["model"][key] == value for key, value in own.items()):
            found.append((row["seed"], row["metrics"]["test"]["ndcg@10"]))
    means = [value for seed, value in found if seed < 2020 + int(seeds)]
    assert len(means) == int(seeds)
    assert told.split(" / ")[1] == f"{sum(means) / len(means):.4f}"[1:]


def test_the_report_is_of_the_rows_that_are_there() -> None:
    """``python -m experiments.report`` brings it up to date."""
    told = pd.read_csv(ROOT / "results" / "report" / "tables" / "runs.csv")["run"]
    assert sorted(told) == sorted(path.stem for path in (ROOT / "results" / "rows").glob("*.json"))
