"""The report from no rows, some and all; a golden copy of each table; nothing is filled in.

``python -m tests.experiments.test_report`` writes the golden copies anew: look at what changed.
"""

import functools
import tempfile
from pathlib import Path

import pytest

from experiments import report, tables
from experiments.grid import Job, expand
from experiments.ledger import read
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
    assert not list((folder / "figures").glob("*"))
    assert set(shown(folder)) == {"table1_datasets", "table8_groups", "runs"}


def test_from_half_the_rows_what_is_missing_is_told(tmp_path: Path) -> None:
    folder = made(tmp_path, expand_some())
    table = shown(folder)["table2_beauty_ndcg10"]
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if "|" in line}
    assert lines["sigma"].count("–") < lines["echo"].count("–")
    assert "38 of 40 runs are missing" in shown(folder)["table2_beauty_hr10"]
    assert "1 of 5 seeds" in table


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


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for name, text in shown(made(Path(place), full())).items():
            (GOLDEN / f"{name}.md").write_text(text)


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
    command, _, count = table.missing[0].partition("  # ")
    assert count == "36 of 40 runs are missing"
    again = expand(command.removeprefix("python train.py -m ").split())
    assert {job.run_id for job in jobs} < {job.run_id for job in again}
    counted = expand(["experiment=yardsticks", "dataset=ml_100k", short[0]])
    write(tmp_path / "counted", counted)
    table = tables.overall(read([tmp_path / "counted"]), "ml_100k")[0]
    assert [note for note in table.notes if "Protocol" in note] == [
        "Protocol of these runs, where not the experiment's: dataset.max_length=20 (not 50)."
    ]
