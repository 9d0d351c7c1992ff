"""W&B: what an offline run holds, and that nothing of W&B can end a run."""

import json
import logging
import re
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("wandb")

import wandb

from sigma.callbacks.wandb import WandbLogger, variant
from sigma.callbacks.wandb_mode import choose_mode, has_login
from tests.callbacks.wandb_file import contents, parse

KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def _no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def logger(folder: Path, **options: Any) -> WandbLogger:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model": {"r": 5}, "seed": 1}))
    described = {"name": "sigma-tiny-s1", "group": "g", "job_type": "sigma", "tags": ["a", "b"]}
    return WandbLogger(str(folder), **{**described, **options})


def epoch(number: int, score: float) -> dict[str, float]:
    return {"epoch": number, "val/ndcg@10": score, "val/short/ndcg@10": score / 2}


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings of this project; W&B's own logger goes to the run's log file."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("sigma")
    ]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/*run-*/*.wandb"))


def test_an_offline_run_holds_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "run"
    run = logger(folder)
    for number, score in enumerate([0.1, 0.3, 0.3, 0.2]):
        run.log_metrics(epoch(number, score), step=number)
        run.log_metrics({"epoch": number, "train/loss": 5.0 - number}, step=number)
    run.finalize("success")  # as Lightning does between fit and test
    run.log_metrics({"test/ndcg@10": 0.25, "test/short/ndcg@10": 0.2, "epoch": 3}, step=3)
    run.finalize("success")
    (path,) = files(folder)
    found = contents(path)
    assert found["config"]["model"] == {"r": 5}
    assert found["config"]["seed"] == 1
    record = found["run"]
    assert (record.display_name, record.run_group, record.job_type) == (
        "sigma-tiny-s1", "g", "sigma"
    )  # fmt: skip
    assert list(record.tags) == ["a", "b"]
    curve = [row["val/ndcg@10"] for row in found["history"] if "val/ndcg@10" in row]
    assert curve == [0.1, 0.3, 0.3, 0.2]
    assert [row["train/loss"] for row in found["history"] if "train/loss" in row] == [5, 4, 3, 2]
    assert "val/short/ndcg@10" in found["history"][0]
    summary = found["summary"]
    assert summary["best/val/ndcg@10"] == 0.3
    assert summary["best/epoch"] == 2  # of equals the later
    assert summary["best/val/short/ndcg@10"] == 0.15
    assert summary["test/ndcg@10"] == 0.25
    assert summary["test/short/ndcg@10"] == 0.2
    assert found["exit"] == 0
    assert f"wandb sync {path.parent}" in caplog.text


def test_a_resumed_run_goes_on_under_its_id(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = logger(folder)
    first.log_metrics(epoch(0, 0.4), step=1)
    first.finalize("failed")
    second = logger(folder, resume=True)
    second.log_metrics(epoch(1, 0.2), step=2)
    second.finalize("failed")
    fresh = logger(folder)
    fresh.log_metrics(epoch(0, 0.1), step=1)
    fresh.finalize("failed")
    assert first.version == second.version != fresh.version
    found = {path: contents(path) for path in files(folder)}
    ids = [f["run"].run_id for f in found.values()]
    assert sorted(map(ids.count, ids)) == [1, 2, 2]
    resumed = [f for f in found.values() if f["run"].run_id == second.version]
    assert {f["summary"]["best/val/ndcg@10"] for f in resumed} == {0.4}
    assert {f["exit"] for f in resumed} == {1}


def test_a_given_id_is_the_runs_wherever_it_goes_on(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    first = logger(here, id="abc")
    first.log_metrics(epoch(0, 0.4), step=1)
    first.finalize("failed")
    # Another machine, to which the checkpoints came without W&B's state, and one to which it came.
    for folder, best in ((there, 0.2), (here, 0.4)):
        run = logger(folder, id="abc", resume=True)
        run.log_metrics(epoch(1, 0.2), step=2)
        run.finalize("failed")
        found = contents(files(folder)[-1])
        assert found["run"].run_id == run.version == "abc"
        assert found["summary"]["best/val/ndcg@10"] == best


def test_with_a_given_id_the_best_of_before_is_kept(tmp_path: Path) -> None:
    """As in a multirun, whose jobs go on without being told to resume."""
    folder = tmp_path / "run"
    first = logger(folder, id="abc")
    first.log_metrics(epoch(0, 0.5), step=1)
    first.finalize("failed")
    for id, best in (("abc", 0.5), ("ab", 0.1)):  # the second is another run's
        run = logger(folder, id=id)
        run.log_metrics(epoch(1, 0.1), step=2)
        assert run.version == id
        assert run.experiment.summary["best/val/ndcg@10"] == best
        run.finalize("failed")


@pytest.mark.parametrize("id", ["abc", None])
def test_a_run_that_was_deleted_goes_on_under_a_fresh_id(
    id: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What W&B 0.31 raises after a server's HTTP 409, here for the first id it is given."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("WANDB_MODE", "online")
    init, asked = wandb.init, []

    def refusing(*, mode: str, **options: Any) -> Any:
        asked.append((mode, options["id"]))
        if options["id"] == asked[0][1]:
            raise wandb.errors.CommError(
                f"Timed out while retrying: HTTP 409: run me/p/{options['id']} was previously "
                "created and deleted; try a new run id"
            )
        return init(mode="offline", **options)

    monkeypatch.setattr(wandb, "init", refusing)
    folder = tmp_path / "run"
    run = logger(folder, id=id)
    run.log_metrics(epoch(0, 0.5), step=1)
    run.finalize("failed")
    assert [mode for mode, _ in asked] == ["online", "online"]
    old, fresh = (id for _, id in asked)
    assert re.fullmatch(f"{id or '[0-9a-f]{8}'}-[0-9a-f]{{4}}", fresh)
    assert fresh == run.version
    assert not ours(caplog)
    assert f"W&B's run {old} was deleted" in caplog.text

    later = logger(folder, id=id, resume=id is None)
    later.log_metrics(epoch(1, 0.1), step=2)
    assert asked[2:] == [("online", fresh)]
    assert later.experiment.summary["best/val/ndcg@10"] == 0.5
    later.finalize("failed")


def test_a_server_that_refuses_every_id_does_not_cost_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    init, modes = wandb.init, []

    def refusing(*, mode: str, **options: Any) -> Any:
        modes.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("it was previously created and deleted")
        return init(mode=mode, **options)

    monkeypatch.setattr(wandb, "init", refusing)
    run = logger(tmp_path / "run", id="abc")
    run.log_metrics(epoch(0, 0.5), step=1)
    run.finalize("failed")
    assert modes == ["online", "online", "offline"]
    assert len(ours(caplog)) == 1


def test_what_a_killed_run_logged_is_on_disk_soon(tmp_path: Path) -> None:
    run = logger(tmp_path / "run")
    run.log_metrics(epoch(0, 0.4), step=1)
    run.log_metrics(epoch(1, 0.5), step=2)  # a line leaves this process with the next one
    (file,) = files(tmp_path / "run")
    deadline = time.monotonic() + 10  # W&B's own interval is 15 s
    while not (found := parse(file)["history"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found[0]["val/ndcg@10"] == 0.4
    run.finalize("failed")


def test_a_row_of_an_earlier_run_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = logger(folder)
    metrics = {"val": {"ndcg@10": 0.9}, "test": {"ndcg@10": 0.8}}
    efficiency = {"train_seconds": 2.5}
    row = {"metrics": metrics, "best_epoch": 4, "epochs": 5, "parameters": 7}
    (folder / "row.json").write_text(json.dumps(row | {"efficiency": efficiency}))
    ranks = {"history_length": [3], "greater": [0], "ties": [0]}
    pd.DataFrame(ranks).to_parquet(folder / "ranks.parquet")
    for test, expected in ((0.25, 0), (0.8, 2)):
        run = logger(folder)
        run.log_metrics(epoch(0, 0.1), step=1)
        run.log_metrics({"test/ndcg@10": test}, step=1)
        run.finalize("success")
        (file,) = folder.glob(f"wandb/*-{run.version}/*.wandb")
        summary = contents(file)["summary"]
        named = [n for n in summary if n in ("efficiency/train_seconds", "ranks/by_history.nrows")]
        assert len(named) == expected


def test_the_variant_is_what_sets_a_run_apart() -> None:
    same = [
        "model=sigma",
        "dataset=beauty",
        "seed=3",
        "group=table4",
        "dataset.path=/a",
        "resume=true",
    ]
    same += ["trainer.max_epochs=3", "logger=csv", "callbacks.best.monitor=val/hr@10"]
    same += ["experiment=table4_ablation", "variant=whole"]  # Table 2's run, too
    assert variant(same) == variant([]) == "default"
    apart = ["model.r=2", "+model.gate=false", "dataset.max_length=9", "groups=1"]
    assert variant([*same, *apart]) == "+model.gate=false dataset.max_length=9 groups=1 model.r=2"


def test_two_runs_in_one_process_stay_apart(tmp_path: Path) -> None:
    one, two = logger(tmp_path / "one"), logger(tmp_path / "two")
    one.log_metrics(epoch(0, 0.1), step=1)
    two.log_metrics(epoch(0, 0.2), step=1)
    for run in (one, two):
        run.finalize("failed")
    assert one.version != two.version
    scores = [contents(files(tmp_path / n)[0])["history"][0]["val/ndcg@10"] for n in ("one", "two")]
    assert scores == [0.1, 0.2]


@pytest.mark.parametrize("key", [KEY, "short"])
def test_no_network_or_a_bad_key_falls_back_to_offline(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    folder = tmp_path / "run"
    run = logger(folder, init_timeout=1)
    run.log_metrics(epoch(0, 0.1), step=1)
    run.finalize("failed")
    warnings = ours(caplog)
    assert len(warnings) == 1
    assert "so this run is logged offline" in warnings[0]
    offline = [p for p in files(folder) if p.parent.name.startswith("offline")]
    assert contents(offline[0])["history"][0]["val/ndcg@10"] == 0.1


def test_an_error_while_logging_ends_wandb_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = logger(tmp_path / "run")

    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionError("the service has gone")

    monkeypatch.setattr(run.experiment, "log", broken)
    for number in range(3):
        run.log_metrics(epoch(number, 0.1), step=number)
    run.finalize("success")
    warnings = ours(caplog)
    assert warnings == ["W&B is off for the rest of this run: the service has gone"]
    assert contents(files(tmp_path / "run")[0])["exit"] == 1  # closed all the same


def test_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = logger(tmp_path / "run")
    run.log_metrics(epoch(0, 0.1), step=1)
    run.log_metrics(epoch(1, 0.1), step=1)
    run.finalize("success")
    (warning,) = ours(caplog)
    assert "the package wandb is not installed" in warning


def test_disabled_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = logger(tmp_path / "run")
    run.log_metrics(epoch(0, 0.1), step=1)
    run.finalize("success")
    assert files(tmp_path / "run") == []


def test_the_mode_is_told_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_mode() == "offline"
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert has_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_login()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert choose_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert choose_mode() == "offline"


def test_a_run_killed_behind_its_row_still_gives_its_results(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = logger(folder, id="abc")
    first.log_metrics(epoch(0, 0.5), step=0)
    (folder / "row.json").write_text(json.dumps({"metrics": {"test": {"ndcg@10": 0.25}}}))
    first.experiment.finish()  # the process is gone; nobody called finalize
    before = set(files(folder))
    logger(folder, id="abc").complete()
    (path,) = set(files(folder)) - before
    found = contents(path)
    assert found["run"].run_id == "abc"
    assert found["summary"]["test/ndcg@10"] == 0.25
    assert found["summary"]["best/val/ndcg@10"] == 0.5
    logger(folder, id="abc").complete()  # it owes nothing now
    assert len(files(folder)) == 2
    nothing = tmp_path / "other"
    logger(nothing).complete()
    assert not files(nothing)
