"""Searches by Optuna: drawn, pruned, failed, killed and continued, and shown."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.runs.front_door import ROOT, SMALL, environment, run, write_sequences

optuna = pytest.importorskip("optuna", reason="pip install -e '.[optuna]' brings the search")

from experiments.search import WORDS, Search, composed, distribution  # noqa: E402

spreads = optuna.distributions
NAME = "sasrec-custom-s2020"
MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))


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


@pytest.mark.slow
def test_a_search_that_is_killed_ends_where_it_would_have_ended(data: Path, tmp_path: Path) -> None:
    """One of its trials fails; another search in its folder is refused."""
    draws = ["model.num_heads=choice(1,3)", "n_trials=3", "trainer.max_epochs=25"]
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
        for key, value in trial.params.items():
            assert OmegaConf.select(saved, key) == pytest.approx(float(value))
        if trial.state.name == "COMPLETE":
            row = OmegaConf.load(folder / "row.json")
            assert trial.value == pytest.approx(row.metrics.val["ndcg@10"])
            assert trial.value == pytest.approx(max(trial.intermediate_values.values()))
            assert (row.search.trials, row.config.group) == (3, "fair_search")
    assert pd.read_csv(entire / "trials.csv")["state"].tolist() == states
    best = study(entire).best_trial
    (line,) = [text for text in output.splitlines() if text.startswith("python train.py")]
    assert all(f"{key}={value}" in line for key, value in best.params.items())

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
def test_a_trial_that_is_pruned_leaves_no_row(data: Path, tmp_path: Path) -> None:
    """It is below the median of five others; the sixth epoch is the first to be judged."""
    folder = tmp_path / NAME
    folder.mkdir()
    typed = command(folder, data, "n_trials=6", "trainer.max_epochs=9", "model.num_heads=1")
    trials = optuna.create_study(
        study_name=NAME, direction="maximize", storage=f"sqlite:///{folder / 'search.db'}"
    )
    for _ in range(5):
        better = dict.fromkeys(range(9), 0.9)
        trials.add_trial(optuna.create_trial(value=0.9, intermediate_values=better))
    output = run(*typed)
    assert "trial 5: pruned before epoch 6" in output
    trial = study(folder).trials[5]
    assert (trial.state.name, trial.user_attrs) == ("PRUNED", {"pruned": 6})
    assert sorted(trial.intermediate_values) == [*range(6)]
    assert (folder / "trial-005" / "checkpoints" / "last.ckpt").exists()
    assert not (folder / "trial-005" / "row.json").exists()


@pytest.mark.parametrize("model", [m for m in MODELS if m != "popularity"])  # has no settings
def test_every_model_has_a_space_of_its_own_keys(model: str) -> None:
    config = composed([f"model={model}"])
    search = Search([f"model={model}"], OmegaConf.create(WORDS))
    for key, spread in search.space.items():
        now = OmegaConf.select(config, key, throw_on_missing=True)
        assert now is not None, key
        assert not spread.single(), key


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("interval(0,1)", spreads.FloatDistribution(0, 1)),
        ("tag(log,interval(1e-3,1))", spreads.FloatDistribution(0.001, 1, log=True)),
        ("int(tag(log,interval(1,5)))", spreads.IntDistribution(1, 5, log=True)),
        ("1,a,null", spreads.CategoricalDistribution(["1", "a", "null"])),
        ("[1,2],[3]", spreads.CategoricalDistribution(["[1,2]", "[3]"])),
    ],
)
def test_what_is_drawn(written: str, expected: Any) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={written}"])
    assert distribution(override) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["model=popularity"], "There is nothing to search"),
        (["model=popularity", "model.x=interval(2,1)"], "Cannot draw from model.x=interval"),
        (["model=sasrec", "model.dropuot=interval(0,1)"], "did you mean 'dropout'"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(
    typed: list[str], answer: str, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "experiments.search", *typed, f"folder={tmp_path / 'search'}"]
    output = run(*words, expect=1)
    assert answer in output
    assert not (tmp_path / "search").exists()
