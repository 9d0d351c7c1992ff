"""Searches by Optuna: drawn, pruned, failed, killed and continued, and shown."""

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf

from tests.experiments.rows import write
from tests.runs.front_door import ROOT, SMALL, Capture, environment, run, write_sequences

optuna = pytest.importorskip("optuna", reason="pip install -e '.[optuna]' brings the search")

from experiments import search as module  # noqa: E402
from experiments.grid import expand  # noqa: E402
from experiments.search import starts  # noqa: E402
from experiments.space import composed, examples  # noqa: E402
from sigma.errors import UserError  # noqa: E402

NAME = "sasrec-custom-s2020-ndcg@10"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("data") / "tiny.txt", users=60, items=30)


def command(folder: Path, data: Path, *overrides: str) -> list[str]:
    """A search's command line, on small data and a small model."""
    words = [*SMALL, f"dataset.path={data}", f"dataset.root={data.parent / 'root'}"]
    words = [word for word in words if not word.startswith("model.mamba")]
    words += ["model.num_layers=1", "model.attention_dropout=0", "trainer.max_epochs=2"]
    program = [sys.executable, "-m", "experiments.search", "model=sasrec"]
    return [*program, *words, f"folder={folder.parent}", *overrides]


def study(folder: Path) -> Any:
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'search.db'}")


@pytest.mark.storm
@pytest.mark.slow
def test_a_search_that_is_killed_ends_where_it_would_have_ended(data: Path, tmp_path: Path) -> None:
    """One of its trials fails; another search in its folder is refused."""
    draws = ["model.num_heads=choice(1,3)", "n_trials=2", "trainer.max_epochs=25"]
    entire, killed = tmp_path / "entire" / NAME, tmp_path / "killed" / NAME
    output = run(*command(entire, data, *draws))
    trials = study(entire).trials
    states = [trial.state.name for trial in trials]
    assert set(states) == {"COMPLETE", "FAIL"}  # three heads do not divide a width of 8
    assert "num_heads=3" in output.partition("python train.py")[0]
    for trial in trials:
        folder = entire / f"trial-{trial.number:03d}"
        assert (folder / "row.json").exists() == (trial.state.name == "COMPLETE")
        saved = OmegaConf.load(folder / ".hydra" / "config.yaml")
        for key, value in trial.user_attrs["settings"].items():
            if "." in key:
                assert OmegaConf.select(saved, key) == yaml.safe_load(str(value))
        if trial.state.name == "COMPLETE":
            row = OmegaConf.load(folder / "row.json")
            assert trial.value == pytest.approx(row.metrics.val["ndcg@10"])
            assert trial.value == pytest.approx(max(trial.intermediate_values.values()))
            assert row.search == {"trials": 2, "trial": trial.number}
            assert row.config.group == "fair_search"
    assert pd.read_csv(entire / "trials.csv")["state"].tolist() == states
    best = study(entire).best_trial
    (line,) = [text for text in output.splitlines() if text.startswith("python train.py")]
    assert all(f"{key}={value}" in line for key, value in best.user_attrs["settings"].items())

    typed = command(killed, data, *draws)
    with subprocess.Popen(
        typed, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(killed.glob("trial-*/checkpoints/last.ckpt"))) == 1:
                break
            time.sleep(0.01)
        assert process.poll() is None, "the search ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)  # and its trial
    assert study(killed).trials[-1].state.name == "RUNNING"
    run(*typed)
    for one, other in zip(trials, study(killed).trials, strict=True):
        assert (one.state, one.params, one.value) == (other.state, other.params, other.value)
    assert "another space" in run(*typed, "trainer.max_epochs=9", expect=1)


@pytest.mark.slow
def test_a_trial_that_is_pruned_leaves_no_row(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """It is below the median of five others; the sixth epoch is the first to be judged."""
    folder = tmp_path / NAME
    folder.mkdir()
    typed = command(folder, data, "n_trials=6", "trainer.max_epochs=9", "model.num_heads=1")
    trials = optuna.create_study(
        study_name=NAME, direction="maximize", storage=f"sqlite:///{folder / 'search.db'}"
    )
    for _ in range(5):
        better = dict.fromkeys(range(9), 0.9)
        done = {"value": 0.9, "intermediate_values": better, "user_attrs": {"settings": {}}}
        trials.add_trial(optuna.create_trial(**done))
    (job,) = expand(["model=sasrec", "dataset=beauty"])
    write(folder, [job])[0].rename(folder / "trial-000")  # the first of the best
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sys, "argv", typed[2:])
    module.main()
    output = capsys.readouterr().out
    assert "trial 5: pruned after 6 epochs" in output
    trial = study(folder).trials[5]
    assert (trial.state.name, trial.user_attrs["pruned"]) == ("PRUNED", 6)
    assert sorted(trial.intermediate_values) == [*range(6)]
    assert (folder / "trial-005" / "checkpoints" / "last.ckpt").exists()
    assert not (folder / "trial-005" / "row.json").exists()


class Runs:
    """Trials that take no time: a score made of the settings, and the order they came in."""

    def __init__(self) -> None:
        self.order: list[tuple[str, int]] = []
        self.scores: dict[Path, float] = {}
        self.running = self.most = 0

    async def train(self, command: list[str], jobs: int) -> str:
        (place,) = [w.partition("=")[2] for w in command if w.startswith("hydra.run.dir=")]
        folder = Path(place.strip("'"))
        self.order.append((folder.parent.name, int(folder.name.removeprefix("trial-"))))
        settings = [word for word in command if re.match("model|task|dataset|objective", word)]
        self.scores[folder] = zlib.crc32(" ".join(settings).encode()) / 2**32
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return ""

    def read(self, path: Path) -> Any:
        metrics = SimpleNamespace(test={"ndcg@10": 0.5, "unseen/ndcg@10": 0.25})
        return SimpleNamespace(score=lambda metric: self.scores.get(path.parent), metrics=metrics)


def search(monkeypatch: pytest.MonkeyPatch, *words: str) -> Runs:
    """``main`` with these words, on runs that take no time."""
    runs = Runs()
    monkeypatch.setattr(module, "train", runs.train)
    monkeypatch.setattr(module, "Row", runs)
    monkeypatch.setattr(sys, "argv", ["search", *words])
    module.main()
    return runs


def test_searches_take_turns_and_spend_as_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """At every moment none has begun more than one trial more than another."""
    words = ["model=sasrec,gru4rec", "dataset=beauty", "evaluation.monitor=val/unseen/ndcg@10"]
    runs = search(monkeypatch, *words, "n_trials=3", "jobs=2", f"folder={tmp_path}")
    names = [f"{model}-beauty-s2020-unseen-ndcg@10" for model in ("sasrec", "gru4rec")]
    assert runs.order == [(name, number) for number in range(3) for name in names]
    assert runs.most == 2
    output = capsys.readouterr().out
    table = [line.split("|")[1:4] for line in output.splitlines() if line.startswith("| sasrec")]
    assert [[cell.strip() for cell in line] for line in table] == [[names[0], "3", "0"]]
    commands = [line for line in output.splitlines() if line.startswith("python train.py")]
    assert [line.split()[2] for line in commands] == ["model=sasrec", "model=gru4rec"]
    for name, line in zip(names, commands, strict=True):
        typed = shlex.split(line)[2:]
        best = study(tmp_path / name).best_trial
        assert {f"{k}={v}" for k, v in best.user_attrs["settings"].items()} <= set(typed)
        composed(typed)


def test_more_trials_later_are_those_of_one_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model=sigma", "dataset=beauty", f"folder={tmp_path / 'later'}"]
    first = search(monkeypatch, *words, "n_trials=10")
    second = search(monkeypatch, *words, "n_trials=12")  # beyond those drawn at random
    assert [n for _, n in first.order + second.order] == [*range(12)]
    search(monkeypatch, *words[:2], f"folder={tmp_path / 'once'}", "n_trials=12")
    name = "sigma-beauty-s2020-ndcg@10"
    once, later = (study(tmp_path / place / name).trials for place in ("once", "later"))
    assert [trial.params for trial in once] == [trial.params for trial in later]


def test_sigma_at_all_positions_is_drawn_without_a_flip() -> None:
    """With one it would see what it must predict; elsewhere both are drawn."""
    words = OmegaConf.create(module.WORDS)
    for typed, flips in (([], {"true", "false"}), (["objective=all_positions"], {"false"})):
        drawn = module.Search(["model=sigma", *typed], words).space
        assert {settings["model.partial_flip"] for settings in examples(drawn)} == flips
    with pytest.raises(UserError, match="is not causal"):
        module.Search(["model=sigma", "objective=all_positions", "model.partial_flip=true"], words)


def test_the_fair_search_is_of_five_models_under_both_rankings() -> None:
    searches = starts(["experiment=fair_search", "trainer.max_epochs=5"])
    pairs = {tuple(search[:2]) for search in searches}  # model and monitor
    assert len(pairs) == len(searches) == 10
    for search in searches:
        assert {"dataset=beauty", "trainer.max_epochs=5"} <= set(search)
    (only,) = starts(["experiment=fair_search", "model=sigma", "evaluation.monitor=val/hr@10"])
    assert {"model=sigma", "evaluation.monitor=val/hr@10"} <= set(only)


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["model=popularity"], "There is nothing to search"),
        (["model=popularity", "model.x=interval(2,1)"], "Cannot draw from model.x=interval"),
        (["model=sasrec", "model.dropuot=interval(0,1)"], "did you mean 'dropout'"),
        (["model=sasrec", "dataset.train_on_val=true"], "A search chooses by validation"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(
    typed: list[str], answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        search(monkeypatch, *typed, f"folder={tmp_path / 'search'}")
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert answer in line
    assert not (tmp_path / "search").exists()
