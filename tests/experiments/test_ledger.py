"""What belongs to one cell, what may stand together, and how collected rows are kept."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.collect import main as collect
from experiments.grid import expand, experiments
from experiments.ledger import (
    MixedProtocolError,
    check_protocol,
    gains,
    history_bins,
    narrowed,
    read,
)
from experiments.status import main as status
from sigma.errors import UserError
from sigma.ranking.metrics import RankingMetrics
from tests.experiments.rows import DATA, write

BEAUTY = ("experiment=table2_overall", "dataset=beauty")


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("table1_datasets", 5), ("table2_overall", 200), ("yardsticks", 20), ("relatives", 50),
        ("table3_efficiency", 30), ("table4_ablation", 100), ("table5_layers", 15),
        ("table6_case_study", 3), ("table8_groups", 3), ("figure1_long_tail", 15),
        ("figure3_groups", 150), ("figure4_ablation_groups", 20), ("figure5_flip_range", 45),
        ("figure6_case_study", 3), ("released_vs_paper", 55), ("mambarec_context", 15),
        ("mambarec_efficiency", 15),
    ],
)  # fmt: skip
def test_an_experiment_is_the_runs_it_says(name: str, runs: int) -> None:
    found = expand([f"experiment={name}"])
    assert len(found) == runs
    assert len({job.run_id for job in found}) == runs


def test_experiments_narrow_and_share_runs() -> None:
    one = expand([*BEAUTY, "model=sigma,sasrec", "seed=2020"])
    assert [(j.model, j.dataset, j.seed) for j in one] == [
        ("sigma", "beauty", 2020),
        ("sasrec", "beauty", 2020),
    ]
    whole = expand(["experiment=table4_ablation", "dataset=beauty", "variant=whole", "seed=2020"])
    assert whole[0].run_id == one[0].run_id
    r5 = expand(["experiment=figure5_flip_range", "model.r=5", "seed=2020"])
    assert r5[0].run_id == one[0].run_id


def test_the_papers_dropout_is_of_the_data_set() -> None:
    for dataset, dropout in (("beauty", 0.3), ("ml_1m", 0.2)):
        job = expand(["experiment=table2_overall", f"dataset={dataset}", "model=sasrec", "seed=1"])[
            0
        ]
        assert job.config["model"]["dropout"] == dropout
        assert job.config["model"]["attention_dropout"] == dropout


def test_an_unknown_experiment_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no experiment 'table99'; there are: .*table2_overall"):
        expand(["experiment=table99"])
    assert "table2_overall" in experiments()


def test_gains_are_those_of_the_projects_metrics() -> None:
    draw = np.random.default_rng(0)
    ranks = pd.DataFrame({"greater": draw.integers(0, 15, 50), "ties": draw.integers(0, 4, 50)})
    for metric in ("hr@10", "ndcg@10", "mrr@10"):
        whole = RankingMetrics([10], alone=True)
        columns = [torch.tensor(ranks[c].to_numpy()) for c in ("greater", "ties")]
        whole.update(*columns, torch.ones(50, dtype=torch.int64))
        assert gains(ranks, metric).mean() == pytest.approx(float(whole.compute()[metric]), 1e-6)


def test_a_cell_is_every_seed_of_one_setting(tmp_path: Path) -> None:
    jobs = expand([*BEAUTY, "model=sigma,sasrec", "seed=1,2,3"])
    write(tmp_path, jobs)
    write(tmp_path, expand([*BEAUTY, "model=sigma", "model.r=7", "seed=1"]))
    ledger = read([tmp_path])
    assert len(ledger.rows) == 7
    assert [(row.model, row.seed) for row in ledger.rows_of(jobs[0].config)] == [
        ("sigma", 1),
        ("sigma", 2),
        ("sigma", 3),
    ]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("dataset.max_length=20", "dataset.max_length is 50 .*20"),
        ("dataset.mask_history=true", "dataset.mask_history is false .*true"),
        ("dataset.item_bounds=[3,null]", "dataset.item_bounds"),
        ("evaluation.monitor=val/mrr@10", r'evaluation.monitor is "val/ndcg@10".*"val/mrr@10"'),
        ("callbacks.early_stopping.patience=3", "patience is 10 .*3"),
        ("trainer.max_epochs=20", "trainer.max_epochs is 200 .*20"),
        ("trainer.limit_train_batches=0.5", r"trainer.limit_train_batches is null .*0\.5"),
        ("trainer.limit_test_batches=0.1", r"trainer.limit_test_batches is null .*0\.1"),
        ("evaluation=sampled", r"evaluation.sampled.number is null .*1000"),
    ],
)
def test_rows_of_two_protocols_are_refused_by_name(
    override: str, told: str, tmp_path: Path
) -> None:
    jobs = expand([*BEAUTY, "model=sigma", "seed=1,2"])
    other = expand([*BEAUTY, "model=sigma", "seed=3", override])
    write(tmp_path, [*jobs, *other])
    rows = read([tmp_path]).rows_of(jobs[0].config)
    assert len(rows) == 3  # the same setting, so they would share a cell
    with pytest.raises(MixedProtocolError, match=told):
        check_protocol("Table 2", rows)
    key, value = override.split("=")
    if key == "evaluation":
        key, value = "evaluation.sampled.number", "1000"
    chosen = narrowed(read([tmp_path]), [f"{key}={value}"])
    assert [row.seed for row in chosen.rows] == [3]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"search": {"trials": 20}}, "tuning trials is 0 .*20"),
        ({"data": DATA | {"users": 9}}, "data.users is 60 .*9"),
    ],
)
def test_vintage_and_tuning_are_protocol(changes: dict, told: str, tmp_path: Path) -> None:
    jobs = expand([*BEAUTY, "model=sigma", "seed=1,2,3"])
    write(tmp_path, jobs[:2])
    write(tmp_path, jobs[2:], **changes)
    with pytest.raises(MixedProtocolError, match=told):
        check_protocol("Table 2", read([tmp_path]).rows)


def test_damaged_and_doubled_rows_are_told(tmp_path: Path) -> None:
    jobs = expand([*BEAUTY, "model=sigma", "seed=1"])
    write(tmp_path / "a", jobs)
    write(tmp_path / "b", jobs, finished="2026-02-01T00:00:00+00:00", epochs=99)
    (tmp_path / "a" / "half.json").write_text('{"metrics": ')
    ledger = read([tmp_path / "a", tmp_path / "b"])
    assert [row.content["epochs"] for row in ledger.rows] == [99]
    assert any("half.json is not a row" in note for note in ledger.notes)
    assert any("was run more than once" in note for note in ledger.notes)
    with pytest.raises(UserError, match="There is no folder"):
        read([tmp_path / "nowhere"])


def test_bins_of_history_hold_every_user_once(tmp_path: Path) -> None:
    write(tmp_path, expand([*BEAUTY, "model=sigma", "seed=1"]))
    row = read([tmp_path]).rows[0]
    bins = history_bins(row, (1, 4, 5, 10))
    assert bins is not None
    assert list(bins["bin"]) == ["1–3", "4", "5–9", "10+"]
    lengths = row.ranks["history_length"]
    assert list(bins["users"]) == [
        int(lengths.between(*limits).sum()) for limits in ((1, 3), (4, 4), (5, 9), (10, 999))
    ]
    whole = (bins["users"] * bins["hr@10"].fillna(0)).sum() / bins["users"].sum()
    assert whole == pytest.approx(row.metric("test", "hr@10"))


def test_collected_rows_are_the_runs_own_and_collecting_again_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = expand([*BEAUTY, "model=sigma", "seed=1,2"])
    for path in write(tmp_path / "made", jobs):
        folder = tmp_path / "runs" / path.stem
        folder.mkdir(parents=True)
        (folder / "row.json").write_bytes(path.read_bytes())
        path.with_suffix(".ranks.parquet").rename(folder / "ranks.parquet")
    told = [str(tmp_path / "runs"), "--out", str(tmp_path / "rows")]
    collect(told)
    assert "2 of 2 rows are new" in capsys.readouterr().out
    kept = {row.run_id: row for row in read([tmp_path / "rows"]).rows}
    for row in read([tmp_path / "runs"]).rows:
        assert kept[row.run_id].content == row.content
        assert kept[row.run_id].per_user().equals(row.per_user())
    collect(told)
    assert "0 of 2 rows are new" in capsys.readouterr().out


def test_a_counted_model_has_no_stopping_rule_but_a_test(tmp_path: Path) -> None:
    trained = expand([*BEAUTY, "model=sigma", "seed=1", "trainer.max_epochs=9"])
    counted = ["experiment=yardsticks", "dataset=beauty", "model=popularity"]
    write(tmp_path, [*trained, *expand(counted)])
    rows = read([tmp_path]).rows
    check_protocol("Table 2", rows)
    assert len(narrowed(read([tmp_path]), ["trainer.max_epochs=9"]).rows) == 2
    with pytest.raises(UserError, match=r"No row has trainer.max_epochs=8; .* is 9 in those"):
        narrowed(read([tmp_path]), ["trainer.max_epochs=8"])
    write(tmp_path, expand([*counted, "trainer.limit_test_batches=0.1"]))
    with pytest.raises(MixedProtocolError, match="limit_test_batches"):
        check_protocol("Table 2", read([tmp_path]).rows)


def test_a_data_seed_of_its_own_is_another_cell(tmp_path: Path) -> None:
    jobs = expand([*BEAUTY, "model=sigma", "seed=1"])
    write(tmp_path, [*jobs, *expand([*BEAUTY, "model=sigma", "seed=1", "dataset.seed=7"])])
    assert len(read([tmp_path]).rows_of(jobs[0].config)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"git": None}, {"metrics": {"test": {}}}, {"config": {"model": "sigma"}}, {"seed": "x"},
        {"efficiency": 3}, {"schema": 99}, {"best_epoch": "x"}, {"hardware": {}}, {"git": {}},
        {"data": {"users": 1, "items": 1, "interactions": 1}},
        {"metrics": {"val": {"hr@10": "abc"}, "test": {}}},
        {"metrics": {"val": {"hr@10": float("nan")}, "test": {}}},
    ],
)  # fmt: skip
def test_a_row_that_lacks_what_tables_read_is_told(changes: dict, tmp_path: Path) -> None:
    good, bad = expand([*BEAUTY, "model=sigma,sasrec", "seed=1"])
    write(tmp_path, [good])
    write(tmp_path, [bad], **changes)
    ledger = read([tmp_path])
    assert [row.run_id for row in ledger.rows] == [good.run_id]
    assert f"{bad.run_id}.json is not a row that can be read" in ledger.notes[0]


def test_damaged_ranks_cost_the_ranks_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write(tmp_path / "made", expand([*BEAUTY, "model=sigma,sasrec", "seed=1"]))
    paths[0].with_suffix(".ranks.parquet").write_bytes(b"PAR1")
    collect([str(tmp_path / "made"), "--out", str(tmp_path / "rows")])
    assert "cannot be read" in capsys.readouterr().out
    rows = read([tmp_path / "rows"]).rows
    assert [row.ranks is None for row in sorted(rows, key=lambda r: r.model)] == [False, True]


def test_status_of_damaged_files_and_of_a_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [*BEAUTY, "model=sigma", "seed=1"]
    folder = tmp_path / expand(typed)[0].run_id
    folder.mkdir()
    (folder / "failed.json").touch()
    status([*typed, "--runs", str(tmp_path)])
    assert "1 runs: 1 failed" in capsys.readouterr().out
    (folder / "row.json").touch()
    status([*typed, "--runs", str(tmp_path)])
    told = capsys.readouterr().out
    assert "1 runs: 1 failed" in told
    assert "is damaged; delete it" in told.replace("\n", " ")
    for text in ('{"efficiency": null, "epochs": 3}', '{"efficiency": {"train_seconds": "abc"}}'):
        (folder / "row.json").write_text(text)
        status([*typed, "--runs", str(tmp_path)])
        assert "1 runs: 1 failed" in capsys.readouterr().out
    status([*typed, "--runs", str(tmp_path / "nowhere")])
    assert f"There is no folder {tmp_path / 'nowhere'} yet" in capsys.readouterr().out
    with pytest.raises(UserError, match="drawn as a search goes on"):
        expand(["model.dropout=interval(0,1)", "model=sasrec", "dataset=beauty"])
    with pytest.raises(UserError, match="seed=abc"):
        expand([*BEAUTY, "seed=abc"])
