"""Every slip gets one sentence and a non-zero exit; only bugs show a traceback."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import SIGTERMException

from sigma.errors import RunTakenError, UserError
from sigma.runs.messages import explained, user_message
from tests.in_process import arguments, call
from tests.runs.front_door import Capture, Patch

# What is typed after a good command line, and what the answer must hold: ours, or the key alone
# where the sentence is a library's.
BAD = [
    ("model=nope", "There is no model 'nope'; there are: "),
    ("dataset=beuaty", "There is no dataset 'beuaty'; did you mean 'beauty'? There are: beauty"),
    ("+experiment=zzz", "There is no experiment 'zzz'"),
    ("logger=null", "such as logger=none"),
    ("modle=sigma", "The config has no key 'modle'; did you mean 'model'?"),
    ("model.hiden_size=8", "model has no key 'hiden_size'; did you mean 'hidden_size'?"),
    ("trainer.strategy=ddp", "trainer.strategy is not set yet; add it with a plus"),
    ("hidden", "Cannot read 'hidden': settings are written key=value"),
    ("loss.negatives=2", "loss has no key 'negatives'; another option of its group"),
    ("+callbacks.x=3", "callbacks.x=3 is no callback; give the class of one"),
    ("model._target_=sigma.models.nope.Nope", "cannot be imported"),
    ("trainer.devices=two", "error: trainer: "),
    ("evaluation.monitor=val/nope@10", "error: task: monitor=val/nope@10 is no metric"),
    ("dataset.path=/nowhere/x.csv", "/nowhere/x.csv does not exist"),
    ("objective=all_positions", "not causal"),
    ("hydra.run.dir=/dev/null/x", "Cannot read or write (/dev/null/x): Not a directory."),
    ("resume=/nowhere/run", "resume=/nowhere/run is not the folder of a run"),
]


@pytest.mark.parametrize(("typed", "answer"), BAD, ids=lambda x: x[:40])
def test_a_slip_gets_one_sentence(
    typed: str, answer: str, data: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    assert call(monkeypatch, *arguments(tmp_path / "run", data, typed)) == 1
    errors = capsys.readouterr().err
    assert answer in errors
    assert "Traceback" not in errors
    assert len([line for line in errors.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "run" / "row.json").exists()


def message_of(error: BaseException, capsys: Capture) -> tuple[int, str]:
    """Exit code and standard error of a program that ends with this error."""
    with pytest.raises(SystemExit) as stopped, explained():
        raise error
    return int(stopped.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError(), TypeError("in the middle of a model")])
def test_bugs_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)), explained():
        raise error


def refuse(size: int) -> None:
    raise ValueError(f"size={size} is too large")


def with_a_bug(size: int) -> None:
    raise TypeError(f"a mistake in a model's code, size {size}")


def with_a_bug_below(size: str) -> None:
    torch.nn.Linear(size, 2)


@pytest.mark.parametrize(
    ("target", "arguments", "sentence"),
    [
        (f"{__name__}.refuse", {"size": 1}, "part: size=1 is too large"),
        ("torch.nn.Linear", {"in_features": "wide", "out_features": 2}, "part: "),
        (f"{__name__}.with_a_bug", {}, "part: with_a_bug() missing 1 required"),
        (f"{__name__}.with_a_bug", {"size": 1}, None),
        (f"{__name__}.with_a_bug_below", {"size": "wide"}, None),
    ],
)
def test_what_a_class_refuses_has_its_key_and_a_bug_is_no_sentence(
    target: str, arguments: dict[str, object], sentence: str | None
) -> None:
    with pytest.raises(InstantiationException) as raised:
        instantiate({"part": {"_target_": target, **arguments}})
    message = user_message(raised.value)
    assert message is None if sentence is None else str(message).startswith(sentence)


def test_a_user_error_below_others_is_shown_with_its_notes(capsys: Capture) -> None:
    outer = RuntimeError("around it")
    outer.__cause__ = UserError("Mend this.")
    outer.__cause__.add_note("Go on so.")
    assert message_of(outer, capsys) == (1, "error: Mend this.\nGo on so.\n")
    assert message_of(RunTakenError("Wait."), capsys) == (75, "error: Wait.\n")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left", "/run/last.ckpt"), "used up (/run/last.ckpt)"),
        (FileExistsError(errno.EEXIST, "File exists", "/run"), "Cannot read or write (/run): "),
        (RuntimeError("PytorchStreamWriter failed writing"), "is the disk full?"),
        (RuntimeError("you tried to allocate 6400000 bytes"), "Out of memory; lower "),
        (MemoryError(), "Out of memory; lower "),
    ],
)
def test_what_the_system_refuses(error: Exception, sentence: str) -> None:
    assert sentence in str(user_message(error))


def test_a_killed_worker_is_one_sentence(capsys: Capture) -> None:
    """As of hydra/launcher=parallel when the system ends one for its memory."""
    joblib = pytest.importorskip("joblib", reason="pip install -e '.[joblib]' brings it")
    with pytest.raises(SystemExit), explained():
        joblib.Parallel(n_jobs=2)([joblib.delayed(os._exit)(1) for _ in range(2)])
    assert "A worker process was killed" in capsys.readouterr().err


def test_keyboard_and_sigterm_through_lightnings_exits(capsys: Capture, monkeypatch: Patch) -> None:
    pressed = SystemExit(1)
    pressed.__context__ = KeyboardInterrupt()
    assert message_of(pressed, capsys) == (1, "error: Stopped by the keyboard.\n")
    monkeypatch.setenv("SIGMA_FULL_ERROR", "1")  # has nothing to add, and would end with 0
    with pytest.raises(SystemExit) as stopped, explained(), explained():
        raise SIGTERMException
    assert stopped.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.count("Stopped by SIGTERM") == 1
    assert message_of(SystemExit(0), capsys) == (0, "")  # --help
