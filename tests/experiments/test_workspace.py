"""The W&B report: its panels ask for nothing but what a real run logs."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import workspace
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
    # The filters, too, are what this run would be found by.
    first = next(b for b in definition["spec"]["blocks"] if b["type"] == "panel-grid")
    filters = first["metadata"]["runSets"][0]["filters"]["filters"]
    told = {f["key"]["name"]: f["value"] for f in filters}
    assert run["run"].run_group in told["group"]
    own = workspace.runs(workspace.SECTIONS[2], "simulated").filters
    assert all(repr(tag) in own for tag in ("simulated", run["run"].job_type))


def test_every_table_and_figure_has_its_section(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = printed(monkeypatch, capsys, "--datasets", "beauty", "simulated")
    headings: dict[int, list[str]] = {1: [], 2: []}
    for block in definition["spec"]["blocks"]:
        if block["type"] == "heading":
            headings[block["level"]].append(block["children"][0]["text"])
    assert len(headings[1]) == 7
    for name in ("Table 2", "Tables 3", "Tables 4 and 9", "Table 5", "Figure 3", "Figure 5"):
        assert sum(title.startswith(name) for title in headings[1]) == 1
    assert headings[2] == ["beauty", "simulated"] * 7
    for block in definition["spec"]["blocks"]:
        if block["type"] == "panel-grid":
            places = [p["layout"] for p in block["metadata"]["panelBankSectionConfig"]["panels"]]
            assert len({(place["x"], place["y"]) for place in places}) == len(places)
            assert all(place["x"] + place["w"] <= 24 for place in places)


@pytest.mark.parametrize("what", ["no package", "no login", "no network"])
def test_what_is_missing_is_one_sentence(
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
