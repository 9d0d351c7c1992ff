"""The W&B report: its panels ask for nothing but what a real run logs."""

import copy
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import workspace
from experiments.grid import jobs_of
from tests.callbacks.wandb_file import contents
from tests.in_process import call

pytest.importorskip("wandb_workspaces")


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str
) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["workspace", "--print", *options])
    workspace.main()
    definition: dict[str, Any] = json.loads(capsys.readouterr().out)
    return definition


def panels(definition: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for block in definition["spec"]["blocks"]:
        if block["type"] == "panel-grid":
            yield from block["metadata"]["panelBankSectionConfig"]["panels"]


def nested(config: dict[str, Any], backend: str) -> Any:
    """Value of ``model.value.r``."""
    first, *rest = backend.split(".value", 1)
    found = config[first]
    for key in filter(None, "".join(rest).split(".")):
        found = found[key]
    return found


def holds(filters: list[dict[str, Any]], config: dict[str, Any], group: str) -> bool:
    """Whether a run passes filters as W&B stores them, where *and* binds before *or*."""
    terms: list[bool] = []
    for item in filters:
        if "filters" in item:
            passes = holds(item["filters"], config, group)
        else:
            key = item["key"]
            assert item["op"] == "IN"
            try:
                value = group if key["name"] == "group" else nested(config, key["name"])
                passes = value in item["value"]
            except KeyError:  # another model's
                passes = False
        if item.get("connector") == "AND":
            terms[-1] = terms[-1] and passes
        else:
            terms.append(passes)
    return any(terms)


def shows(title: str, dataset: str, config: dict[str, Any], group: str) -> bool:
    """Whether a section shows a run of that config and group."""
    (section,) = (s for s in workspace.SECTIONS if s.title.startswith(title))
    asked = workspace.runs(section, dataset)
    model = asked._to_model()
    assert type(asked)._from_model(model).filters == asked.filters
    return holds(model.filters["filters"], config, group)


def test_panels_ask_for_what_a_run_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    typed = [
        "dataset=simulated", "dataset.shop.num_users=200", "dataset.shop.num_items=60",
        "dataset.shop.median_extra=8", f"dataset.root={tmp_path}", "model.hidden_size=8",
        "model.mamba.state_size=4", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert call(monkeypatch, *typed, "group=table2") == 0
    capsys.readouterr()
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    run = contents(file)
    history = {name for line in run["history"] for name in line}
    summary = set(run["summary"])

    definition = printed(monkeypatch, capsys, "--project", "p", "--entity", "e")
    assert definition["project"] == {"name": "p", "entityName": "e"}
    seen = {"Bar Chart": 0, "Run History Line Plot": 0, "Scatter Plot": 0, "Weave": 0}
    for panel in panels(definition):
        kind, config = panel["viewType"], panel["config"]
        seen[kind] += 1
        if kind == "Bar Chart":
            assert set(config["metrics"]) <= summary
        elif kind == "Run History Line Plot":
            assert {*config["metrics"], config["xAxis"]} <= history
        elif kind == "Scatter Plot":
            assert config["yAxis"].removeprefix("summary:") in summary
            nested(run["config"], config["xAxis"].removeprefix("config:"))
        else:
            assert "ranks/by_history" in json.dumps(config)
        if "groupBy" in config:
            nested(run["config"], config["groupBy"])
    assert all(seen.values())
    assert "ranks/by_history._type" in summary
    for block in definition["spec"]["blocks"]:
        for runset in block.get("metadata", {}).get("runSets", []):
            for key in runset["grouping"]:
                nested(run["config"], key["name"])
    # The filters, too, are what this run would be found by.
    assert shows("Table 2", "simulated", run["config"], run["run"].run_group)
    assert not shows("Table 2", "beauty", run["config"], run["run"].run_group)
    assert not shows("Table 5", "simulated", run["config"], run["run"].run_group)


# Sections, the W&B group of what is run for them, and some of it; much is asked for by several.
OVERALL = ("Table 2", "Figure 3")
ASKED = [
    (OVERALL, "table2", "experiment=table2_overall model=sigma,sasrec"),
    (OVERALL, "table2", "experiment=relatives model=sigma_released"),
    (OVERALL, "table6", "experiment=table6_case_study model=sigma"),
    (("Tables 3 and 7",), "table3", "experiment=table3_efficiency model=sigma,sasrec"),
    (("Tables 4 and 9",), "table4", "experiment=table4_ablation"),
    (("Table 5",), "table5", "experiment=table5_layers"),
    (("Figure 5",), "figure5", "experiment=figure5_flip_range model.r=1,5"),
    (("Released",), "released",
     "experiment=released_vs_paper variant=whole,mended_mix,mended_start,paper"),
]  # fmt: skip


@pytest.mark.parametrize("dataset", ["beauty", "ml_1m"])
def test_a_section_shows_its_runs_whoever_ran_them_first(dataset: str) -> None:
    configs: dict[str, dict[str, Any]] = {}
    groups: dict[str, set[str]] = defaultdict(set)
    wanted: dict[str, set[str]] = defaultdict(set)
    for titles, group, overrides in ASKED:
        for job in jobs_of(*overrides.split(), f"dataset={dataset}", "seed=2020"):
            configs[job.run_id] = job.config
            groups[job.run_id].add(group)
            for title in titles:
                wanted[title].add(job.run_id)
    assert max(map(len, groups.values())) >= 5  # SIGMA as it is
    trial = copy.deepcopy(next(iter(configs.values())))
    trial["task"]["optimizer"]["lr"] = 0.00123
    assert shows("Fair search", dataset, trial, "fair_search")
    for title, own in wanted.items():
        for run_id, config in configs.items():
            for group in groups[run_id]:
                shown = shows(title, dataset, config, group)
                assert shown == (run_id in own), (title, run_id, group)
        assert not shows(title, dataset, trial, "fair_search")


def test_every_table_and_figure_has_its_section(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = printed(monkeypatch, capsys, "--datasets", "beauty", "simulated")
    headings: dict[int, list[str]] = {1: [], 2: []}
    for block in definition["spec"]["blocks"]:
        if block["type"] == "heading":
            headings[block["level"]].append(block["children"][0]["text"])
    assert len(headings[1]) == 9
    for name in ("Table 2", "Tables 3", "Tables 4 and 9", "Table 5", "Figure 3", "Figure 5",
                 "Released", "Fair search"):  # fmt: skip
        assert sum(title.startswith(name) for title in headings[1]) == 1
    assert headings[2] == ["beauty", "simulated"] * 9
    for block in definition["spec"]["blocks"]:
        if block["type"] == "panel-grid":
            places = [p["layout"] for p in block["metadata"]["panelBankSectionConfig"]["panels"]]
            assert len({(place["x"], place["y"]) for place in places}) == len(places)
            assert all(place["x"] + place["w"] <= 24 for place in places)


@pytest.mark.parametrize("what", ["no package", "no login", "no network"])
def test_what_is_missing_is_one_sentence(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(sys, "argv", ["workspace"])
    expected = "no login"
    if what == "no package":
        monkeypatch.setattr(sys, "argv", ["workspace", "--print"])
        monkeypatch.setattr(workspace.importlib.util, "find_spec", lambda name: None)
        expected = "pip install 'sigma-rec[wandb]'"
    if what == "no network":
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setattr("wandb.Api", refuse)
        expected = "W&B did not take the report: no route to host"
    with pytest.raises(SystemExit) as stopped:
        workspace.main()
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line


def refuse(*_: Any, **__: Any) -> None:
    raise ConnectionError("no route to host")
