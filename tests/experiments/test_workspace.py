"""The W&B report: its sections show their runs, whoever ran them first, and no others."""

import json
import sys
from collections import defaultdict
from dataclasses import asdict
from typing import Any

import pytest

pytest.importorskip("wandb_workspaces")

from omegaconf import OmegaConf

from experiments import workspace
from experiments.grid import expand
from tests.runs.front_door import Capture, Patch


def shows(title: str, dataset: str, config: dict[str, Any], group: str) -> bool:
    """Whether a section shows a run of that config and group: its filter, by Python's rules."""
    (section,) = (s for s in workspace.SECTIONS if s.title.startswith(title))
    settings = OmegaConf.create(config)

    def value(key: str) -> Any:  # of ``model.value.r``; None where another model has none
        return OmegaConf.select(settings, key.replace(".value", "", 1))

    names = {"Config": value, "Metric": {"Group": group}.__getitem__}
    return bool(eval(workspace.runs(section, dataset).filters, names))


# Sections, the W&B group of what is run for them, and some of it; much is asked for by several.
OVERALL = ("Table 2", "Figure 3: length")
ASKED = [
    (OVERALL, "table2", ["experiment=table2_overall", "model=sigma"]),
    (OVERALL, "table2", ["experiment=table2_overall", "model=sasrec"]),
    (OVERALL, "table2", ["experiment=relatives", "model=sigma_released"]),
    (OVERALL, "table6", ["experiment=table6_case_study", "model=sigma"]),
    (("Tables 3 and 7",), "table3", ["experiment=table3_efficiency", "model=sasrec"]),
    (("Tables 4 and 9",), "table4", ["experiment=table4_ablation", "variant=whole"]),
    (("Tables 4 and 9",), "table4", ["experiment=table4_ablation", "variant=no_gru"]),
    (("Table 5",), "table5", ["experiment=table5_layers", "model.num_layers=1"]),
    (("Table 5",), "table5", ["experiment=table5_layers", "model.num_layers=4"]),
    (("Figure 5",), "figure5", ["experiment=figure5_flip_range", "model.r=1"]),
    (("Figure 5",), "figure5", ["experiment=figure5_flip_range", "model.r=5"]),
    (("Released",), "released", ["experiment=released_vs_paper", "variant=whole"]),
    (("Released",), "released", ["experiment=released_vs_paper", "variant=mended_mix"]),
    (("Released",), "released", ["experiment=released_vs_paper", "variant=paper"]),
]


@pytest.mark.slow
def test_a_section_shows_its_runs_whoever_ran_them_first() -> None:
    jobs = [expand([*typed, "dataset=beauty", "seed=2020"])[0] for _, _, typed in ASKED]
    askers: dict[str, set[str]] = defaultdict(set)  # sections of each run
    for job, (titles, _, _) in zip(jobs, ASKED, strict=True):
        askers[job.run_id] |= {*titles}
    trial = json.loads(json.dumps(jobs[0].config))
    trial["task"]["optimizer"]["lr"] = 0.00123
    assert shows("Fair search", "beauty", trial, "fair_search")
    for title in set().union(*askers.values()):
        for job, (_, group, _) in zip(jobs, ASKED, strict=True):
            # Under the group of whoever ran it first.
            expected = title in askers[job.run_id]
            assert shows(title, "beauty", job.config, group) == expected, (title, group)
        assert not shows(title, "beauty", trial, "fair_search")
        assert not shows(title, "ml_1m", jobs[0].config, "table2")


def test_panels_lie_beside_each_other_and_ask_for_what_a_run_has() -> None:
    sigma = OmegaConf.create(expand(["model=sigma"])[0].config)
    definition = asdict(workspace.report("p", "e", ["beauty"]))
    assert (definition["project"], definition["entity"]) == ("p", "e")
    grids = [block for block in definition["blocks"] if "panels" in block]
    assert len(grids) == len(workspace.SECTIONS)
    for grid in grids:
        places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in grid["panels"]]
        assert 1 <= len(set(places)) == len(places)
        assert all(panel["layout"]["x"] + panel["layout"]["w"] <= 24 for panel in grid["panels"])
    keys = {key for section in workspace.SECTIONS[:-4] for key in (*section.by, section.over)}
    for key in keys - {""}:
        assert OmegaConf.select(sigma, key) is not None, key
    names = {name for section in workspace.SECTIONS for name in section.metrics}
    assert {name.partition("/")[0] for name in names} == {"best", "efficiency", "test"}


@pytest.mark.parametrize(
    ("login", "mode", "reason"),
    [
        *((False, "offline", "no login"), (True, "offline", "told to stay offline")),
        (True, "online", "no route to host"),
    ],
)
def test_what_is_missing_is_one_sentence(
    login: bool, mode: str, reason: str, monkeypatch: Patch, capsys: Capture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(workspace, "has_login", lambda: login)
    monkeypatch.setattr(workspace, "choose_mode", lambda: mode)
    monkeypatch.setattr("wandb.Api", refuse)
    monkeypatch.setattr(sys, "argv", ["workspace", "--datasets", "beauty"])
    with pytest.raises(SystemExit) as stopped:
        workspace.main()
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
