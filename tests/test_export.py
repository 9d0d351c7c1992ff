"""A trained run as a file: what it says, that it answers as the model, and what is refused."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sigma.errors import UserError
from sigma.export import TrainedRun, export, load, main
from sigma.ops import rows_of
from tests.in_process import arguments, call
from tests.runs.front_door import write_sequences


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "gru4rec"
    data = write_sequences(tmp_path_factory.mktemp("data") / "clicks.txt")
    command = [word for word in arguments(folder, data) if not word.startswith("model")]
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, *command, "model=gru4rec", "trainer.max_epochs=1") == 0
    return load(folder)


@torch.no_grad()
def test_recommends_what_the_run_does(
    run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / "model.pt2"
    main([f"run={run.folder}", f"out={path}", "k=4"])
    printed = capsys.readouterr().out
    assert re.match(rf"{path}: [\d,]+ bytes; its scores for \d+ users of the test are", printed)
    exec(printed.split("\n\n")[1], {})  # the lines that use it
    scores, items = eval(capsys.readouterr().out, {"tensor": torch.tensor})
    assert scores.shape == items.shape == (1, 4)

    notes = {"settings": "", "items": ""}
    model = torch.export.load(path, extra_files=notes).module()
    settings, ids = json.loads(notes["settings"]), json.loads(notes["items"])
    row = json.loads((run.folder / "row.json").read_text())
    assert ids == [str(item) for item in run.sequences.item_ids]
    length = run.data.max_length
    assert (settings["format"], settings["model"], settings["ranking"]) == (1, "gru4rec", "all")
    assert (settings["max_length"], settings["k"], settings["num_items"]) == (length, 4, len(ids))
    assert settings["metrics"] == row["metrics"]
    for first, last in list(pairwise(run.sequences.offsets))[:5]:
        history = torch.from_numpy(run.sequences.items[first:last][-length:]).long()
        rows = rows_of(torch.tensor([len(history)]))
        states = run.task.model(history, rows, rows.offsets[1:] - 1)
        scores, best = model(F.pad(history, (0, length - len(history)))[None])
        top = run.task.model.logits(states).topk(4)
        torch.testing.assert_close(scores, top.values)
        assert torch.equal(best, top.indices + 1)


def test_a_file_that_answers_otherwise_is_not_left(
    run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = torch.export.load

    def other(file: object) -> torch.export.ExportedProgram:
        program = read(file)
        next(iter(program.state_dict.values())).add_(0.01)
        return program

    monkeypatch.setattr(torch.export, "load", other)
    path = tmp_path / "model.pt2"
    path.write_text("older")
    with pytest.raises(UserError, match=r"is not written: its scores are up to .* from the model"):
        export(run, path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]
    assert path.read_text() == "older"


def test_what_cannot_be_is_refused(
    run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"must end in \.pt2 or \.onnx"):
        export(run, tmp_path / "model.pth")
    with pytest.raises(UserError, match="k=0 must be at least 1"):
        export(run, tmp_path / "model.pt2", k=0)
    monkeypatch.setattr("sigma.export.PACKAGES", ("nowhere_to_be_seen",))
    with pytest.raises(UserError, match="ONNX needs the package nowhere_to_be_seen"):
        export(run, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
