"""What belongs to one cell, what may share a column, and which runs an experiment is."""

from pathlib import Path

import pytest

from experiments.grid import expand, experiments
from experiments.ranks import full_ranks
from experiments.report.lines import lines
from experiments.rows import MixedProtocolError, check_protocol, frame, where
from experiments.significance import gains
from sigma.errors import UserError
from tests.experiments.rows import BEAUTY, DATA, beauty, write


@pytest.mark.slow
def test_an_experiment_is_the_runs_it_says() -> None:
    expected = {
        **{"table1_datasets": 5, "table2_overall dataset=yelp": 40},
        **{"yardsticks dataset=beauty": 4, "relatives dataset=beauty": 12},
        **{"table3_efficiency dataset=games_2014": 6, "table4_ablation dataset=games": 20},
        **{"table5_layers": 15},
        **{"table6_case_study": 3, "figure5_flip_range": 45, "released_vs_paper": 55},
        **{"strong": 45, "padding": 4},
        # Of these a part: all of it takes seconds.
        **{"mambarec_context dataset=lfm_1b dataset.max_length=5000": 5},
        **{"mambarec_efficiency dataset.max_length=250": 4, "echomamba4rec dataset=tmall": 5},
    }
    runs = {name: [job.run_id for job in expand(f"experiment={name}".split())] for name in expected}
    assert {name: len(set(ids)) for name, ids in runs.items()} == expected
    assert all(len(set(ids)) == len(ids) for ids in runs.values())


def test_experiments_narrow_and_share_runs() -> None:
    one = beauty("model=sigma,sasrec", "seed=2020")
    names = [(job.model, job.dataset, job.seed) for job in one]
    assert names == [(model, "beauty", 2020) for model in ("sigma", "sasrec")]
    for same in ("table4_ablation variant=whole", "figure5_flip_range model.r=5"):
        (job,) = expand([*f"experiment={same}".split(), "dataset=beauty", "seed=2020"])
        assert job.run_id == one[0].run_id


def test_the_papers_dropout_is_of_the_data_set() -> None:
    words = ["experiment=table2_overall", "dataset=beauty,ml_1m", "model=sasrec", "seed=1"]
    for job, dropout in zip(expand(words), (0.3, 0.2), strict=True):
        model = job.config["model"]
        assert model["dropout"] == model["attention_dropout"] == dropout


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["experiment=table99"], r"no experiment 'table99'.*table2_overall"),
        ([*BEAUTY, "model.r=interval(1,9)"], "drawn as a search goes on"),
        ([*BEAUTY, "seed=abc"], "seed=abc"),
    ],
)
def test_what_cannot_be_listed_is_refused(typed: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        expand(typed)
    assert "table2_overall" in experiments()


def test_a_cell_is_every_seed_of_one_setting(tmp_path: Path) -> None:
    write(tmp_path, beauty("model=sigma,sasrec", "seed=1,2,3"))
    write(tmp_path, beauty("model=sigma", "model.r=7", "seed=1"))
    write(tmp_path, beauty("model=sigma", "seed=1", "+dataset.seed=7"))  # would count seed 1 twice
    rows = frame([tmp_path])
    assert len(rows) == 8
    (sigma,) = (line for line in lines(rows, *BEAUTY) if line.label == "sigma")
    assert sigma.rows["seed"].tolist() == [1, 2, 3]


def test_an_empty_folder_is_a_frame_without_lines(tmp_path: Path) -> None:
    rows = frame([tmp_path])
    assert rows.empty
    assert {"run_id", "dataset.max_length", "data.users"} <= set(rows)
    with pytest.raises(UserError, match="There is no folder"):
        frame([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("override", "said", "condition"),
    [
        ("dataset.max_length=20", "dataset.max_length is 50 .*20", ""),
        ("dataset.item_bounds=[3,null]", "dataset.item_bounds", ""),
        ("evaluation.monitor=val/mrr@10", r'monitor is "val/ndcg@10".*"val/mrr@10"', ""),
        ("callbacks.early_stopping.patience=3", "patience is 10 .*3", ""),
        ("trainer.max_epochs=20", "trainer.max_epochs is 200 .*20", ""),
        ("trainer.limit_train_batches=0.5", r"limit_train_batches is null .*0\.5", ""),
        ("trainer.limit_test_batches=0.1", r"limit_test_batches is null .*0\.1", ""),
        ("dataset.split=global_time", 'split is "leave_one_out" .*"global_time"', ""),
        ("dataset.val_start=2014-01-01", 'val_start is null .*"2014-01-01"', ""),
        ("dataset.targets=last", 'targets is "successive" .*"last"', ""),
        ("dataset.train_on_val=true", "train_on_val is false .*true", ""),
        ("evaluation=sampled", "sampled.number is null .*1000", "evaluation.sampled.number=1000"),
    ],
)
def test_settings_of_two_protocols_are_refused_by_name(
    override: str, said: str, condition: str, tmp_path: Path
) -> None:
    write(tmp_path, beauty("model=sigma", "seed=1,2"))
    write(tmp_path, beauty("model=sigma", "seed=3", override))
    rows = frame([tmp_path])
    assert rows["setting"].nunique() == 1  # they would share a cell
    with pytest.raises(MixedProtocolError, match=said) as refusal:
        check_protocol("Table 2", rows)
    assert "2 rows, such as sigma-beauty-s1-" in str(refusal.value)
    assert where(rows, [condition or override])["seed"].tolist() == [3]


def test_vintage_and_tuning_are_protocol(tmp_path: Path) -> None:
    jobs = beauty("model=sigma", "seed=1,2,3")
    write(tmp_path, jobs[:2])
    write(tmp_path, jobs[2:], search={"trials": 20}, data=DATA | {"users": 9})
    with pytest.raises(MixedProtocolError, match=r"data.users is 60 .*9 .*trials is 0 .*20"):
        check_protocol("Table 2", frame([tmp_path]))


def test_a_counted_model_has_no_stopping_rule_but_a_test(tmp_path: Path) -> None:
    counted = ["experiment=yardsticks", "dataset=beauty", "model=popularity"]
    write(tmp_path, [*beauty("model=sigma", "seed=1", "trainer.max_epochs=9"), *expand(counted)])
    rows = frame([tmp_path])
    check_protocol("Table 2", rows)
    assert len(where(rows, ["trainer.max_epochs=9"])) == 2
    assert where(rows, ["model.r=5"])["model"].tolist() == ["sigma"]
    with pytest.raises(UserError, match=r"No row has trainer.max_epochs=8; .* is 9 in those"):
        where(rows, ["trainer.max_epochs=8"])
    with pytest.raises(UserError, match="key=value"):
        where(rows, ["trainer.max_epochs"])
    write(tmp_path, expand([*counted, "trainer.limit_test_batches=0.1"]))
    with pytest.raises(MixedProtocolError, match="limit_test_batches"):
        check_protocol("Table 2", frame([tmp_path]))


def test_damaged_and_doubled_rows_are_named(tmp_path: Path) -> None:
    jobs = beauty("model=sigma", "seed=1,2")
    write(tmp_path / "a", jobs)
    write(tmp_path / "b", jobs[:1], finished="2026-02-01T00:00:00+00:00", epochs=99)
    (tmp_path / "a" / "half").mkdir()
    (tmp_path / "a" / "half" / "row.json").write_text('{"metrics": ')
    (tmp_path / "b" / jobs[0].run_id / "ranks.parquet").write_bytes(b"PAR1")
    rows = frame([tmp_path / "a", tmp_path / "b"]).sort_values("seed")
    assert rows["epochs"].tolist() == [99, 14]
    assert rows["ranks"].notna().tolist() == [False, True]
    for said in ("half/row.json is not a row", "run more than once", "counts without its ranks"):
        assert sum(said in note for note in rows.attrs["notes"]) == 1


@pytest.mark.parametrize(
    "changes",
    [
        *[{"git": None}, {"config": {"model": "sigma"}}, {"efficiency": 3}, {"schema": 99}],
        {"data": {"users": 1, "items": 1, "interactions": 1}},
        {"metrics": {"val": {"hr@10": float("nan")}, "test": {}}},
    ],
)
def test_a_row_that_lacks_what_tables_read_is_named(changes: dict, tmp_path: Path) -> None:
    good, bad = beauty("model=sigma,sasrec", "seed=1")
    write(tmp_path, [good])
    write(tmp_path, [bad], **changes)
    rows = frame([tmp_path])
    assert rows["run_id"].tolist() == [good.run_id]
    (note,) = rows.attrs["notes"]
    assert f"{bad.run_id}/row.json is not a row that can be read" in note


def test_committed_ranks_give_the_metrics_of_their_rows() -> None:
    rows = frame()
    for row in rows[rows["dataset"] == "ml_100k"].iloc[::15].to_dict("records"):
        ranks = full_ranks(row)
        assert ranks is not None
        assert len(ranks) == row["data.test_samples"]
        for metric in ("hr@10", "ndcg@10", "mrr@10"):
            assert gains(ranks, metric).mean() == pytest.approx(row[f"test/{metric}"], 1e-5)
