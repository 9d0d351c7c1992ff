"""Damaged files of a run's folder: one sentence each, with an advice that works."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import sigma.files
from sigma.callbacks.checkpoints import LastCheckpoint
from sigma.callbacks.wandb import WandbLogger
from sigma.errors import UserError
from sigma.runs.command import expand_resume
from sigma.runs.files import BEST, COMMAND, CONFIG, EPOCHS, FAILURE, LAST, LOCK, RANKS, ROW, WANDB
from sigma.runs.folder import check_data
from sigma.runs.records import Failure, WandbRun, check_settings, read
from sigma.runs.row import Row
from sigma.task import SequenceTask
from tests.callbacks.fake_wandb import Service, service
from tests.in_process import arguments, call
from tests.runs.front_door import Capture, Logged, Patch, row

__all__ = ["service"]

HYDRAS = ".hydra/overrides.yaml"
HYDRAS_FILES = [f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")]
READERS: dict[str, Callable[[Path], object]] = {
    CONFIG: check_settings,
    COMMAND: lambda folder: check_data(folder, None),  # type: ignore[arg-type]
    HYDRAS: lambda folder: expand_resume([f"resume={folder}"]),
    ROW: lambda folder: Row.read(folder / ROW),
    WANDB: lambda folder: read(folder / WANDB, WandbRun, "so it is"),
    FAILURE: lambda folder: read(folder / FAILURE, Failure, "so it is"),
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "zeros within": lambda data: data[:9] + b"\0" * 9 + data[18:],
    "not UTF-8": lambda data: data.replace(b"a", b"\xe9"),
    "binary": lambda data: bytes(range(256)),
    "lists without end": lambda data: b"[" * 1_000,
    "objects without end": lambda data: b'{"data":' * 1_000,
    "lists": lambda data: b"[" * 150 + b"]" * 150,
    **{text: lambda data, text=text: text.encode() for text in ("[]", "{}", "null", "7", '"é"')},
}
SHAPES: list[tuple[str, dict[str, Any]]] = [
    *((CONFIG, {key: 5}) for key in ("model", "dataset", "callbacks")),
    *((CONFIG, change) for change in ({"seed": "\x1b[31m"}, {"model": {"_target_": 5}})),
    (CONFIG, {"matmul_precision": "high"}),  # a changed word fits, too
    *((COMMAND, {key: value}) for key in ("flags", "overrides") for value in (None, [5], {})),
    *((COMMAND, {"data": value}) for value in ([], {"counts": "1"}, 5)),
    *((ROW, {key: 5}) for key in ("metrics", "config", "data", "git")),
    *((ROW, change) for change in ({"schema": "x"}, {"best_epoch": "x"}, {"config": {}})),
    *((WANDB, {"id": value}) for value in (None, 5, {})),
    (FAILURE, {"error": [1]}),
]


@pytest.fixture(scope="module")
def synced() -> set[str]:
    """Names of files that the finished run has written whole."""
    return set()


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory, synced: set[str]) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    replace = sigma.files.replace

    def noted(partial: Path, path: Path) -> None:
        synced.add(os.path.relpath(path, folder))
        replace(partial, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sigma.files, "replace", noted)
        typed = ("trainer.max_epochs=1", "dataset.batch_size=512", "callbacks.curves=null")
        assert call(patch, *arguments(folder, data, *typed)) == 0
    (folder / WANDB).write_text('{"id": "a0b1c2d3"}')
    (folder / FAILURE).write_text('{"error": "It failed.", "when": "then"}')
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def untested(folder: Path) -> Path:
    """A copy of the run as it was before its test."""
    (folder / ROW).unlink()
    (folder / RANKS).unlink()
    return folder


def test_what_a_run_leaves_is_written_whole(finished: Path, synced: set[str]) -> None:
    others = {"train.log", LOCK, WANDB, FAILURE, *HYDRAS_FILES}
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert files - others <= synced
    assert {ROW, RANKS, CONFIG, COMMAND, EPOCHS, BEST, LAST} <= synced


def expect_sentence(folder: Path, name: str) -> None:
    with pytest.raises(UserError) as raised:
        READERS[name](folder)
    said = str(raised.value)
    assert said.startswith(f"{folder / name} is damaged (")
    assert said.isprintable()
    assert len(said) < len(str(folder)) * 2 + 400


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_one_sentence(name: str, damage: str, folder: Path) -> None:
    if name == HYDRAS:
        (folder / COMMAND).unlink()
    (folder / name).write_bytes(DAMAGES[damage]((folder / name).read_bytes()))
    expect_sentence(folder, name)


@pytest.mark.parametrize(("name", "change"), SHAPES)
def test_a_file_of_another_shape_is_one_sentence(
    name: str, change: dict[str, Any], folder: Path
) -> None:
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
    expect_sentence(folder, name)


def test_a_damaged_note_of_wandbs_run_is_a_new_run(
    folder: Path, service: Service, caplog: Logged
) -> None:
    (folder / WANDB).write_text('{"id": ')
    WandbLogger(str(folder), project="p").log_metrics({"epoch": 0}, step=0)
    assert f"{folder / WANDB} is damaged" in caplog.text
    assert read(folder / WANDB, WandbRun, "").id == service.runs[-1].id


def test_hydras_overrides_count_where_both_of_its_files_say_them(folder: Path) -> None:
    (folder / COMMAND).unlink()
    assert "model.hidden_size=8" in expand_resume([f"resume={folder}"])
    path = folder / HYDRAS
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))  # cut at a line's end
    expect_sentence(folder, HYDRAS)


def refused(patch: Patch, capsys: Capture, *typed: str) -> str:
    """The one line that a command ends with."""
    assert call(patch, *typed) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "go on with" not in said
    return said


@pytest.mark.slow
def test_a_damaged_run_is_not_gone_on_from(
    untested: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """Nothing of it is changed, and nothing trained: the files tell what is there."""
    epochs = (untested / EPOCHS).read_bytes()
    for name in (LAST, BEST, CONFIG, COMMAND):
        whole = (untested / name).read_bytes()
        (untested / name).write_bytes(whole[: len(whole) // 3])
        said = refused(monkeypatch, capsys, f"resume={untested}")
        assert said.startswith(f"error: {untested / name} is damaged")
        (untested / name).unlink()
        if name == BEST:
            said = refused(monkeypatch, capsys, f"resume={untested}")
            assert f"{untested / name} is missing; delete" in said
        (untested / name).write_bytes(whole)
    torch.save({"state_dict": {}}, untested / LAST)
    said = refused(monkeypatch, capsys, f"resume={untested}")
    assert f"{untested / LAST} does not fit the model" in said
    assert (untested / EPOCHS).read_bytes() == epochs
    assert not (untested / ROW).exists()


@pytest.mark.slow
def test_the_advice_works(
    finished: Path, untested: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """To delete the checkpoints, the row, or what was typed; and none costs a whole file."""
    shutil.copy(finished / ROW, untested / ROW)
    (untested / BEST).write_bytes(b"damaged")
    said = refused(monkeypatch, capsys, f"resume={untested}", "trainer.max_epochs=2")
    assert "keeps its row; train the run anew in another folder" in said
    for name in (BEST, LAST):
        (untested / ROW).unlink()
        (untested / name).write_bytes(b"damaged")
        said = refused(monkeypatch, capsys, f"resume={untested}")
        assert f"delete {untested / 'checkpoints'}, and the run's command starts it anew" in said
        shutil.rmtree(untested / "checkpoints")
        assert call(monkeypatch, f"resume={untested}") == 0
        assert row(untested)["metrics"] == row(finished)["metrics"]
    (untested / ROW).write_text("{}")
    assert "delete it, and" in refused(monkeypatch, capsys, f"resume={untested}")
    (untested / ROW).unlink()
    (untested / COMMAND).write_text("{}")
    assert "delete it, and go on by" in refused(monkeypatch, capsys, f"resume={untested}")
    typed = json.loads((finished / COMMAND).read_text())["overrides"]
    (untested / COMMAND).unlink()
    place = f"hydra.run.dir={untested}"
    assert call(monkeypatch, *typed, place, "resume=true") == 0
    assert row(untested)["metrics"] == row(finished)["metrics"]


def test_what_a_kill_left_is_put_right_by_the_next_start(
    untested: Path, finished: Path, monkeypatch: Patch
) -> None:
    mine = untested / "notes.7.partial"
    names = (f".{ROW}.77.partial", ".metrics.csv.1.partial", "checkpoints/.last.ckpt.9.partial")
    left = [untested / name for name in (*names, "checkpoints/last.partial")]
    for path in (mine, *left):
        path.touch()
    (untested / EPOCHS).write_text("epoch,train/loss\n0,\n")
    assert call(monkeypatch, f"resume={untested}") == 0
    assert [path for path in (mine, *left) if path.exists()] == [mine]
    pd.testing.assert_frame_equal(*(pd.read_csv(f / EPOCHS) for f in (untested, finished)))


def test_a_folder_deleted_while_its_run_is_at_it_has_the_row(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    folder = tmp_path / "run"
    typed = json.loads((finished / COMMAND).read_text())["overrides"]

    def delete(task: SequenceTask) -> None:
        shutil.rmtree(folder)

    monkeypatch.setattr(SequenceTask, "on_train_epoch_start", delete)
    assert call(monkeypatch, *typed, f"hydra.run.dir={folder}") == 0
    assert row(folder)["metrics"] == row(finished)["metrics"]
    assert call(monkeypatch, f"resume={folder}") == 0
    assert "finished already" in capsys.readouterr().out


@pytest.mark.slow
def test_a_best_checkpoint_deleted_on_the_way_is_missed_at_the_end(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    folder, save = tmp_path / "run", LastCheckpoint.save
    typed = json.loads((finished / COMMAND).read_text())["overrides"]

    def save_without_best(callback: LastCheckpoint, trainer: Any) -> None:
        save(callback, trainer)
        (folder / BEST).unlink()

    monkeypatch.setattr(LastCheckpoint, "save", save_without_best)
    said = refused(monkeypatch, capsys, *typed, f"hydra.run.dir={folder}")
    assert "best.ckpt is missing; delete" in said
