"""Jobs of a multirun in parallel processes, on a cluster, and in several processes each."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from sigma.runs import distributed as alone
from tests.in_process import arguments, call
from tests.runs.front_door import ROOT, command, environment, write_sequences

PLUGINS = {
    "parallel": ("joblib", "hydra_plugins.hydra_joblib_launcher"),
    "slurm": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "submitit_local": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "ray_cluster": ("ray", "hydra_plugins.hydra_ray_launcher"),
}


def needs(launcher: str) -> None:
    extra, module = PLUGINS[launcher]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"pip install -e '.[{extra}]' brings hydra/launcher={launcher}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("data") / "tiny.txt", users=60, items=30)


def sweep(folder: Path, data: Path, *overrides: str, expect: int = 0) -> str:
    """Output of a multirun of one-epoch runs in ``folder``."""
    python, script, *typed = command(folder / "unused", data, "trainer.max_epochs=1", *overrides)
    if "model=sasrec" in overrides:
        typed = [word for word in typed if not word.startswith("model.mamba")]
    threads = {k: v for k, v in environment().items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [python, script, "-m", *typed, f"hydra.sweep.dir={folder}"],
        cwd=ROOT, env=threads, text=True, timeout=240,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout
    return done.stdout


def rows(folder: Path) -> dict[int, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in folder.glob("*/row.json")]
    return {row["seed"]: row for row in found}


def test_parallel_jobs_share_the_threads_and_score_as_one_after_another(
    data: Path, tmp_path: Path
) -> None:
    needs("parallel")
    import joblib

    sweep(tmp_path / "a", data, "seed=1,2")
    one_after_another = rows(tmp_path / "a")
    output = sweep(
        tmp_path / "b", data, "hydra/launcher=parallel", "seed=1,2,-3,4", expect=1
    )  # what fails leaves the others alone
    assert "This job failed: seed=-3 must be" in output
    assert "Traceback" not in output
    assert "LeafSpec" not in output  # a worker says no more than a run does
    parallel = rows(tmp_path / "b")
    assert sorted(parallel) == [1, 2, 4]
    for seed in (1, 2):
        mine, other = parallel[seed]["metrics"], one_after_another[seed]["metrics"]
        for stage in ("val", "test"):  # other numbers of threads round otherwise
            assert mine[stage]["hr@10"] == pytest.approx(other[stage]["hr@10"], abs=0.02)
    each = max(1, joblib.cpu_count() // 2)
    assert {row["hardware"]["threads"] for row in parallel.values()} == {each}


def test_submitit_on_this_machine(data: Path, tmp_path: Path) -> None:
    needs("submitit_local")
    sweep(tmp_path / "s", data, "hydra/launcher=submitit_local", "seed=1,2")
    assert sorted(rows(tmp_path / "s")) == [1, 2]
    assert list((tmp_path / "s" / ".submitit").glob("*/*_log.out"))


def shown(monkeypatch: pytest.MonkeyPatch, launcher: str, *typed: str) -> int:
    return call(
        monkeypatch, f"hydra/launcher={launcher}", *typed, "--cfg", "hydra", "-p", "hydra.launcher"
    )


def test_slurm_composes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("slurm")
    assert shown(monkeypatch, "slurm", "hydra.launcher.partition=gpu") == 0
    output = capsys.readouterr().out
    for line in ("SlurmLauncher", "partition: gpu", "requeue: true", "max_num_timeout: 10"):
        assert line in output


def test_ray_composes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    needs("ray_cluster")
    assert shown(monkeypatch, "ray_cluster", "hydra.launcher.ray.init.address=auto") == 0
    assert "address: auto" in capsys.readouterr().out


@pytest.mark.parametrize("launcher", ["parallel", "joblib", "slurm", "ray_cluster"])
def test_an_absent_launcher_is_one_sentence(launcher: str, tmp_path: Path) -> None:
    """As on a machine where only Hydra itself is installed."""
    extra = PLUGINS.get(launcher, (launcher,))[0]
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "import sys\n"
        "for name in ('joblib', 'submitit', 'ray'):\n"
        "    sys.modules[f'hydra_plugins.hydra_{name}_launcher'] = None\n"
        "import pkgutil\n"
        "walk = pkgutil.walk_packages\n"
        "def without(path=None, prefix='', onerror=None):\n"
        "    found = walk(path, prefix, lambda name: None)\n"
        "    return (m for m in found if '_launcher' not in m.name)\n"
        "pkgutil.walk_packages = without\n"
    )
    done = subprocess.run(
        [sys.executable, "train.py", "-m", f"hydra/launcher={launcher}", "seed=1,2"],
        cwd=ROOT, text=True, capture_output=True, timeout=120,
        env=environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: The package of hydra/launcher=")
    assert line.endswith(f"pip install -e '.[{extra}]'.")


def test_jobs_of_two_processes_in_one_multirun(data: Path, tmp_path: Path) -> None:
    """Each job's other rank runs that job alone, and one that fails leaves the next one alone."""
    two = ["model=sasrec", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    output = sweep(tmp_path / "d", data, *two, "model.num_heads=3,8", "seed=1,2", expect=1)
    assert "This job failed: model.hidden_size=8 must be a multiple of model.num_heads=3" in output
    assert "Traceback" not in output
    found = rows(tmp_path / "d")
    assert sorted(found) == [1, 2]
    assert all(row["config"]["trainer"]["devices"] == 2 for row in found.values())
    assert found[1]["metrics"] != found[2]["metrics"]


def test_a_job_of_two_processes_is_the_same_run_to_wandb(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own process is no multirun, and goes on under the multirun's name all the same."""
    typed = [*arguments(tmp_path / "unused", data), "logger=wandb", f"hydra.sweep.dir={tmp_path}"]
    started: list[list[str]] = []

    def noted(cfg: DictConfig) -> float:
        started.append(alone.command(cfg))
        return 0.0

    monkeypatch.setattr(alone, "run", noted)
    for more in ("seed=1", "logger.wandb.id=mine"), ("seed=2",), ("seed=3", "logger=csv"):
        assert call(monkeypatch, "-m", *typed, "trainer.devices=2", *more) == 0
    (identity,) = (path.name for path in tmp_path.glob("*-s2-*"))
    for own, expected in zip(started[:2], ("mine", identity), strict=True):
        capsys.readouterr()
        shown = [*own[2:], "--cfg", "job", "-p", "logger.wandb", "--resolve"]
        assert call(monkeypatch, *shown) == 0
        lines = capsys.readouterr().out.splitlines()
        assert f"id: {expected}" in lines
    assert not any(word.startswith("logger.wandb") for word in started[2])
