"""Searches by Optuna: drawn, pruned, failed, killed and continued, and shown."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from experiments.search import show
from sigma.errors import UserError
from sigma.task import SequenceTask
from tests.in_process import call
from tests.runs.front_door import ROOT, environment, run, write_sequences

optuna = pytest.importorskip("optuna", reason="pip install -e '.[optuna]' brings the search")

from sigma import search  # noqa: E402

MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("data") / "tiny.txt", users=60, items=30)


def command(folder: Path, data: Path, *overrides: str) -> list[str]:
    """A search's command line, on small data and a small model."""
    return [
        "-m", "experiment=fair_search", "model=sasrec", "model.hidden_size=8",
        "model.inner_size=8", "model.num_layers=1", "model.attention_dropout=0",
        "dataset=custom", f"dataset.path={data}", f"dataset.root={data.parent / 'root'}",
        "dataset.max_length=12", "dataset.batch_size=32", "logger=csv",
        f"hydra.sweep.dir={folder}", *overrides,
    ]  # fmt: skip


def trials(folder: Path) -> list[Any]:
    return search.load(folder).trials


def compared(folder: Path) -> list[tuple[Any, ...]]:
    return [(t.number, t.state, t.params, t.value, t.intermediate_values) for t in trials(folder)]


SIX = (
    *("hydra.sweeper.n_trials=6", "trainer.max_epochs=4", "model.num_heads=choice(1,2,3)"),
    *("hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.pruner.n_warmup_steps=0"),
    "task.optimizer.lr=tag(log,interval(1e-6,3e-2))",
)


@pytest.fixture(scope="module")
def six(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A search of six trials, and what it printed."""
    folder = tmp_path_factory.mktemp("search") / "six"
    return folder, run(sys.executable, ROOT / "train.py", *command(folder, data, *SIX))


def test_completed_pruned_and_failed_trials_are_kept(six: tuple[Path, str]) -> None:
    folder, output = six
    assert "Traceback" not in output
    found = trials(folder)
    assert [t.number for t in found] == list(range(6))
    states = [t.state.name for t in found]
    assert {"COMPLETE", "PRUNED", "FAIL"} == set(states)
    for trial in found:
        at = folder / trial.user_attrs["folder"]
        row, mark = at / "row.json", at / "pruned.json"
        assert row.exists() == (trial.state.name == "COMPLETE")
        assert mark.exists() == (trial.state.name == "PRUNED")
        saved = OmegaConf.load(at / ".hydra" / "config.yaml")
        assert saved.seed == 2020
        for key, value in trial.params.items():
            assert OmegaConf.select(saved, key) == pytest.approx(value)
        if trial.state.name == "COMPLETE":
            assert trial.value == pytest.approx(OmegaConf.load(row).metrics.val["ndcg@10"])
            assert trial.value == pytest.approx(max(trial.intermediate_values.values()))
        if trial.state.name == "PRUNED":
            seen = OmegaConf.load(mark)
            assert seen.value == pytest.approx(trial.intermediate_values[seen.epoch])
            assert seen.epoch < 3
            assert (at / "checkpoints" / "last.ckpt").exists()
        if trial.state.name == "FAIL":
            assert trial.params["model.num_heads"] == 3
            assert "must be a multiple of model.num_heads=3" in trial.user_attrs["error"]


def test_the_report(six: tuple[Path, str]) -> None:
    folder, _ = six
    output = run(sys.executable, "-m", "experiments.search", folder)
    study = search.load(folder)
    assert f"Best: trial {study.best_trial.number}, {study.best_value:.4f}" in output
    (line,) = [x for x in output.splitlines() if x.startswith("python train.py")]
    for key, value in study.best_params.items():
        assert f"{key}={value}" in line
    assert "hydra" not in line
    table = pd.read_csv(folder / "trials.csv")
    assert table["number"].tolist() == list(range(6))
    assert table["state"].tolist() == [t.state.name for t in study.trials]
    assert table["task.optimizer.lr"].tolist() == pytest.approx(
        [t.params["task.optimizer.lr"] for t in study.trials]
    )
    assert table.set_index("number")["value"][study.best_trial.number] == study.best_value


def test_the_report_of_what_is_no_search(tmp_path: Path) -> None:
    output = run(sys.executable, "-m", "experiments.search", tmp_path, expect=1)
    assert output.startswith("error: ")
    assert "holds no search" in output
    assert len(output.splitlines()) == 1


def test_a_search_ends_where_it_would_have_ended(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in its second trial and continued; another search in its folder is refused."""
    settings = ["hydra.sweeper.n_trials=3", "trainer.max_epochs=8"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert call(monkeypatch, *command(whole, data, *settings)) == 0
    typed = [sys.executable, str(ROOT / "train.py"), *command(killed, data, *settings)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(typed, cwd=ROOT, env=environment(), stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(killed.glob("*/checkpoints/last.ckpt"))) == 2:
            break
        time.sleep(0.01)
    assert process.poll() is None, "the search ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [t.state.name for t in trials(killed)] == ["COMPLETE", "RUNNING"]
    assert call(monkeypatch, *typed[2:]) == 0
    assert compared(killed) == compared(whole)
    # Three were asked for, and three there are; one more draws one more.
    assert call(monkeypatch, *typed[2:]) == 0
    assert len(trials(killed)) == 3
    assert call(monkeypatch, *typed[2:], "hydra.sweeper.n_trials=4", "seed=1") == 1
    assert "holds a search with another overrides" in capsys.readouterr().err
    assert call(monkeypatch, *typed[2:], "hydra.sweeper.n_trials=4") == 0
    assert len(trials(killed)) == 4


def test_the_next_start_tries_what_failed_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two trials whose data are not there yet, until the third start."""
    folder, data = tmp_path / "s", tmp_path / "late.txt"
    typed = command(folder, data, "hydra.sweeper.n_trials=2", "trainer.max_epochs=2")

    def states() -> list[str]:
        return [t.state.name for t in trials(folder)]

    assert call(monkeypatch, *typed) == 1
    assert "None of the search's 2 trials succeeded. The last one:" in capsys.readouterr().err
    assert states() == ["FAIL"] * 2
    assert call(monkeypatch, *typed) == 1
    assert "None of the search's 2 trials succeeded." in capsys.readouterr().err
    assert states() == ["FAIL"] * 4  # each once a start
    write_sequences(data, users=60, items=30)
    assert call(monkeypatch, *typed) == 0
    assert call(monkeypatch, *typed) == 0  # nothing is left
    found = trials(folder)
    assert states() == ["FAIL"] * 4 + ["COMPLETE"] * 2
    assert [t.user_attrs.get("retry_of") for t in found] == [None, None, 0, 1, 2, 3]
    for at in range(2):
        same = found[at::2]
        assert len({str(t.params) for t in same}) == 1
        assert len({t.user_attrs["folder"] for t in same}) == 1
        assert sorted(same[-1].intermediate_values) == [0, 1]
    assert len(list(folder.glob("*/row.json"))) == 2
    show(folder)
    printed = capsys.readouterr().out
    assert "late.txt does not exist" in printed
    assert f"Best: trial {search.load(folder).best_trial.number}" in printed


def test_draws_come_before_second_tries(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after two failures, a search draws what it would have drawn."""
    fails = "model.num_heads=choice(3,5)"  # of a width of 8
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    for folder, number in ((whole, 4), (halved, 2), (halved, 4)):
        typed = command(folder, data, fails, f"hydra.sweeper.n_trials={number}")
        assert call(monkeypatch, *typed) == 1
    assert compared(halved)[:4] == compared(whole)
    assert [t.user_attrs.get("retry_of") for t in trials(halved)[4:]] == [0, 1]


def test_a_second_try_resumes_and_survives_a_stop(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial fails at its second epoch; there its second try is stopped, and goes on."""
    folder = tmp_path / "s"
    typed = command(folder, data, "hydra.sweeper.n_trials=1", "trainer.max_epochs=3")
    epochs: list[int] = []

    def breaks(task: SequenceTask) -> None:
        epochs.append(task.trainer.current_epoch)
        if len(epochs) == 2:
            raise UserError("not yet")
        if len(epochs) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(SequenceTask, "on_train_epoch_start", breaks)
    assert [call(monkeypatch, *typed) for _ in range(3)] == [1, 1, 0]
    assert epochs == [0, 1, 1, 1, 2]
    failed, again = trials(folder)
    assert (failed.state.name, again.state.name) == ("FAIL", "COMPLETE")
    # The pruner has seen the epoch before the failure, too.
    assert sorted(again.intermediate_values) == [0, 1, 2]


def test_a_grid_ends_when_it_is_used_up(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = [
        "hydra.sweeper.sampler._target_=optuna.samplers.GridSampler",
        "~hydra.sweeper.sampler.n_startup_trials",
        "+hydra.sweeper.sampler.search_space={model.num_heads:[1,2]}",
        *("model.num_heads=choice(1,2)", "task.optimizer.lr=1e-3", "model.dropout=0.1"),
        *("hydra.sweeper.n_trials=5", "trainer.max_epochs=1"),
    ]
    folder = tmp_path / "grid"
    assert call(monkeypatch, *command(folder, data, *grid)) == 0
    assert sorted(t.params["model.num_heads"] for t in trials(folder)) == [1, 2]


def test_trials_at_once(data: Path, tmp_path: Path) -> None:
    pytest.importorskip(
        "hydra_plugins.hydra_joblib_launcher", reason="pip install -e '.[joblib]' brings it"
    )
    settings = [
        "hydra/launcher=parallel", "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=3",
        "trainer.max_epochs=1",
    ]  # fmt: skip
    run(sys.executable, ROOT / "train.py", *command(tmp_path / "s", data, *settings))
    assert [t.state.name for t in trials(tmp_path / "s")] == ["COMPLETE"] * 3
    assert all(len(t.intermediate_values) == 1 for t in trials(tmp_path / "s"))


def test_a_trial_of_two_processes_is_pruned_and_the_rest_go_on(data: Path, tmp_path: Path) -> None:
    settings = [
        "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_epochs=2",
        "hydra.sweeper.n_trials=3", "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner",
        "~hydra.sweeper.pruner.n_startup_trials", "~hydra.sweeper.pruner.n_warmup_steps",
        "+hydra.sweeper.pruner.lower=2",  # above any score
    ]  # fmt: skip
    output = run(
        sys.executable, ROOT / "train.py", *command(tmp_path / "s", data, *settings), expect=1
    )
    assert "None of the search's 3 trials succeeded" in output
    assert [t.state.name for t in trials(tmp_path / "s")] == ["PRUNED"] * 3
    assert all(list(t.intermediate_values) == [0] for t in trials(tmp_path / "s"))


@pytest.mark.parametrize("model", [m for m in MODELS if m != "popularity"])  # has no settings
def test_every_model_has_a_space_of_its_own_keys(model: str) -> None:
    """All that is drawn exists, and what the configuration says is what the space is of."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        typed = [f"model={model}", "experiment=fair_search"]
        config = compose("config", typed, return_hydra_config=True)
    params = config.hydra.sweeper.params
    assert params
    parsed = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in params.items()])
    for override in parsed:
        key = override.get_key_element()
        now = OmegaConf.select(config, key, throw_on_missing=True)
        assert now is not None, key
        distribution = search.drawn(override)
        assert not distribution.single(), key
        if key != "model.mamba.state_size" and hasattr(distribution, "choices"):
            assert all(type(c) is type(now) for c in distribution.choices), key


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("interval(0,1)", "FloatDistribution(high=1.0, log=False, low=0.0, step=None)"),
        (
            "tag(log,interval(1e-3,1))",
            "FloatDistribution(high=1.0, log=True, low=0.001, step=None)",
        ),
        ("int(interval(1,5))", "IntDistribution(high=5, log=False, low=1, step=1)"),
        ("int(tag(log,interval(1,5)))", "IntDistribution(high=5, log=True, low=1, step=1)"),
        ("range(1,10,3)", "IntDistribution(high=7, log=False, low=1, step=3)"),
        ("1,a,null", "CategoricalDistribution(choices=(1, 'a', None))"),
        ("true,false", "CategoricalDistribution(choices=(True, False))"),
        ("[1,2],[3]", "CategoricalDistribution(choices=('[1,2]', '[3]'))"),
    ],
)
def test_what_is_drawn(written: str, expected: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={written}"])
    assert str(search.drawn(override)) == expected


def test_an_empty_interval_is_one_sentence() -> None:
    (override,) = OverridesParser.create().parse_overrides(["key=interval(2,1)"])
    with pytest.raises(UserError, match="Cannot draw from key="):
        search.drawn(override)


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["model=popularity", "hydra/sweeper=optuna"], "There is nothing to search: model 'pop"),
        (["search=sasrec", "seed=1,2"], "search=… needs hydra/sweeper=optuna"),
        (["hydra/sweeper=optuna", "model.dropuot=interval(0,1)"], "did you mean 'dropout'"),
        (["hydra/sweeper=optuna", "hydra.sweeper.n_trials=0"], "must be at least 1"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(
    typed: list[str],
    answer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "-m", *typed, f"hydra.sweep.dir={tmp_path}") == 1
    captured = capsys.readouterr()
    assert answer in captured.err
    assert "Traceback" not in captured.err + captured.out
    assert not (tmp_path / search.FILE).exists()


def test_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[optuna\]'"):
        search.load(tmp_path)
