"""Collected rows are the runs' own, nothing is lost, and two collections take turns."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments.collect import collect
from experiments.ranks import full_ranks, ranks_of
from experiments.rows import frame
from experiments.status import main as status
from sigma.errors import UserError
from tests.experiments.rows import BEAUTY, beauty, content, ranks_of_job, write
from tests.runs.front_door import ROOT, Capture


def lines(folder: Path) -> list[str]:
    return (folder / "rows.jsonl").read_text().splitlines()


def test_collected_rows_are_the_runs_own_and_again_changes_nothing(tmp_path: Path) -> None:
    jobs = beauty("model=sigma,sasrec", "seed=1,2")
    write(tmp_path / "runs", jobs)
    out = tmp_path / "out"
    new, total, notes = collect([tmp_path / "runs"], out)
    assert (sorted(new), total, notes) == (sorted(job.run_id for job in jobs), 4, [])
    contents = [json.dumps(content(job)) for job in sorted(jobs, key=lambda job: job.run_id)]
    assert [*map(json.loads, lines(out))] == [*map(json.loads, contents)]
    for job in jobs:
        ranks = ranks_of(job.run_id, out / "ranks" / "beauty.parquet")
        expected = ranks_of_job(job).drop(columns="target")
        expected = expected.sort_values(["user", "history_length"], ignore_index=True)
        pd.testing.assert_frame_equal(ranks, expected, check_dtype=False)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert collect([tmp_path / "runs"], out)[0] == []
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_the_latest_of_a_run_wins_and_other_lines_stay(tmp_path: Path) -> None:
    jobs = beauty("model=sigma", "seed=1,2")
    out = tmp_path / "out"
    write(tmp_path / "old", jobs)
    collect([tmp_path / "old"], out)
    with (out / "rows.jsonl").open("a") as file:
        file.write('{"half": \n{"schema": 99, "of": "a newer version"}\n')
    (later,) = write(tmp_path / "new", jobs[:1], finished="2026-03-01T00:00:00+00:00", epochs=99)
    (later / "ranks.parquet").unlink()
    assert collect([tmp_path / "new"], out)[0] == [jobs[0].run_id]
    assert collect([tmp_path / "old"], out)[0] == []
    rows = frame([out]).sort_values("seed")
    assert rows["epochs"].tolist() == [99, 14]
    assert rows["ranks"].notna().tolist() == [False, True]  # the older ranks are not of this row
    assert lines(out)[2:] == ['{"half": ', '{"schema": 99, "of": "a newer version"}']


def test_other_test_sets_of_one_data_set_do_not_mix(tmp_path: Path) -> None:
    first, second = beauty("model=sigma,sasrec", "seed=1")
    write(tmp_path / "runs", [first, second])
    path = tmp_path / "runs" / second.run_id / "ranks.parquet"
    other = pd.read_parquet(path).head(20).assign(history_length=99)
    other.to_parquet(path)
    collect([tmp_path / "runs"], tmp_path / "out")
    rows = frame([tmp_path / "out"]).set_index("run_id", drop=False)
    ranks = [full_ranks(rows.loc[job.run_id]) for job in (first, second)]
    assert [len(r) for r in ranks if r is not None] == [60, 20]
    merged = ranks[1].merge(other, on=["user", "history_length"])
    assert (merged["greater_x"] == merged["greater_y"]).sum() == 20


def test_damage_costs_what_is_damaged(tmp_path: Path) -> None:
    paths = write(tmp_path / "runs", beauty("model=sigma,sasrec", "seed=1,2"))
    (paths[0] / "ranks.parquet").write_bytes(b"PAR1")
    twice = pd.read_parquet(paths[1] / "ranks.parquet")
    pd.concat([twice, twice]).to_parquet(paths[1] / "ranks.parquet")
    (paths[2] / "row.json").write_text("[" * 9_000)
    new, _, notes = collect([tmp_path / "runs"], tmp_path / "out")
    assert len(new) == 3
    assert len(notes) == 3
    rows = frame([tmp_path / "out"])
    assert set(rows["run_id"]) == {paths[i].name for i in (0, 1, 3)}
    assert rows[rows["ranks"].notna()]["run_id"].tolist() == [paths[3].name]
    (tmp_path / "out" / "ranks" / "beauty.parquet").write_bytes(b"PAR1")
    write(tmp_path / "more", beauty("model=echo", "seed=1"))
    with pytest.raises(UserError, match="restore it from git"):
        collect([tmp_path / "more"], tmp_path / "out")


@pytest.mark.slow
def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    jobs = beauty("model=sigma,sasrec,echo", "seed=1,2,3,4")
    write(tmp_path / "a", jobs[:6])
    write(tmp_path / "b", jobs[6:])
    script = "import sys; from pathlib import Path; from experiments.collect import collect;"
    script += "collect([Path(sys.argv[1])], Path(sys.argv[2]))"
    commands = [[sys.executable, "-c", script, tmp_path / name, tmp_path / "out"] for name in "ab"]
    processes = [subprocess.Popen(command, cwd=ROOT) for command in commands]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    rows = frame([tmp_path / "out"])
    assert sorted(rows["run_id"]) == sorted(job.run_id for job in jobs)
    assert rows["ranks"].notna().all()


def test_status_of_damaged_files(tmp_path: Path, capsys: Capture) -> None:
    typed = [*BEAUTY, "model=sigma", "seed=1"]
    folder = tmp_path / beauty("model=sigma", "seed=1")[0].run_id
    folder.mkdir()
    (folder / "failed.json").write_text("[" * 9_000)
    (folder / "metrics.csv").write_bytes(b"epoch\n\xe9\n")
    status([*typed, "--runs", str(tmp_path)])
    assert "1 runs: 1 failed" in capsys.readouterr().out
    for text in ("", '{"efficiency": null, "epochs": 3}'):
        (folder / "row.json").write_text(text)
        status([*typed, "--runs", str(tmp_path)])
        said = capsys.readouterr().out
        assert "1 runs: 1 failed" in said
        assert "row.json is damaged (" in said
        assert "; delete it, and" in said
    status([*typed, "--runs", str(tmp_path / "nowhere")])
    assert f"There is no folder {tmp_path / 'nowhere'} yet" in capsys.readouterr().out
