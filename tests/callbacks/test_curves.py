"""The picture is drawn from any history, and never fails a run."""

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sigma.callbacks import curves
from sigma.callbacks.history import History


def history(epochs: int) -> History:
    filled = History()
    filled.epochs = [
        {"epoch": e, "train/loss": 5.0 / (e + 1), "val/ndcg@10": 0.1, "val/hr@10": 0.2}
        for e in range(epochs)
    ]
    return filled


def trainer(filled: History) -> Any:
    return SimpleNamespace(callbacks=[filled], fast_dev_run=False, is_global_zero=True)


@pytest.mark.parametrize("epochs", [1, 3, 60])
def test_a_readable_picture(epochs: int, tmp_path: Path) -> None:
    curves.Curves(str(tmp_path)).on_fit_end(trainer(history(epochs)), None)  # type: ignore[arg-type]
    data = (tmp_path / "curves.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 1000
    assert height >= 400


def test_no_epochs_no_picture(tmp_path: Path) -> None:
    curves.Curves(str(tmp_path)).on_fit_end(trainer(history(0)), None)  # type: ignore[arg-type]
    assert not (tmp_path / "curves.png").exists()


def test_a_failing_picture_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no fonts")

    monkeypatch.setattr(curves, "draw", broken)
    curves.Curves(str(tmp_path)).on_fit_end(trainer(history(2)), None)  # type: ignore[arg-type]
    assert "could not be drawn: no fonts" in caplog.text
