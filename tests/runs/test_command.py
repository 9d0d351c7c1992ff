"""A run's command line: written down, brought back, and passed on to processes of its own."""

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf

from sigma.errors import RunTakenError, UserError
from sigma.runs import distributed
from sigma.runs.command import expand_resume


def test_resume_brings_back_the_runs_overrides(tmp_path: Path) -> None:
    folder = tmp_path / "it's a run"
    (folder / ".hydra").mkdir(parents=True)
    older = ["model.r=3", "resume=false", "dataset.trim=true", "++task.by_length=false"]
    (folder / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(older))
    hydra = {"hydra": {"overrides": {"task": older}}}
    (folder / ".hydra" / "hydra.yaml").write_text(OmegaConf.to_yaml(hydra))
    quoted = str(folder).replace("'", "\\'")
    end = [f"hydra.run.dir='{quoted}'", "resume=true"]
    typed = [f"resume={folder}", "trainer.max_epochs=9"]
    assert expand_resume(typed) == ["model.r=3", "trainer.max_epochs=9", *end]
    assert expand_resume(["resume=true", "seed=1"]) == ["resume=true", "seed=1"]
    # What the run itself wrote down comes before what Hydra did; flags come before overrides.
    command = '{"flags": ["--config-dir=a"], "overrides": ["model.r=4"], "data": null}'
    (folder / "command.json").write_text(command)
    typed = ["~callbacks.curves", "--config-dir", "b", f"resume={folder}", "seed=1"]
    flags = ["--config-dir", "b"]  # the folder's own is not taken without the user's word
    assert expand_resume(typed) == [*flags, "model.r=4", "~callbacks.curves", "seed=1", *end]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os, time; os.kill(os.getppid(), 15); time.sleep(60)", SIGTERMException),
        ("raise SystemExit('error: it failed')", UserError),
        ("import sys; print('error: taken', file=sys.stderr); sys.exit(75)", RunTakenError),
    ],
)
def test_how_a_job_in_processes_of_its_own_ends(
    code: str, error: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "command", lambda cfg: [sys.executable, "-c", code])
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path)))
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error) as raised:
        distributed.launch(OmegaConf.create())
    assert type(raised.value) is error
    assert signal.getsignal(signal.SIGTERM) == before
