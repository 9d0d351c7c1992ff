"""The report from no rows, some and all; a golden copy of each table; nothing is filled in.

``python -m tests.experiments.test_report`` writes the golden copies anew: look at what changed.
"""

import functools
import re
import tempfile
from pathlib import Path

import pandas as pd
import pytest

from experiments import report, side_tables, tables
from experiments.grid import Job, expand
from experiments.ledger import read
from experiments.paper.values import logged
from sigma.errors import UserError
from tests.experiments.rows import write

GOLDEN = Path(__file__).parent / "golden" / "report"


@functools.cache
def full() -> tuple[Job, ...]:
    """Three seeds of everything on Beauty, and a second data set with half a column."""
    beauty = [
        job
        for name in (
            "table2_overall", "table4_ablation", "table5_layers", "figure5_flip_range",
            "released_vs_paper",
        )
        for job in expand([f"experiment={name}", "dataset=beauty", "seed=2020,2021,2022"])
    ]  # fmt: skip
    beside = expand(["experiment=yardsticks", "dataset=beauty"])
    half = expand(["experiment=table2_overall", "dataset=ml_1m", "model=sigma,echo", "seed=2020"])
    return tuple({job.run_id: job for job in [*beauty, *beside, *half]}.values())


def made(folder: Path, jobs: tuple[Job, ...]) -> Path:
    rows = folder / "rows"
    rows.mkdir(parents=True)
    write(rows, jobs)
    report.main([str(rows), "--out", str(folder / "report"), "--cases", str(folder / "none")])
    return folder / "report"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("full"), full())


def shown(folder: Path) -> dict[str, str]:
    """Tables by name, but the benchmark's, which has a file and a golden copy of its own."""
    found = {path.stem: path.read_text() for path in sorted((folder / "tables").glob("*.md"))}
    found.pop("table3_efficiency", None)
    return found


def test_every_table_is_its_golden_copy(whole: Path) -> None:
    expected = {path.stem: path.read_text() for path in sorted(GOLDEN.glob("*.md"))}
    found = shown(whole)
    assert list(found) == list(expected)
    for name, text in found.items():
        assert text == expected[name], name


def test_every_figure_is_drawn(whole: Path) -> None:
    drawn = {path.stem for path in (whole / "figures").glob("*.png")}
    assert drawn == {
        "table2_beauty", "figure1_beauty", "figure3_beauty", "figure4_beauty", "figure5_beauty",
        "table2_ml_1m", "figure1_ml_1m", "figure3_ml_1m",
    }  # fmt: skip
    assert drawn == {path.stem for path in (whole / "figures").glob("*.svg")}


def test_from_an_empty_folder_everything_is_missing_and_nothing_filled_in(tmp_path: Path) -> None:
    folder = made(tmp_path, ())
    text = (folder / "report.md").read_text()
    assert "There are no rows yet; nothing is filled in." in text
    assert "experiment=table1_datasets dataset=beauty" in text
    # Every experiment on the paper's sets has its command, with as many runs as it will start.
    (line,) = re.findall(r"(?m)^\| table4.*?ablation \| beauty \| (\d+) \|$", text)
    asked = expand(["experiment=table4_ablation", "dataset=beauty"])
    assert int(line) == len(asked)
    assert "\npython train.py -m experiment=table4_ablation dataset=beauty\n" in text
    assert not list((folder / "figures").glob("*"))
    assert set(shown(folder)) == {"table1_datasets", "table8_groups", "not_run", "runs"}


def test_from_half_the_rows_what_is_missing_is_told(tmp_path: Path) -> None:
    folder = made(tmp_path, expand_some())
    table = shown(folder)["table2_beauty_ndcg10"]
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if "|" in line}
    assert lines["sigma"].count("–") < lines["echo"].count("–")
    assert "1 of 5 seeds" in table
    commands = re.findall(
        r"(?m)^python train.py -m (.*) # (\d+) of 40 runs", shown(folder)["table2_beauty_hr10"]
    )
    assert [count for _, count in commands] == ["30", "8"]
    there = {job.run_id for job in expand_some()}
    asked = {job.run_id for command, _ in commands for job in expand(command.split())}
    assert not there & asked
    assert there | asked == {
        job.run_id for job in expand(["experiment=table2_overall", "dataset=beauty"])
    }


def expand_some() -> tuple[Job, ...]:
    return tuple(
        expand(["experiment=table2_overall", "dataset=beauty", "model=sigma,sasrec", "seed=2020"])
    )


def test_rows_of_two_protocols_end_in_a_sentence_and_no_report(tmp_path: Path) -> None:
    from experiments.ledger import MixedProtocolError

    other = expand([
        "experiment=table2_overall", "dataset=beauty", "model=echo", "seed=2020",
        "dataset.max_length=20",
    ])  # fmt: skip
    with pytest.raises(MixedProtocolError, match=r"dataset.max_length is 50 .*20"):
        made(tmp_path, (*expand_some(), *other))
    assert not (tmp_path / "report" / "index.html").exists()
    rows, out = str(tmp_path / "rows"), str(tmp_path / "report")
    report.main([rows, "--out", out, "--cases", out, "--where", "dataset.max_length=50"])
    assert (tmp_path / "report" / "index.html").exists()


def test_another_protocol_is_said_and_its_missing_runs_are_of_it(tmp_path: Path) -> None:
    """The command for the missing runs asks for the very runs that are there, and the rest."""
    asked = ["experiment=table2_overall", "dataset=ml_100k", "model=sasrec,sigma"]
    short = ["dataset.max_length=20", "trainer.limit_train_batches=0.25"]
    jobs = expand([*asked, *short, "seed=2020,2021"])
    write(tmp_path, jobs)
    table = tables.overall(read([tmp_path]), "ml_100k")[0]
    assert (
        "Protocol of these runs, where not the experiment's: dataset.max_length=20 (not 50), "
        "trainer.limit_train_batches=0.25 (not null)."
    ) in table.notes
    again = [
        job.run_id
        for line in table.missing
        for job in expand(line.partition("#")[0].removeprefix("python train.py -m ").split())
    ]
    # The lines beside it, too, of which there is none yet.
    names = ("table2_overall", "relatives", "yardsticks")
    whole = [
        job for name in names for job in expand([f"experiment={name}", "dataset=ml_100k", *short])
    ]
    assert sorted(again) == sorted({job.run_id for job in whole} - {job.run_id for job in jobs})
    counted = expand(["experiment=yardsticks", "dataset=ml_100k", short[0]])
    write(tmp_path / "counted", counted)
    table = tables.overall(read([tmp_path / "counted"]), "ml_100k")[0]
    assert [note for note in table.notes if "Protocol" in note] == [
        "Protocol of these runs, where not the experiment's: dataset.max_length=20 (not 50)."
    ]


def test_flips_that_are_none_at_a_length_are_not_missed(tmp_path: Path) -> None:
    asked = ["experiment=figure5_flip_range", "dataset=ml_100k", "seed=2020"]
    for length, told in (
        (20, "0,1,3,5,10,20"),
        (15, "0,1,3,5,10,20"),
        (50, "0,1,3,5,10,20,30,40,50"),
    ):
        write(
            tmp_path / str(length), expand([*asked, f"dataset.max_length={length}", "model.r=0,5"])
        )
        (table,) = tables.flip_range(read([tmp_path / str(length)]), "ml_100k")
        assert [row[0].text for row in table.rows] == told.split(",")


def test_speed_and_search_and_context_have_their_own_places(tmp_path: Path) -> None:
    """None of them may block or enter Table 2."""
    write(tmp_path / "rows", expand_some())
    for group, typed in {
        "table3": ["experiment=table3_efficiency", "dataset=beauty", "model=sigma"],
        "fair_search": ["experiment=table2_overall", "dataset=beauty", "model=sasrec", "seed=2020",
                        "model.hidden_size=32,128"],
        "mambarec_context": ["experiment=mambarec_context", "dataset=beauty", "model=mambarec",
                             "dataset.max_length=250,500"],
    }.items():  # fmt: skip
        for job in expand(typed):
            config = job.config | {"group": group}
            search = {"trials": 2} if group == "fair_search" else None
            write(tmp_path / "rows", [job], config=config, search=search)
    out = str(tmp_path / "report")
    report.main([str(tmp_path / "rows"), "--out", out, "--cases", out])
    found = shown(tmp_path / "report")
    assert "1 of 5 seeds" in found["table2_beauty_hr10"]
    assert len(re.findall(r"(?m)^\| mambarec \| (250|500) ", found["mambarec_context_beauty"])) == 2
    best = re.findall(r"(?m)^\| sasrec \| 2 \| 2 \|.*(sasrec-beauty-\S+) \|", found["tuned_beauty"])
    rows = {row.run_id: row for row in read([tmp_path / "rows"]).rows if row.trials}
    assert best == [max(rows, key=lambda name: rows[name].metric("val", "ndcg@10") or 0)]


def test_a_refused_report_leaves_the_earlier_one_whole(tmp_path: Path) -> None:
    folder = made(tmp_path, expand_some())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = ["experiment=table2_overall", "dataset=beauty", "model=echo", "seed=2020"]
    write(tmp_path / "rows", expand([*other, "trainer.limit_train_batches=0.5"]))
    with pytest.raises(UserError, match=r"limit_train_batches is null .*0\.5"):
        report.main([str(tmp_path / "rows"), "--out", str(folder), "--cases", str(folder)])
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_seeds_are_matched_not_counted(tmp_path: Path) -> None:
    asked = ["experiment=table2_overall", "dataset=beauty", "model=sigma"]
    write(tmp_path, expand([*asked, "seed=1,2,3,4,5"]))
    table = tables.overall(read([tmp_path]), "beauty")[0]
    sigma = next(row for row in table.rows if row[0].text == "sigma")
    assert {cell.note for cell in sigma} == {"", "seeds 1, 2, 3, 4, 5"}
    assert table.missing[0].endswith("# 40 of 40 runs are missing")


def test_differences_are_over_common_seeds(tmp_path: Path) -> None:
    asked = ["experiment=table2_overall", "dataset=beauty"]
    write(tmp_path, expand([*asked, "model=sigma", "seed=2020,2021"]))
    write(tmp_path, expand([*asked, "model=sasrec", "seed=2021,2022"]))
    rows = {(row.model, row.seed): row for row in read([tmp_path]).rows}
    ours, theirs = (rows[m, 2021].metric("test", "ndcg@10") for m in ("sigma", "sasrec"))
    tests = tables.overall(read([tmp_path]), "beauty")[-1]
    (row,) = tests.rows
    assert row[1].value == pytest.approx((ours or 0) / (theirs or 1) - 1)
    assert row[2].note == "1 seed in common"


def test_the_log_stands_beside_what_its_authors_ran() -> None:
    assert logged("beauty", "mamba4rec_one_layer", "hr@10", "test") == 0.0659
    assert logged("beauty", "mamba4rec", "hr@10", "test") is None  # of two layers
    assert logged("beauty", "echo", "hr@10", "test") is None
    assert logged("beauty", "echo_sigma", "hr@10", "test") == 0.0608
    assert logged("beauty", "sigma", "hr@10", "test") == 0.0761
    assert logged("beauty", "sigma_released", "hr@10", "test") == 0.0761
    assert logged("games", "sigma", "ndcg@10", "valid") == 0.1088  # what Table 2 prints
    assert logged("yelp", "sigma", "hr@10", "test") is None  # of 100 items
    assert logged("ml_1m", "sigma", "hr@10", "test") == 0.3136


def test_table_8_is_of_the_most_frequent_filter(tmp_path: Path) -> None:
    asked = ["experiment=table2_overall", "dataset=beauty", "model=sigma"]
    write(tmp_path, expand([*asked, "seed=1,2"]))
    more = write(tmp_path, expand([*asked, "seed=3", "dataset.user_bounds=[20,null]"]))
    for path in more:
        ranks = path.with_suffix(".ranks.parquet")
        pd.read_parquet(ranks).tail(5).to_parquet(ranks)
    (table,) = side_tables.user_groups(read([tmp_path]))
    beauty = next(row for row in table.rows if row[0].text == "beauty")
    assert sum(cell.value or 0 for cell in beauty[-3:]) == 60
    assert "beauty: 1 runs of other filters or data are not counted." in table.notes


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for name, text in shown(made(Path(place), full())).items():
            (GOLDEN / f"{name}.md").write_text(text)
