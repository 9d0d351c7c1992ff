"""W&B: what a run is given, how it goes on, and that nothing of W&B can end a run."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sigma.callbacks.wandb import WandbLogger, by_history, user_lines
from sigma.errors import UserError
from sigma.runs.files import CONFIG, EPOCHS, RANKS, ROW, WANDB
from sigma.task import SequenceTask
from tests.callbacks.fake_wandb import Run, Service, no_login, service, wandb, warnings
from tests.in_process import call
from tests.runs.front_door import Capture, Logged, Patch

__all__ = ["no_login", "service"]

SMALL = [
    *("dataset=simulated", "dataset.shop.num_users=120", "dataset.shop.num_items=60"),
    *("model.hidden_size=8", "model.mamba.state_size=4", "logger=default"),
    "callbacks.curves=null",
]


def arguments(tmp_path: Path, *overrides: str) -> list[str]:
    return [*SMALL, f"dataset.root={tmp_path / 'data'}", *overrides]


def test_what_a_run_logs(tmp_path: Path, monkeypatch: Patch, service: Service) -> None:
    folder = tmp_path / "run"
    typed = ["trainer.max_epochs=3", "group=table4", "tags=[mine]", "model.r=2"]
    assert call(monkeypatch, *arguments(tmp_path, *typed, f"hydra.run.dir={folder}")) == 0
    (run,) = service.runs
    assert run.exit_code == 0
    described = [run.options[name] for name in ("name", "group", "job_type", "tags", "mode")]
    assert described == ["sigma-simulated-s2020", "table4", "sigma", ["mine"], "offline"]
    assert run.options["config"] == json.loads((folder / CONFIG).read_text())

    curves = pd.DataFrame([line for line in run.history if "epoch" in line])
    curves = curves.groupby("epoch").first().drop(columns="step")
    epochs = pd.read_csv(folder / EPOCHS, index_col="epoch")
    assert {"train/loss", "val/ndcg@10", "val/short/hr@10"} <= set(epochs)
    pd.testing.assert_frame_equal(curves[list(epochs)], epochs, check_index_type=False)

    row = json.loads((folder / ROW).read_text())
    scores = {"best/epoch": row["best_epoch"], "efficiency/parameters": row["parameters"]}
    parts = {"test": row["metrics"]["test"], "best/val": row["metrics"]["val"]}
    for part, values in (parts | {"efficiency": row["efficiency"]}).items():
        scores |= {f"{part}/{name}": value for name, value in values.items()}
    assert scores.items() <= run.summary.items()

    ranks = pd.read_parquet(folder / RANKS)
    lines, bins = run.table("ranks/users_sample"), run.table("ranks/by_history")
    assert lines["rank"].tolist() == (ranks["greater"] + 1 + ranks["ties"] / 2).tolist()
    for name in ("hr@10", "ndcg@10", "mrr@10"):
        assert lines[name].mean() == pytest.approx(run.summary[f"test/{name}"], abs=1e-6)
        mean = (bins[name] * bins["samples"]).sum() / len(ranks)
        assert mean == pytest.approx(run.summary[f"test/{name}"], abs=1e-6)


def test_a_real_offline_run(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    folder = tmp_path / "run"
    typed = arguments(tmp_path, "trainer.max_epochs=1", f"hydra.run.dir={folder}")
    assert call(monkeypatch, *typed) == 0
    state = json.loads((folder / WANDB).read_text())
    (place,) = folder.glob("wandb/offline-run-*")
    assert place.name.endswith(state["id"])
    deadline = time.monotonic() + 20  # its service writes in its own time
    path = place / f"run-{state['id']}.wandb"
    while path.stat().st_size < 10_000 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert path.stat().st_size >= 10_000
    assert len(list(place.glob("files/media/table/ranks/*.table.json"))) == 2
    assert list((folder / "wandb" / "artifacts").rglob("*"))  # staged with the run, not in the home
    assert f"wandb sync {place}" in capsys.readouterr().out


def test_jobs_of_a_multirun_end_and_a_stopped_one_goes_on(
    tmp_path: Path, monkeypatch: Patch, service: Service
) -> None:
    errors = [UserError("the second epoch cannot start")]  # of the first job alone

    def broken(task: SequenceTask) -> None:
        if task.trainer.current_epoch == 1 and errors:
            raise errors.pop()

    monkeypatch.setattr(SequenceTask, "on_train_epoch_start", broken)
    typed = arguments(tmp_path, f"hydra.sweep.dir={tmp_path / 'sweep'}", "trainer.max_epochs=2")
    for code in (1, 0):
        assert call(monkeypatch, "-m", *typed, "seed=1,2") == code
    failed, finished, again = service.runs
    assert (failed.exit_code, finished.exit_code, again.exit_code) == (1, 0, 0)
    assert failed.id == again.id != finished.id
    assert {failed.id, finished.id} == {p.parent.name for p in tmp_path.glob(f"sweep/*/{ROW}")}
    assert not failed.summary
    assert "test/ndcg@10" in finished.summary
    assert again.summary["efficiency/sessions"] == 2
    epochs = [line["epoch"] for run in (failed, again) for line in run.history if "epoch" in line]
    assert set(epochs) == {0, 1}


def test_a_resumed_run_keeps_its_id(tmp_path: Path, service: Service) -> None:
    for folder in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        logger = WandbLogger(str(folder), project="p")
        logger.log_metrics({"epoch": 0, "val/ndcg@10": 0.1}, step=0)
        logger.finalize("success")  # as Lightning does between fit and test
        assert service.runs[-1].exit_code is None
        logger.finalize("failed")
        logger.log_metrics({"epoch": 1}, step=1)  # to nobody
        assert service.runs[-1].exit_code == 1
    first, resumed, other = (run.id for run in service.runs)
    assert first == resumed != other
    moved = WandbLogger(str(tmp_path / "b"), project="p", id=first)
    (tmp_path / "b" / ROW).write_text("{}")  # of an earlier end, so not logged
    moved.log_metrics({"test/ndcg@10": 0.25}, step=1)
    moved.finalize("success")
    assert service.runs[-1].id == first
    assert service.runs[-1].summary == {"test/ndcg@10": 0.25}


@pytest.mark.parametrize("breaks", ["init", "log", "summary"])
def test_an_error_of_wandb_ends_wandb_alone(
    breaks: str, tmp_path: Path, monkeypatch: Patch, service: Service, caplog: Logged
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise ConnectionError("the service has gone")

    logger = WandbLogger(str(tmp_path), project="p")
    if breaks == "summary":
        logger.experiment.summary = None
    else:
        monkeypatch.setattr(*{"init": (wandb, "init"), "log": (Run, "log")}[breaks], gone)
    for epoch in range(3):
        logger.log_metrics({"epoch": epoch}, step=epoch)
    logger.log_metrics({"test/ndcg@10": 0.25}, step=3)
    logger.finalize("success")
    assert len(warnings(caplog)) == 1
    assert all(run.exit_code == 1 for run in service.runs)


@pytest.mark.parametrize("prefix", ["", "sampled_"])
def test_tables_of_ranks_against_every_order_of_ties(prefix: str) -> None:
    greater, ties = [0, 8, 9, 2000, 3], [0, 3, 1, 0, 1]
    lengths = [2, 3, 4, 5, 120]
    columns = {"history_length": lengths, f"{prefix}greater": greater, f"{prefix}ties": ties}
    lines = user_lines(pd.DataFrame({"user": list("abcde"), "target": list("vwxyz"), **columns}))
    assert not {"user", "target"} & set(lines)  # no raw id leaves the machine
    assert lines["line"].tolist() == list(range(5))
    for above, equal, line in zip(greater, ties, lines.to_dict("records"), strict=True):
        possible = range(above + 1, above + equal + 2)
        top = [rank for rank in possible if rank <= 10]
        assert line[f"{prefix}rank"] == pytest.approx(sum(possible) / len(possible))
        assert line[f"{prefix}hr@10"] == pytest.approx(len(top) / len(possible))
        ndcg = sum(1 / math.log2(rank + 1) for rank in top) / len(possible)
        assert line[f"{prefix}ndcg@10"] == pytest.approx(ndcg)
        mrr = sum(1 / rank for rank in top) / len(possible)
        assert line[f"{prefix}mrr@10"] == pytest.approx(mrr)
    bins = by_history(lines).set_index("history_length")
    assert bins["samples"].to_dict() == {"0-2": 1, "3-4": 2, "5-9": 1, "100-": 1}
    assert bins[f"{prefix}rank"].tolist() == [1, 10.5, 2001, 4.5]
    assert bins[f"{prefix}hr@10"].tolist() == [1, 0.5, 0, 1]
