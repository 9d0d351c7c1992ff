"""Slips on the command line: one sentence, before anything is started."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sigma.errors import UserError
from sigma.runs.words import check_words, unreadable
from tests.in_process import call
from tests.runs.front_door import Capture, Patch


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("--task.optimizer.lr=1", "without dashes: task.optimizer.lr=1"),
        ("--model=sasrec", "without dashes: model=sasrec"),
        ("--multirun --run", "--multirun and --run do not go together"),
        ("-m --cfg job", "--multirun and --cfg do not go together"),
        ("-m seed=range(3,1)", "seed=range(3,1) holds no value, so there is nothing to run"),
        ("-m seed=range(1,3,0)", "is a step, and not 0"),
        ("-m model=glob(zzz*)", "model=glob(zzz*) holds no value"),
        ("-m seed=1,2 model=glob([zzz*,yyy*])", "holds no value"),
        ("-m model.dropout=interval(0,1)", "is a range to draw from, as a search does"),
        ("-m resume=runs/a", "resume=runs/a is one run"),
    ],
)
def test_slips(typed: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check_words(typed.split())
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "model=sasrec --cfg job",
        "--config-dir=conf2 -m seed=1,2,3",
        "-m model=glob(mam*) seed=range(1,3) +a=choice(b,c) dataset.path='[a].csv'",
        "-m seed=range(3,1,-1) resume=true",
        "-m model.dropout=range(0,0.3,0.1) model=glob(*,exclude=s*)",
        "-m seed=[a",  # which Hydra answers
        "--help",
        "resume=runs/a trainer.max_epochs=3",
    ],
)
def test_no_slips(typed: str) -> None:
    check_words(typed.split())


@pytest.mark.parametrize(
    "value",
    [
        "a=b.csv",
        "a#b",
        "[a].csv",
        "{a",
        "a b",
        "a'b",
        "a,b",
        "$a=b",
        'a"=b',
        "a\\=b",
        "a\\\\'=",
        "=a\\",
    ],
)
def test_what_hydra_cannot_read_is_told_as_it_is_typed(value: str) -> None:
    """The command in the sentence gives the very value."""
    word = f"dataset.path={value}"
    sentence = unreadable(word)
    assert "means something to Hydra" in sentence
    (typed,) = shlex.split(sentence.split("of the value, type ")[1].removesuffix("."))
    override = OverridesParser.create().parse_override(typed)
    assert override.key_or_group == "dataset.path"
    assert override.value() == value


def test_the_front_door(monkeypatch: Patch, capsys: Capture) -> None:
    assert call(monkeypatch, "-m", "seed=range(3,1)") == 1
    assert "nothing to run" in capsys.readouterr().err
    assert call(monkeypatch, "dataset.path=a=b", "--cfg", "job") == 1
    assert "the sign = means something to Hydra" in capsys.readouterr().err
