"""The benchmark scripts on tiny cases: their tables, pictures and fits, not their numbers."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.benchmarks import (
    against,
    catalogue,
    data,
    efficiency,
    gpu,
    length,
    measure,
    models,
    scan,
)

QUICK = ["--repeats", "1", "--device", "cpu"]
BRIEF = ["--seconds", "0"]


@pytest.fixture(autouse=True)
def _settings_are_put_back() -> Iterator[None]:
    """``one`` has a process to itself outside these tests."""
    state, deterministic = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_rng_state(state)
    torch.use_deterministic_algorithms(deterministic)


def call(monkeypatch: pytest.MonkeyPatch, script: ModuleType, *options: object) -> None:
    """The script's ``main``, with its measurements in this process: they take moments."""
    real = subprocess.run

    def run(command: list[str], **kwargs: Any) -> Any:
        if "--one" not in command:
            return real(command, **kwargs)
        try:
            found = script.one(json.loads(command[-1]))
        except Exception as error:
            return subprocess.CompletedProcess(command, 1, "", f"{type(error).__name__}: {error}")
        return subprocess.CompletedProcess(command, 0, json.dumps(found), "")

    monkeypatch.setattr(measure.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["benchmark", *QUICK, *map(str, options)])
    script.main()


def test_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--lengths", 8, 16, "--positions", 64, "--items", 30, "--out", tmp_path]
    call(monkeypatch, length, *options, "--steps", 1, *BRIEF)
    table = pd.read_csv(tmp_path / "length.csv")
    assert len(table) == 4 * 2 * 2
    assert (table["rows"] == 4).all()
    assert (table["ms_per_row"] > 0).all()
    fitted = pd.read_csv(tmp_path / "length_exponents.csv", index_col=["model", "stage"])
    assert len(fitted) == 4 * 2
    assert np.isfinite(fitted["time"]).all()
    assert (tmp_path / "length.png").stat().st_size > 0


def test_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIGMA_DATA", str(tmp_path / "data"))
    options = ["--data", "simulated=", f"beauty={tmp_path / 'none.txt'}", "--models", "sasrec"]
    options += ["sigma", "nonesuch", "--layers", "1", "2", "--layers_on", "simulated"]
    call(monkeypatch, efficiency, *options, "--out", tmp_path, "--steps", 1, *BRIEF)
    said = capsys.readouterr()
    assert said.out.count("beauty is skipped") == 1
    assert said.err.count("failed") == 2  # inference and training of nonesuch
    table = pd.read_csv(tmp_path / "tables_efficiency.csv", index_col=["table", "model"])
    assert set(table.index.get_level_values("model")) == {
        *("sasrec", "sigma", "nonesuch", "sigma x 1", "sigma x 2")
    }
    others = table.drop(index="nonesuch", level="model")
    assert (others[["infer_ms", "train_ms", "infer_process_mib"]].notna()).all(axis=None)
    assert others.loc[("3, 7", "sigma"), "infer_ms_of_sigma"] == 1
    assert (tmp_path / "tables_efficiency.png").stat().st_size > 0


def test_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ["--rows", 3, "--lengths", 5, "--channels", 4, "--states", 3, *BRIEF]
    backends = ["--backends", "cpu", "blocked", "reference"]
    call(monkeypatch, scan, *sizes, *backends, "--out", tmp_path)
    table = pd.read_csv(tmp_path / "scan_cpu.csv", index_col="backend")
    assert list(table.index) == ["cpu", "blocked", "reference", "floor"]
    assert (table["error"].dropna() < 1e-5).all()
    assert table["times_cpu"]["cpu"] == 1
    assert (tmp_path / "scan_cpu.png").stat().st_size > 0


def test_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--items", 50, 100_000, "--rows", 8, "--limit", 0.001, "--out", tmp_path]
    call(monkeypatch, catalogue, *options)
    table = pd.read_csv(tmp_path / "catalogue_cpu.csv", index_col=["loss", "items"])
    # The matrix of 100,000 scores is over the limit.
    assert sorted(table.index) == [("chunks", 50), ("chunks", 100_000), ("matrix", 50)]
    assert (tmp_path / "catalogue_cpu.png").stat().st_size > 0


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, data, "--interactions", 20_000, "--out", tmp_path)
    table = pd.read_csv(tmp_path / "data.csv", index_col="start")
    assert table["users"].tolist() == [500, 500]
    assert (tmp_path / "data.png").stat().st_size > 0


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["dataset.shop.num_users=80", "dataset.shop.num_items=60", f"dataset.root={tmp_path}"]
    options = ["--models", "popularity", "sasrec", *BRIEF, "--out", tmp_path, *data]
    call(monkeypatch, models, *options)
    table = pd.read_csv(tmp_path / "models.csv", index_col="model")
    assert table.index.tolist() == ["popularity", "sasrec"]
    assert table["of_sasrec"].isna().tolist() == [True, False]
    assert (table["eval_seconds"] > 0).all()
    assert (tmp_path / "models.png").stat().st_size > 0


def test_another_checkout_is_measured_by_its_own_code(tmp_path: Path) -> None:
    """Here by this one's, in a process of its own."""
    overrides = [
        "model=sasrec",
        "dataset.shop.num_users=80",
        "dataset.shop.num_items=60",
        f"dataset.root={tmp_path}",
    ]
    figures = against.run(measure.ROOT, overrides, 0.0)
    assert figures.keys() == {"epoch_seconds", "operations", "step_mib", "peak_mib"}
    assert figures["epoch_seconds"] > 0
    assert 100 < figures["operations"] < 5000
    with pytest.raises(SystemExit, match="nonesuch"):
        against.run(measure.ROOT, ["model=nonesuch"], 0.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_what_a_gpu_must_show_is_not_shown_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", str(tmp_path)])
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        gpu.main()
    assert sum(gpu.LIMITS[part] for part in gpu.DEFAULT) < 8 * 60
    parts = {part for part, _ in gpu.ASKED}
    assert parts <= set(gpu.PARTS)


def test_the_papers_numbers() -> None:
    paper = efficiency.printed()
    assert len(paper) == 6 * 6 + 3  # Games of 2014 beside the paper's of 2018
    both = [
        paper.xs(("3, 7", name), level=("table", "dataset")) for name in ("games", "games_2014")
    ]
    assert both[0].equals(both[1])
    assert paper.index.is_unique
    ratios = efficiency.relative(paper)
    of_sigma = ratios.loc[("3, 7", "beauty", "sasrec"), "paper_ms_of_sigma"]
    assert of_sigma == pytest.approx(123 / 68)
    layers = ratios.loc[("5", "beauty", "sigma x 4"), "paper_gpu_gb_of_sigma"]
    assert layers == pytest.approx(6.83 / 3.03)


def test_exponents() -> None:
    lengths = [8192, 50, 100, 200, 400, 800]
    times = [3 * n**1.5 for n in lengths]
    assert length.exponent(lengths, times) == pytest.approx(1.5, abs=1e-12)
    # The smaller half and what could not be measured have no say.
    times[1:3] = [7.0, float("nan")]
    assert length.exponent([*lengths, 9000], [*times, 0.0]) == pytest.approx(1.5)
    assert np.isnan(length.exponent([50, 100], [1.0, float("nan")]))


def test_medians_lowest_and_highest() -> None:
    frame = pd.DataFrame(
        {"round": [0, 1, 2] * 2, "case": ["b"] * 3 + ["a"] * 3, "ms": [5.0, 1, 3, 20, 10, 90]}
    )
    table = measure.summary(frame, ["case"], "ms")
    assert list(table.index) == ["b", "a"]
    assert table.to_numpy().tolist() == [[3, 1, 5], [20, 10, 90]]


def test_a_failing_case_stops_no_other() -> None:
    """Here with real processes."""
    case = {"stage": "inference", "length": 8, "rows": 2, "items": 9, "device": "cpu"}
    cases = [case | {"model": m, "steps": 1, "seconds": 0.0} for m in ("nonesuch", "linrec")]
    frame = measure.rounds("experiments.benchmarks.length", cases, 1, length.one, None)
    assert frame["failed"].notna().tolist() == [True, False]
    assert frame["ms_per_row"].notna().tolist() == [False, True]
