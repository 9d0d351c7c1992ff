"""Every slip gets one sentence and a non-zero exit; only bugs show a traceback."""

import errno
import os
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf

from sigma.errors import UserError
from sigma.runs import distributed as alone
from sigma.runs.check import check_config, parameters, suggest
from sigma.runs.messages import expand_resume, explained, user_message
from tests.in_process import arguments, call
from tests.runs.front_door import write_sequences

# What is typed after a good command line, and what the answer must hold.
BAD = [
    (["model=nope"], "There is no model 'nope'; there are: "),
    (["dataset=beuaty"], "There is no dataset 'beuaty'; did you mean 'beauty'? There are: beauty"),
    (["logger=wanbd"], "did you mean 'wandb'?"),
    (["objective=clozee"], "There is no objective 'clozee'"),
    (["logger=null"], "logger=null names no logger; there are: csv, default, none"),
    (["logger=false"], "For none, logger=none; for one less, ~logger.<name>."),
    (["callbacks=null"], "there are: default. For one less, ~callbacks.<name>."),
    (["trainer=null"], "trainer=null names no trainer; there are: ddp, default."),
    (["+callbacks.x=3"], "callbacks.x=3 is no callback; give the class of one"),
    (["trainer.devices=two"], "trainer: `devices` selected with `CPUAccelerator` should be an int"),
    (["trainer.precision=transformer-engine"], "trainer: Requirement 'transformer_engine"),
    (["+experiment=zzz"], "There is no experiment 'zzz'"),
    (["modle=sigma"], "The config has no key 'modle'; did you mean 'model'?"),
    (["foo=1"], "The config has no key 'foo'; there are: callbacks, dataset"),
    (["model.hiden_size=8"], "model has no key 'hiden_size'; did you mean 'hidden_size'?"),
    (["trainer.strategy=ddp"], "trainer.strategy is not set yet; add it with a plus"),
    (["+model.typo=1"], "model has no key 'typo'; there are: conv_width, dropout"),
    (["+model.mamba.typo=1"], "model.mamba has no key 'typo'; there are: backend"),
    (["+dataset.batchsize=1"], "did you mean 'batch_size'?"),
    (["+task.optimizer.momentum=.9"], "task.optimizer has no key 'momentum'"),
    (["+trainer.max_epoch=3"], "did you mean 'max_epochs'?"),
    (["hidden"], "Cannot read 'hidden': settings are written key=value"),
    (["model.dropout="], "model.dropout= must be a number"),
    (["task.optimizer.lr=-1"], "task.optimizer.lr=-1 must be above 0."),
    (["task.optimizer.lr=fast"], "task.optimizer.lr=fast must be above 0."),
    (["task.optimizer._target_=torch.optim.Adamm"], "cannot be imported"),
    (["model._target_=sigma.models.nope.Nope"], "No module named 'sigma.models.nope'"),
    (["model.dropout=1.5"], "model.dropout=1.5 must be from 0 to below 1."),
    (["model.hidden_size=0"], "model.hidden_size=0 must be a whole number of at least 1."),
    (["model.hidden_size=wide"], "model.hidden_size=wide must be a whole number."),
    (["model.hidden_size=8.5"], "model.hidden_size=8.5 must be a whole number."),
    (["model.gate=1"], "model.gate=1 must be true or false."),
    (["model.mamba.backend=turbo"], "Unknown scan backend 'turbo'; choose from auto"),
    (["trainer.max_epochs=0"], "trainer.max_epochs=0 must be at least 1"),
    (["trainer.max_epochs=many"], "trainer.max_epochs=many must be a whole number."),
    (["trainer.devices=0"], "trainer.devices=0 must be at least 1"),
    (["trainer.accelerator=quantum"], "invalid accelerator name: `accelerator='quantum'`"),
    (["trainer.precision=12"], "Precision 12 is invalid"),
    (["trainer.limit_train_batches=-3"], "invalid value -3 for limit_train_batches"),
    (["dataset.batch_size=0"], "dataset.batch_size=0 must be a whole number of at least 1."),
    (["dataset.max_length=-1"], "dataset.max_length=-1 must be a whole number of at least 1."),
    (["dataset.split=random"], "Unknown dataset.split 'random'"),
    (["dataset.path=/nowhere/x.csv"], "/nowhere/x.csv does not exist"),
    (["dataset.user_bounds=[1000,null]"], "No interactions are left"),
    (["seed=-1"], "seed=-1 must be a whole number from 0"),
    (["seed=x"], "seed=x must be a whole number from 0"),
    (["matmul_precision=low"], "matmul_precision=low must be highest, high or medium."),
    (["loss=hinge"], "There is no loss 'hinge'; there are: bce, bpr, cross_entropy"),
    (["loss=bce", "loss.distribution=zipf"], "distribution=zipf"),
    (["loss=bce", "loss.negatives=0"], "negatives=0 must be"),
    (["evaluation=sampld"], "There is no evaluation 'sampld'; did you mean 'sampled'?"),
    (["evaluation=sampled", "evaluation.sampled.number=0"], "must be a whole number of at least 1"),
    (
        ["evaluation=sampled", "evaluation.sampled.distribution=zipf"],
        "choose uniform or popularity",
    ),
    (
        ["objective=all_positions"],
        "and sigma is not causal: it would see the items it must predict",
    ),
    (["objective=cloze"], "needs a model with a mask token, and sigma has none"),
    (["objective=counted"], "and sigma learns by gradients; use objective=next_item."),
    (
        ["objective=cloze", "objective.mask_ratio=1.5"],
        "mask_ratio=1.5 must be above 0 and at most 1",
    ),
    (["task.ks=[5]"], "it must hold positive cut-offs and 10"),
    (["callbacks.early_stopping.patience=-1"], "patience=-1 must be at least 0."),
    (["callbacks.early_stopping.monitor=val/foo"], "callbacks.early_stopping has no key 'monitor'"),
    (["evaluation.monitor=val/nope@10"], "monitor=val/nope@10 is not available"),
    (["evaluation.sampled.number=2"], "evaluation.sampled has no key 'number'; another option"),
    (["+evaluation.sampled.number=2"], "evaluation.sampled needs evaluation=sampled beside it."),
    (["evaluation=sampled", "evaluation.sampled.seed=-1"], "seed=-1 must be from 0 to 2147483647"),
    (["loss.negatives=2"], "loss has no key 'negatives'; another option of its group"),
    (["+objective.copies=2"], "objective has no key 'copies'; another option of its group"),
    (["+objective.foo=1"], "objective has no key 'foo'"),
    (["hydra.run.dir=/dev/null/x"], "Cannot read or write (/dev/null/x): Not a directory."),
    (["resume=/nowhere/run"], "resume=/nowhere/run is not the folder of a run"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("data") / "tiny.txt", users=60, items=30)


@pytest.mark.parametrize(("typed", "answer"), BAD, ids=lambda x: "".join(x)[:40])
def test_a_slip_gets_one_sentence(
    typed: list[str],
    answer: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *arguments(tmp_path / "run", data, *typed)) == 1
    errors = capsys.readouterr().err
    assert answer in errors
    assert "Traceback" not in errors
    assert len([line for line in errors.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "run" / "row.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the accelerator is there")
def test_an_absent_accelerator(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = arguments(tmp_path, data, "trainer.accelerator=gpu", "trainer.devices=3")
    assert call(monkeypatch, *typed) == 1
    errors = capsys.readouterr().err
    assert "No supported gpu backend found! Use trainer.accelerator=cpu" in errors


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), explained():
        raise ZeroDivisionError
    with pytest.raises(TypeError), explained():
        raise TypeError("in the middle of a model")


def with_a_bug(size: int) -> None:
    raise TypeError(f"a mistake in a model's own code, size {size}")


def with_a_bug_below(size: str) -> None:
    torch.nn.Linear(size, 2)  # type: ignore[arg-type]


def test_what_a_library_refuses_is_a_sentence_and_a_bug_of_ours_is_none() -> None:
    def message(**target: object) -> str | None:
        with pytest.raises(InstantiationException) as raised:
            instantiate({"part": target})
        return user_message(raised.value)

    library = message(_target_="torch.nn.Linear", in_features="wide", out_features=2)
    assert str(library).startswith("part: ")
    call_itself = message(_target_=f"{__name__}.with_a_bug")
    assert str(call_itself).startswith("part: with_a_bug() missing 1 required")
    assert message(_target_=f"{__name__}.with_a_bug", size=1) is None
    assert message(_target_=f"{__name__}.with_a_bug_below", size="wide") is None


def raise_below() -> None:
    try:
        raise UserError("Mend this.")
    except UserError as error:
        raise RuntimeError("around it") from error


def fill_the_disk() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/run/last.ckpt")
    error.add_note("The last checkpoint is kept; go on with: …")
    raise error


def press_ctrl_c() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise SystemExit(1)  # noqa: B904 - as Lightning does


def test_a_user_error_below_others_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), explained():
        raise_below()
    assert capsys.readouterr().err == "error: Mend this.\n"


def test_a_full_disk_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), explained():
        fill_the_disk()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: The disk is full or its quota is used up (/run/last.ckpt)")
    assert lines[1].startswith("The last checkpoint is kept")
    assert "is the disk full?" in str(user_message(RuntimeError("PytorchStreamWriter failed")))
    allocation = RuntimeError("can't allocate memory: you tried to allocate 6400000 bytes")
    assert "Out of memory; lower dataset.batch_size" in str(user_message(allocation))


def test_a_killed_worker_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """As of hydra/launcher=parallel when the system ends one for its memory."""
    joblib = pytest.importorskip("joblib", reason="pip install -e '.[joblib]' brings it")
    jobs = [joblib.delayed(os._exit)(1) for _ in range(2)]
    with pytest.raises(SystemExit) as stopped, explained():
        joblib.Parallel(n_jobs=2)(jobs)
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: A worker process was killed, most often for lack of memory.")
    assert "hydra.launcher.n_jobs=" in line
    # What cannot be sent to a worker is a bug.
    assert user_message(BrokenProcessPool("A task has failed to un-serialize.")) is None


def test_a_file_where_a_folder_is_to_be_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("")
    with pytest.raises(FileExistsError) as raised:
        path.mkdir(exist_ok=True)  # as Hydra makes a run's folder
    assert user_message(raised.value) == f"Cannot read or write ({path}): File exists."


def test_keyboard_and_sigterm_through_lightnings_exits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as stopped, explained():
        press_ctrl_c()
    assert stopped.value.code == 1
    assert "Stopped by the keyboard" in capsys.readouterr().err
    monkeypatch.setenv("SIGMA_FULL_ERROR", "1")  # has nothing to add, and would end with 0
    with pytest.raises(SystemExit) as stopped, explained(), explained():
        raise SIGTERMException
    assert stopped.value.code == 143
    assert capsys.readouterr().err.count("Stopped by SIGTERM") == 1
    with pytest.raises(SystemExit) as stopped, explained():
        raise SystemExit(0)  # --help
    assert stopped.value.code == 0
    assert capsys.readouterr().err == ""


def test_sigterm_reaches_a_job_in_processes_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_parent = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    monkeypatch.setattr(alone, "command", lambda cfg: [sys.executable, "-c", kill_parent])
    here = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path)))
    monkeypatch.setattr(HydraConfig, "get", lambda: here)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        alone.run(OmegaConf.create())
    assert signal.getsignal(signal.SIGTERM) == before


def test_resume_brings_back_the_runs_own_overrides(tmp_path: Path) -> None:
    folder = tmp_path / "it's a run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("- model.r=3\n- resume=false\n")
    expanded = expand_resume([f"resume={folder}", "trainer.max_epochs=9"])
    quoted = str(folder).replace("'", "\\'")
    assert expanded == [
        "model.r=3", "trainer.max_epochs=9", f"hydra.run.dir='{quoted}'", "resume=true"
    ]  # fmt: skip
    assert expand_resume(["resume=true", "seed=1"]) == ["resume=true", "seed=1"]
    # What the run itself wrote down comes before what Hydra did; flags come before overrides.
    (folder / "command.json").write_text(
        '{"flags": ["--config-dir=a"], "overrides": ["model.r=4"]}'
    )
    given = ["~callbacks.curves", "--config-dir", "b", f"resume={folder}", "seed=1"]
    assert expand_resume(given) == [
        "--config-dir=a", "--config-dir", "b", "model.r=4", "~callbacks.curves", "seed=1",
        f"hydra.run.dir='{quoted}'", "resume=true",
    ]  # fmt: skip


def test_arguments_of_bases_are_known() -> None:
    from sigma.datamodules.sets.simulated import Simulated

    known = parameters(Simulated)
    assert known is not None
    assert {"shop", "batch_size"} <= set(known)
    assert parameters(dict) is None
    with pytest.raises(UserError, match="did you mean 'batch_size'"):
        check_config(
            {
                "seed": 1,
                "matmul_precision": "high",
                "d": {"_target_": "sigma.datamodules.sets.simulated.Simulated", "batchsize": 1},
            }
        )


def test_suggestions_read_as_sentences() -> None:
    assert suggest("x", ["b", "a"]) == "there are: a, b."
    assert suggest("betas", ["beta"]) == "did you mean 'beta'? There are: beta."
