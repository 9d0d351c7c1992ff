"""The report from no rows, some and all: its numbers, what it refuses, what it says is missing."""

import functools
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from experiments.grid import Job, expand
from experiments.paper.values import logged
from experiments.report import figures, front_page, others, page, searches
from experiments.report.__main__ import main
from experiments.report.lines import best_marks, lines
from experiments.report.tables import COMPARISONS, compare
from experiments.rows import RANKINGS, MixedProtocolError, frame
from tests.experiments.rows import BEAUTY, GROUPS, beauty, write


@functools.cache
def everything() -> tuple[Job, ...]:
    """Three seeds of everything on Beauty, and a second data set with half a column."""
    words = ["dataset=beauty", "seed=2020,2021,2022"]
    jobs = [job for name in COMPARISONS for job in expand([f"experiment={name}", *words])]
    jobs += expand(["experiment=yardsticks", "dataset=beauty"])
    jobs += expand(["experiment=table2_overall", "dataset=ml_1m", "model=sigma,echo", "seed=2020"])
    return tuple({job.run_id: job for job in jobs}.values())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("report")
    write(folder / "rows", everything())
    main([str(folder / "rows"), "--out", str(folder / "out"), "--latex", "--html"])
    return folder / "out", frame([folder / "rows"])


def overall(rows: pd.DataFrame, dataset: str) -> list[page.Table]:
    return compare(COMPARISONS["table2_overall"], rows, dataset)


def csv(folder: Path, name: str) -> pd.DataFrame:
    table = pd.read_csv(folder / "tables" / f"{name}.csv")
    return table.set_index(table.columns[0])


@pytest.mark.slow
def test_cells_are_means_of_their_rows(built: tuple[Path, pd.DataFrame]) -> None:
    folder, rows = built
    rows = rows[rows["dataset"] == "beauty"]
    table = csv(folder, "table2_beauty_ndcg10")
    changed = {"sigma": {"gate": True, "gru": True, "partial_flip": True, "r": 5, "num_layers": 1}}
    for model, seeds in (("sigma", 3), ("sasrec", 3), ("markov", 1)):
        values = [
            row["test/ndcg@10"]
            for row in rows[rows["model"] == model].to_dict("records")
            if all(row["config"]["model"][k] == v for k, v in changed.get(model, {}).items())
        ]
        assert table.loc[model, "seeds"] == f"{seeds} of {5 if seeds == 3 else 1}"
        assert table.loc[model, "ours test"] == pytest.approx(np.mean(values))
        deviation = np.std(values, ddof=1) if seeds == 3 else float("nan")
        assert table.loc[model, "ours test sd"] == pytest.approx(deviation, nan_ok=True)
    assert table.loc["sigma", ["paper", "log test"]].tolist() == [0.0604, 0.0452]
    flips = csv(folder, "figure5_flip_range_beauty")
    assert flips.index.tolist() == [0, 1, 3, 5, 10, 20, 30, 40, 50]
    assert csv(folder, "table4_ablation_beauty").loc["no gru", "HR@10, paper"] == 0.0750
    layers = csv(folder, "table5_layers_beauty")["NDCG@10, paper"]
    assert layers.tolist() == [0.0604, 0.0611, 0.0589]


@pytest.mark.slow
def test_every_table_and_figure_is_written_and_named(built: tuple[Path, pd.DataFrame]) -> None:
    folder, rows = built
    drawn = {path.stem for path in (folder / "figures").iterdir()}
    assert drawn == {
        *("table2_beauty", "figure1_beauty", "figure3_beauty", "figure4_beauty", "figure5_beauty"),
        *("table2_ml_1m", "figure1_ml_1m", "figure3_ml_1m"),
    }
    text = (folder / "report.md").read_text()
    for name in drawn:
        assert f"(figures/{name}.svg)" in text
        titles = ElementTree.parse(folder / "figures" / f"{name}.svg").iter(
            "{http://purl.org/dc/elements/1.1/}title"
        )
        assert len(str(next(titles).text)) > 10
    assert len(csv(folder, "runs")) == len(rows)
    for path in (folder / "tables").glob("*.csv"):
        assert f'id="table-{path.stem}"' in text
        assert path.with_suffix(".tex").read_text().count(r"\toprule") == 1
        assert path.with_suffix(".html").read_text().count("<table") == 1


def test_from_an_empty_folder_everything_is_missing_and_nothing_filled_in(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    main([str(tmp_path / "rows"), "--out", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "There are no rows yet; nothing is filled in." in text
    assert "experiment=table1_datasets dataset=beauty" in text
    runs = csv(tmp_path, "not_run").set_index("data set", append=True)["runs"]
    assert runs["table4_ablation", "beauty"] == 4 * 5
    assert "\npython train.py -m experiment=table4_ablation dataset=beauty\n" in text
    names = {path.stem for path in (tmp_path / "tables").iterdir()} - {"table3_efficiency"}
    assert names == {"table1_datasets", "table8_groups", "not_run", "runs"}
    assert csv(tmp_path, "table8_groups").filter(like="test").isna().all(axis=None)
    front_page(tmp_path / "rows")
    assert "nothing is filled in" in (tmp_path / "rows" / "README.md").read_text()


@pytest.mark.slow
def test_the_commands_ask_for_what_is_missing_and_no_more(tmp_path: Path) -> None:
    """Of the protocol that the rows have."""
    short = ["dataset.max_length=20", "trainer.limit_train_batches=0.25"]
    words = ["experiment=table2_overall", "dataset=ml_100k"]
    jobs = expand([*words, *short, "model=sasrec,sigma", "seed=2020,2021"])
    write(tmp_path, jobs)
    table = overall(frame([tmp_path]), "ml_100k")[0]
    assert (
        "Protocol of these runs, where not the experiment's: dataset.max_length=20 (not 50), "
        "trainer.limit_train_batches=0.25 (not null)."
    ) in table.notes
    commands = [line.partition("#")[0].split()[3:] for line in table.missing]
    groups = ("table2_overall", "relatives", "yardsticks", "padding")
    every = [[f"experiment={name}", "dataset=ml_100k", *short] for name in groups]
    again, entire = (
        sorted({job.run_id for words in typed for job in expand(words)})
        for typed in (commands, every)
    )
    assert sorted(again + [job.run_id for job in jobs]) == entire
    assert table.missing[0].endswith("# 30 of 40 runs are missing")


@pytest.mark.slow
def test_rows_of_two_protocols_leave_an_earlier_report_as_it_was(tmp_path: Path) -> None:
    rows, out = tmp_path / "rows", tmp_path / "out"
    write(rows, beauty("model=sigma,sasrec", "seed=2020"))
    main([str(rows), "--out", str(out)])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write(rows, beauty("model=echo", "seed=2020", "dataset.max_length=20"))
    with pytest.raises(MixedProtocolError, match=r"dataset.max_length is 50 .*20"):
        main([str(rows), "--out", str(out)])
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    main([str(rows), "--out", str(out), "--where", "dataset.max_length=50"])
    assert csv(out, "table2_beauty_hr10")["seeds"]["sigma"] == "1 of 5"
    assert "echo" not in csv(out, "runs")["commit"]


@pytest.mark.parametrize(("length", "last"), [(20, 20), (15, 20), (50, 50)])
def test_flips_that_are_none_at_a_length_are_not_missed(
    length: int, last: int, tmp_path: Path
) -> None:
    words = ["experiment=figure5_flip_range", "dataset=ml_100k", "seed=2020", "model.r=0,5"]
    write(tmp_path, expand([*words, f"dataset.max_length={length}"]))
    table = compare(COMPARISONS["figure5_flip_range"], frame([tmp_path]), "ml_100k")[0]
    every = [0, 1, 3, 5, 10, 20, 30, 40, 50]
    assert [int(r) for r in table.frame["setting"]] == [r for r in every if r <= last]


@pytest.mark.slow
def test_speed_and_search_and_context_have_their_own_places(tmp_path: Path) -> None:
    """None of them may block or enter Table 2."""
    write(tmp_path, beauty("model=sigma", "seed=2020"))
    short = "experiment=mambarec_context dataset=beauty model=mambarec dataset.max_length=250,500"
    for group, jobs in {
        "table3": expand(["experiment=table3_efficiency", "dataset=beauty", "model=sigma"]),
        "fair_search": beauty("model=sasrec", "seed=2020", "model.hidden_size=32,128"),
        "mambarec_context": expand(short.split()),
    }.items():
        search = {"trials": 2} if group == "fair_search" else None
        for job in jobs:
            write(tmp_path, [job], config=job.config | {"group": group}, search=search)
    rows = frame([tmp_path])
    table = overall(rows, "beauty")[0].frame.set_index("model")
    assert table.loc[["sigma", "sasrec"], "seeds"].tolist() == ["1 of 5", "0 of 5"]
    (tuned,) = searches.budgets(rows)
    trials = rows[rows["tuning trials"] > 0]
    assert tuned.frame["run"].tolist() == [trials.loc[trials["val/ndcg@10"].idxmax(), "run_id"]]
    aside = {table.name: table.frame for table in others.aside(rows)}
    assert set(aside) == {"mambarec_context_beauty", "table3_beauty"}
    context = aside["mambarec_context_beauty"]
    assert context["context"].tolist() == [250, 500]
    assert context["NDCG@10"].between(0.01, 1).all()
    assert context["NDCG@10, readme"].isna().all()  # which has no Beauty
    assert not set(aside["table3_beauty"]) & {"HR@10", "NDCG@10"}  # of three epochs


@pytest.mark.slow
def test_what_mambarec_and_echomamba4rec_print_stands_beside_ours(tmp_path: Path) -> None:
    context = "experiment=mambarec_context dataset=kuairand dataset.max_length=2000"
    for job in expand(f"{context} model=recmamba,mambarec".split()):
        write(tmp_path, [job], config=job.config | {"group": "mambarec_context"})
    length = ["dataset.max_length=2000", "objective.last_window=true"]
    (full,) = expand(["experiment=relatives", "dataset=kuairand", "model=mambarec", *length])
    write(tmp_path, [full])
    shorter = expand([*full.overrides, "trainer.limit_train_batches=0.5"])  # another protocol
    write(tmp_path, shorter)
    write(tmp_path, expand(["experiment=echomamba4rec", "dataset=ml_1m", "model=echo"]))
    rows = frame([tmp_path])
    (aside,) = others.aside(rows)
    table = aside.frame.set_index("model")
    assert table["NDCG@10, readme"].to_dict() == {"recmamba": 0.5828, "mambarec": 0.736}
    assert table["HR@10, all"].isna().to_dict() == {"recmamba": True, "mambarec": False}
    of_all = rows.set_index("run_id").loc[full.run_id, "test/hr@10"]
    assert table.loc["mambarec", "HR@10, all"] == of_all
    assert table["negatives, readme"].to_dict() == {"recmamba": 1000, "mambarec": 100}
    (echo,) = others.echomamba4rec(rows)
    (line,) = echo.frame[echo.frame["data set"] == "ml_1m"].to_dict("records")
    assert (line["metric"], line["echo, printed"]) == ("NDCG@10", 0.1907)
    assert line["echo"] == rows.set_index("model").loc["echo", "test/ndcg@10"]
    assert echo.frame["data set"].tolist() == ["ml_1m", "lfm_1b", "ml_32m", "netflix", "tmall"]
    assert "dataset=ml_1m model=gru4rec,bert4rec,sasrec,mamba4rec" in echo.missing[0]
    assert echo.missing[1] == "python train.py -m experiment=echomamba4rec dataset=lfm_1b"


def test_seeds_are_matched_not_counted(tmp_path: Path) -> None:
    write(tmp_path, beauty("model=sigma", "seed=1,2"))
    table = overall(frame([tmp_path]), "beauty")[0]
    assert table.frame.set_index("model")["seeds"]["sigma"] == "2: 1, 2"
    assert table.missing[0].endswith("# 40 of 40 runs are missing")


def test_differences_are_over_common_seeds(tmp_path: Path) -> None:
    write(tmp_path, beauty("model=sigma", "seed=2020,2021"))
    write(tmp_path, beauty("model=sasrec", "seed=2021,2022"))
    rows = frame([tmp_path])
    values = rows.set_index(["model", "seed"])["test/ndcg@10"]
    (table,) = (t for t in overall(rows, "beauty") if t.name.endswith("_tests"))
    line = table.frame.set_index(["model", "among"]).loc["sigma", next(iter(RANKINGS))]
    improvement = values["sigma", 2021] / values["sasrec", 2021] - 1
    assert line["improvement"] == pytest.approx(improvement)
    assert line["seeds in common"] == 1


@pytest.mark.parametrize(
    ("model", "dataset", "metric", "split", "value"),
    [
        ("mamba4rec_one_layer", "beauty", "hr@10", "test", 0.0659),
        ("mamba4rec", "beauty", "hr@10", "test", None),  # of two layers
        ("echo", "beauty", "hr@10", "test", None),
        ("echo_sigma", "beauty", "hr@10", "test", 0.0608),  # their code
        ("sigma", "beauty", "hr@10", "test", 0.0761),
        ("sigma_released", "beauty", "hr@10", "test", 0.0761),
        ("sigma", "games", "ndcg@10", "valid", 0.1088),  # what Table 2 prints
        ("sigma", "yelp", "hr@10", "test", None),  # of 100 items
        ("sigma", "ml_1m", "hr@10", "test", 0.3136),  # of 200 items
    ],
)
def test_the_log_stands_beside_what_its_authors_ran(
    model: str, dataset: str, metric: str, split: str, value: float | None
) -> None:
    expected = float("nan") if value is None else value
    assert logged(dataset, model, metric, split) == pytest.approx(expected, nan_ok=True)


def test_table_8_is_of_the_most_frequent_filter(tmp_path: Path) -> None:
    write(tmp_path, beauty("model=sigma", "seed=1,2"))
    (other,) = write(tmp_path, beauty("model=sigma", "seed=3", "dataset.user_bounds=[20,null]"))
    pd.read_parquet(other / "ranks.parquet").tail(5).to_parquet(other / "ranks.parquet")
    table = others.user_groups(frame([tmp_path]))
    (line,) = table.frame[table.frame["data set"] == "beauty"].to_dict("records")
    # Lengths are 2 to 31, twice; validation's are one less.
    assert [line[f"{group}, test"] for group in GROUPS] == [6, 30, 24]
    assert [line[f"{group}, valid"] for group in GROUPS] == [8, 30, 22]
    assert "beauty: 1 runs of other filters or data are not counted." in table.notes


def test_bins_of_history_hold_every_user_once(tmp_path: Path) -> None:
    write(tmp_path, beauty("model=sigma", "seed=1"))
    rows = frame([tmp_path])
    bins = figures.tail(lines(rows, *BEAUTY))
    expected = {"1–3": 4, "4": 2, "5": 2, "6–7": 4, "8–9": 4, "10–14": 10, "15–19": 10, "20–49": 24}
    assert dict(zip(bins["bin"], bins["users"], strict=True)) == expected
    for name, prefix in RANKINGS.items():
        mean = (bins["users"] * bins[f"HR@10, {name}"]).sum() / bins["users"].sum()
        assert mean == pytest.approx(rows[f"test/{prefix}hr@10"][0])


def test_marks_and_formats_by_hand() -> None:
    assert best_marks(pd.Series([0.1, None, 0.3, 0.3, 0.2])) == ["", "", "best", "best", "second"]
    frame = pd.DataFrame({"a|b": ["x|y", "z"], "m": [0.07371, 1.5], "m sd": [0.00119, None]})
    table = page.Table("t", "A title", "A caption.", frame, {"m": ["best", "second"]})
    assert [re.sub(r" +", " ", line) for line in table.markdown().splitlines()[2:]] == [
        r"| x\|y | **.0737 ± .0012** |",
        "| z | *1.5000* |",
    ]
    assert [page.number(v) for v in (0.0, -0.05, None, 12.0)] == [".0000", "-.0500", "–", "12.0000"]
    assert [page.shown(v, "improvement") for v in (0.1, -0.1, None)] == ["+10.0%", "−10.0%", "–"]
    assert [page.shown(v) for v in (2020, "text", 0.5)] == ["2020", "text", ".5000"]
    assert page.shown(1e-5, "p over users") == "< .0001"
    assert r"\bfseries" in table.as_format("latex")
