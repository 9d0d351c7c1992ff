"""A trained run as a file: what it says, that it answers as the model, and what is refused."""

import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigma.ancestor import read_ancestor
from sigma.errors import UserError
from sigma.export import TrainedRun, export, load, main
from sigma.ops import rows_of
from sigma.program import quiet
from tests.in_process import arguments, call
from tests.runs.attacks import Malicious
from tests.runs.front_door import Capture, Patch, write_sequences


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
def test_recommends_what_the_run_does(run: TrainedRun, tmp_path: Path, capsys: Capture) -> None:
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
    run: TrainedRun, tmp_path: Path, monkeypatch: Patch
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


def test_what_cannot_be_is_refused(run: TrainedRun, tmp_path: Path, monkeypatch: Patch) -> None:
    with pytest.raises(UserError, match=r"must end in \.pt2 or \.onnx"):
        export(run, tmp_path / "model.pth")
    with pytest.raises(UserError, match="k=0 must be at least 1"):
        export(run, tmp_path / "model.pt2", k=0)
    monkeypatch.setattr("sigma.export.PACKAGES", ("nowhere_to_be_seen",))
    with pytest.raises(UserError, match="ONNX needs the package nowhere_to_be_seen"):
        export(run, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[Path, Path]:
    """A stranger's .pt2 with a pickle in place of its sample inputs, and the marker it leaves."""
    path, marker = tmp_path / "foreign.pt2", tmp_path / "marker"
    content, inputs = io.BytesIO(), io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(3, 2),)), content)
    torch.save({"x": Malicious(marker)}, inputs)
    with zipfile.ZipFile(content) as plain, zipfile.ZipFile(path, "w") as planted:
        for name in plain.namelist():
            evil = name.endswith("sample_inputs/model.pt")
            planted.writestr(name, inputs.getvalue() if evil else plain.read(name))
    return path, marker


READERS: dict[str, Callable[[Path], object]] = {
    "a run": load,
    "a run to export": lambda path: export(path, path),
    "an ancestor": read_ancestor,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_strangers_pt2_is_not_opened(foreign: tuple[Path, Path], reader: str) -> None:
    path, marker = foreign
    content = path.read_bytes()
    with pytest.raises(UserError):
        READERS[reader](path)
    assert not marker.exists()
    assert path.read_bytes() == content


@pytest.mark.parametrize("key", ["resume", "init_from", "dataset.path"])
def test_train_does_not_open_a_strangers_pt2(
    foreign: tuple[Path, Path], key: str, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    path, marker = foreign
    monkeypatch.chdir(tmp_path)
    words = [f"{key}={path}"] if key == "resume" else [*arguments(tmp_path, path), f"{key}={path}"]
    assert call(monkeypatch, *words) == 1
    assert not marker.exists()
    assert "Traceback" not in capsys.readouterr().err


def test_pytorch_runs_what_a_strangers_pt2_holds(foreign: tuple[Path, Path]) -> None:
    """As docs/export.md warns. Should PyTorch cease to, the warning may go."""
    path, marker = foreign
    with quiet():
        torch.export.load(path)
    assert marker.is_dir()


@pytest.mark.parametrize("place", ["../secret", "link", "ABSOLUTE"])
def test_a_strangers_onnx_reads_nothing_outside_its_folder(place: str, tmp_path: Path) -> None:
    """By onnxruntime, as docs/export.md says."""
    onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    secret, path = tmp_path / "secret", tmp_path / "folder" / "model.onnx"
    secret.write_bytes(b"abcdefgh")
    path.parent.mkdir()
    (path.parent / "inside").write_bytes(secret.read_bytes())
    os.symlink(secret, path.parent / "link")

    def read(place: str) -> bytes:
        """A model whose answer is the content of a file."""
        weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT8, dims=[8])
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=place)
        answer = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, [8])
        node = onnx.helper.make_node("Identity", ["w"], ["y"])
        graph = onnx.helper.make_graph([node], "g", [], [answer], [weight])
        opset = [onnx.helper.make_opsetid("", 17)]
        path.write_bytes(
            onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
        )
        return onnxruntime.InferenceSession(str(path)).run(None, {})[0].tobytes()

    assert read("inside") == b"abcdefgh"
    with pytest.raises(Exception, match="External data path"):
        read(str(secret) if place == "ABSOLUTE" else place)
