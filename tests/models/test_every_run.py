"""Every model by the front door: trained, stopped, resumed, tested; one in two processes."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.in_process import call
from tests.models.checks import COUNTED, MODELS, L, small
from tests.runs.front_door import ROOT, run


def overrides(folder: Path, name: str) -> list[str]:
    return [
        f"model={name}",
        *(f"model.{key}={value}" for key, value in small(name).items()),
        "dataset=simulated",
        *(f"dataset.shop.num_{part}" for part in ("users=60", "items=40", "categories=5")),
        *("dataset.user_bounds=[4,null]", "dataset.item_bounds=[1,null]"),
        f"dataset.max_length={L}",
        "dataset.batch_size=64",
        *("logger=none", "callbacks.curves=null"),
        f"hydra.run.dir={folder}",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_trains_checkpoints_resumes_and_tests(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after an epoch and resumed, a run ends in the row of one that was not stopped."""
    trained = name not in COUNTED
    epochs = "trainer.max_epochs=2" if trained else "trainer.max_epochs=1"
    results = []
    for folder in (tmp_path / "whole", tmp_path / "stopped"):
        command = [*overrides(folder, name), "resume=true"]
        if folder.name == "stopped" and trained:
            assert call(monkeypatch, *command, "trainer.max_epochs=1") == 0
            (folder / "row.json").unlink()
        assert call(monkeypatch, *command, epochs) == 0
        row = json.loads((folder / "row.json").read_text())
        assert row["model"] == name
        assert row["evaluation"] == "full"
        assert 0 <= row["metrics"]["test"]["hr@10"] <= 1
        ranks = pd.read_parquet(folder / "ranks.parquet")
        results.append((row["metrics"], row["best_epoch"], row["parameters"], ranks))
    assert results[0][:3] == results[1][:3]
    pd.testing.assert_frame_equal(results[0][3], results[1][3])


def two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *typed: str
) -> list[tuple[dict[str, Any], pd.DataFrame, Any]]:
    """Row, ranks and best weights of one process and of two, where nothing is drawn at random."""
    results = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        command = [
            *overrides(folder, "sasrec"),
            *("objective=all_positions", "dataset.batch_size=16"),
            *("model.dropout=0", "model.attention_dropout=0"),
            *("trainer.max_epochs=2", "trainer.accelerator=cpu", *typed),
        ]
        if devices == 1:
            assert call(monkeypatch, *command) == 0
        else:
            command += ["trainer=ddp", f"trainer.devices={devices}"]
            output = run(sys.executable, ROOT / "train.py", *command)
            assert "recommended" not in output  # no advice of Lightning on what is right already
        row = json.loads((folder / "row.json").read_text())
        ranks = pd.read_parquet(folder / "ranks.parquet")
        assert len(ranks) == row["data"]["test_samples"]
        best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
        model = {k: v for k, v in best["state_dict"].items() if k.startswith("model.")}
        results.append((row, ranks, model))
    return results


@pytest.mark.slow
def test_two_processes_rank_every_user_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the very same weights (a rate too small to move any): each rank, tie and metric."""
    one, two = two_processes(tmp_path, monkeypatch, "task.optimizer.lr=1e-20")
    for name, weight in one[2].items():  # biases that start at 0 have moved by 1e-20 a step
        torch.testing.assert_close(two[2][name], weight, rtol=0, atol=1e-15)
    pd.testing.assert_frame_equal(one[1], two[1])  # users, targets, lengths, ranks, ties
    for stage in ("val", "test"):
        assert one[0]["metrics"][stage].keys() == two[0]["metrics"][stage].keys()
        for name, value in one[0]["metrics"][stage].items():
            if name != "loss":
                assert two[0]["metrics"][stage][name] == pytest.approx(value, abs=1e-6), name
    assert one[0]["best_epoch"] == two[0]["best_epoch"]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards and the mean over all targets: the same weights, ranks and metrics, to rounding."""
    one, two = two_processes(tmp_path, monkeypatch)
    for name, weight in one[2].items():
        torch.testing.assert_close(two[2][name], weight, rtol=1e-3, atol=1e-4)
    assert one[1][["user", "target"]].equals(two[1][["user", "target"]])
    moved = (one[1]["greater"] - two[1]["greater"]).abs()
    assert moved.mean() < 0.1  # rounding may swap neighbours
    for stage in ("val", "test"):
        ours = two[0]["metrics"][stage]["ndcg@10"]
        assert one[0]["metrics"][stage]["ndcg@10"] == pytest.approx(ours, abs=0.01)
