"""Jobs of a multirun in parallel processes, on a cluster, and in several processes each."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from sigma.runs import distributed
from tests.in_process import arguments, call
from tests.runs.front_door import Capture, Patch, multirun, row


def needs(package: str) -> None:
    if importlib.util.find_spec(f"hydra_plugins.hydra_{package}_launcher") is None:
        pytest.skip(f"pip install -e '.[{package}]' brings it")


@pytest.fixture
def sweep(
    data: Path, tmp_path: Path, monkeypatch: Patch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Output of a multirun of one-epoch runs in ``tmp_path``; jobs have processes of their own."""

    def output(*overrides: str, expect: int = 0) -> str:
        _, _, *typed = multirun(tmp_path, data, "trainer.max_epochs=1", *overrides)
        if "model=sasrec" in overrides:
            typed = [word for word in typed if not word.startswith("model.mamba")]
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert call(monkeypatch, *typed) == expect
        text = "".join(capfd.readouterr())
        assert "Traceback" not in text
        return text

    return output


def rows(folder: Path) -> dict[int, dict[str, Any]]:
    contents = [row(path.parent) for path in folder.glob("*/row.json")]
    return {content["seed"]: content for content in contents}


@pytest.mark.slow
def test_parallel_jobs_share_the_threads_and_one_that_fails_leaves_the_others_alone(
    sweep: Callable[..., str], tmp_path: Path
) -> None:
    needs("joblib")
    import joblib
    from joblib.externals.loky import get_reusable_executor

    output = sweep("hydra/launcher=parallel", "seed=1,-3,4", expect=1)
    get_reusable_executor().shutdown()  # its workers would wait for more
    assert "This job failed: seed=-3 must be" in output
    assert "LeafSpec" not in output  # a worker says no more than a run does
    assert sorted(rows(tmp_path)) == [1, 4]
    threads = {content["hardware"]["threads"] for content in rows(tmp_path).values()}
    assert threads == {max(1, joblib.cpu_count() // 2)}


@pytest.mark.slow
def test_submitit_on_this_machine(sweep: Callable[..., str], tmp_path: Path) -> None:
    needs("submitit")
    sweep("hydra/launcher=submitit_local", "seed=1,2")
    assert sorted(rows(tmp_path)) == [1, 2]


def test_the_launcher_of_a_cluster_composes(monkeypatch: Patch, capsys: Capture) -> None:
    needs("submitit")
    typed = ("hydra/launcher=slurm", "hydra.launcher.partition=gpu")
    assert call(monkeypatch, *typed, "--cfg", "hydra", "-p", "hydra.launcher") == 0
    assert "partition: gpu" in capsys.readouterr().out


@pytest.mark.slow
def test_jobs_of_two_processes_in_one_multirun(sweep: Callable[..., str], tmp_path: Path) -> None:
    """Each job's other rank runs that job alone, and one that fails leaves the next one alone."""
    two = ["model=sasrec", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    output = sweep(*two, "model.num_heads=3,8", "seed=1", expect=1)
    assert "This job failed: " in output
    (content,) = rows(tmp_path).values()
    assert content["config"]["trainer"]["devices"] == 2


def test_a_job_of_two_processes_is_the_same_run_to_wandb(
    data: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """Its own process is no multirun, and goes on under the multirun's name all the same."""
    typed = [*arguments(tmp_path / "unused", data), "logger=wandb", f"hydra.sweep.dir={tmp_path}"]
    commands: list[list[str]] = []

    def note(cfg: DictConfig) -> float:
        commands.append(distributed.command(cfg))
        return 0.0

    monkeypatch.setattr(distributed, "launch", note)
    for more in ("seed=1", "logger.wandb.id=mine"), ("seed=2",), ("seed=3", "logger=csv"):
        assert call(monkeypatch, "-m", *typed, "trainer.devices=2", *more) == 0
    (run_id,) = (path.name for path in tmp_path.glob("*-s2-*"))
    for one, expected in zip(commands[:2], ("mine", run_id), strict=True):
        capsys.readouterr()
        view = ("--cfg", "job", "-p", "logger.wandb", "--resolve")
        assert call(monkeypatch, *one[2:], *view) == 0
        assert f"id: {expected}" in capsys.readouterr().out.splitlines()
    assert not any(word.startswith("logger.wandb") for word in commands[2])
