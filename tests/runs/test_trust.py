"""A run's folder of a stranger's: whatever is planted in it, none of it runs."""

import copy
import json
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from sigma import checkpoints
from sigma.callbacks import BestCheckpoint
from sigma.checkpoints import CheckpointFiles
from sigma.errors import UserError
from sigma.runs.command import expand_resume
from sigma.runs.files import BEST, COMMAND, CONF, CONFIG, LAST
from sigma.runs.identity import register
from sigma.runs.trust import check_class, check_entries, entries, trusted_config
from sigma.trained import load
from tests.in_process import call
from tests.runs.front_door import Capture, Logged, Patch
from tests.tasks import small_task

SECRET = "none-of-your-business"
# Leaves the marker when it is imported, and when it is called.
PLANTED = """
from pathlib import Path


def boom(*args, **kwargs):
    Path({marker!r}).touch()


class Boom:
    def __init__(self, *args, **kwargs):
        boom()


boom()
"""
HYDRA_CALLBACK = "# @package _global_\nhydra: {callbacks: {x: {_target_: planted.Boom}}}\n"
# What makes the marker by being built; MARKER, FOLDER and PICKLE are paths.
BOOM = {"_target_": "planted.Boom"}
HUB = {"_target_": "torch.hub.load", "repo_or_dir": "FOLDER", "source": "local", "model": "m"}
OPEN = {"_target_": "builtins.open", "file": "MARKER", "mode": "w"}
ZIP = {"_target_": "zipfile.ZipFile", "file": "MARKER", "mode": "w"}
COPY = {"_target_": "shutil.copyfile", "src": "PICKLE", "dst": "MARKER"}
UNPICKLE = {"_target_": "torch.load", "f": "PICKLE", "weights_only": False}
CHECKPOINT = {"checkpoint_path": "PICKLE", "weights_only": False}

IN_CONFIG: dict[str, tuple[str, Any]] = {
    "an argument": ("objective.x", HUB),
    "an objective": ("objective", BOOM),
    "a data set": ("dataset", BOOM),
    "a model": ("model", BOOM),
    "a model by hub": ("model", HUB),
    "a loss": ("loss", OPEN),
    "negatives": ("evaluation.sampled", ZIP),
    "an optimizer": ("task.optimizer", {**BOOM, "_partial_": True}),
    "a task": ("task", BOOM),
    "a block": ("model.mamba", COPY),
    "a shop": ("dataset.shop", UNPICKLE),
    "in a list": ("dataset.user_bounds", [BOOM, None]),
    "in lists of lists": ("task.groups", {"short": [[0, [BOOM]], 1]}),
    "in a mapping of a list": ("task.ks", [{"deep": {"deeper": OPEN}}]),
    "positional": ("objective._args_", [BOOM]),
    "positional file": ("loss", {"_target_": "builtins.open", "_args_": ["MARKER", "w"]}),
    "not recursive": ("objective", {"_recursive_": False, **BOOM}),
    "a partial": ("model", {**BOOM, "_partial_": True}),
    "through one of our modules": ("model", HUB | {"_target_": "sigma.build.torch.hub.load"}),
    "a class through our modules": (
        "objective.x",
        {"_target_": "sigma.datamodules.locate.zipfile.ZipFile", "file": "MARKER", "mode": "w"},
    ),
    "through an optimizer's module": (
        "objective.x",
        OPEN | {"_target_": "torch.optim.adam.torch.serialization.io.open"},
    ),
    "a method of ours": (
        "task",
        {"_target_": "sigma.task.SequenceTask.load_from_checkpoint", **CHECKPOINT},
    ),
    "a method of Lightning's": (
        "objective.x",
        {"_target_": "lightning.LightningModule.load_from_checkpoint", **CHECKPOINT},
    ),
    "a function of ours": (
        "objective.x",
        {"_target_": "sigma.datamodules.download.os.mkdir", "path": "MARKER"},
    ),
    "a name that begins like ours": ("model", {"_target_": "sigma_planted.Boom"}),
    "a name that begins like torch's": ("model", {"_target_": "torch.optim_planted.Boom"}),
    "one word": ("model", {"_target_": "planted"}),
    "a relative name": ("model", {"_target_": ".planted.Boom"}),
    "a list for a name": ("model", {"_target_": ["planted.Boom"]}),
    "a name by interpolation": ("model._target_", "${dataset.name}"),
    "a name by a resolver": ("model._target_", "${oc.decode:planted.Boom}"),
    "a node by a resolver": ("model", "${oc.create:{_target_: planted.Boom}}"),
    "a pickle": ("objective.x", {"_target_": "pandas.read_pickle", "filepath_or_buffer": "PICKLE"}),
    "a folder": ("objective.x", {"_target_": "os.mkdir", "path": "MARKER"}),
    "a log": ("objective.x", {"_target_": "logging.FileHandler", "filename": "MARKER"}),
    "Hydra in Hydra": ("objective.x", {"_target_": "hydra.utils.call", "config": {"x": BOOM}}),
    "our class in another's place": (
        "objective.x",
        {"_target_": "sigma.callbacks.WandbLogger", "save_dir": "MARKER"},
    ),
    "our class that is no model": ("model", {"_target_": "sigma.runs.folder.RunFolder"}),
}

IN_COMMAND: dict[str, list[str]] = {
    "a model": ["model._target_=planted.Boom"],
    "a node": ["+callbacks.x={_target_: planted.Boom}"],
    "a key of nobody's": ["+x._target_=planted.Boom"],
    "a name in quotes": ["model._target_='planted.Boom'"],
    "in a list": ["+trainer.plugins=[{_target_: planted.Boom}]"],
    "an optimizer": ["task.optimizer._target_=planted.Boom"],
    "through one of our modules": ["loss._target_=sigma.build.torch.hub.load"],
    "Hydra's callbacks": ["+hydra.callbacks.x._target_=planted.Boom"],
    "Hydra's callbacks in a node": ["+hydra.callbacks={x: {_target_: planted.Boom}}"],
    "Hydra's launcher": ["hydra.mode=MULTIRUN", "hydra.launcher._target_=planted.Boom"],
    "Hydra's sweeper": ["hydra.mode=MULTIRUN", "hydra.sweeper._target_=planted.Boom"],
    "Hydra's search path": ["hydra.searchpath=[file://FOLDER/conf]", "+evil=x"],
    "Hydra's logs": ["+hydra.job_logging.handlers.x={'()': planted.boom}"],
    "Hydra's folder": ["hydra.output_subdir=MARKER"],
    "another package": ["+model@hydra.callbacks.x=sigma", "+x._target_=planted.Boom"],
    "an option elsewhere": ["experiment=OUT/evil/x"],
    "options elsewhere": ["experiment=[OUT/evil/x]"],
    "a flag for options": ["--config-dir=FOLDER/conf", "+evil=x"],
    "a short flag for options": ["-cd=FOLDER/conf", "+evil=x"],
    "a flag for the config": ["--config-path=FOLDER/conf", "--config-name=evil/x"],
    "a flag for a pickle": ["--experimental-rerun=PICKLE"],
    "an override that is a flag": ["seed=1", "--config-dir=FOLDER/conf", "+evil=x"],
    "where it is written": ["trainer.default_root_dir=MARKER"],
    "where a logger writes": ["logger=tensorboard", "logger.tensorboard.save_dir=MARKER"],
    "where a callback writes": [
        "+callbacks.x={_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: MARKER}"
    ],
    "a callback that deletes": [
        "+callbacks.x._target_=lightning.pytorch.callbacks.ModelCheckpoint"
    ],
    "a file name": [
        "+callbacks.x={_target_: lightning.pytorch.callbacks.ModelCheckpoint, filename: ../../x}"
    ],
    "the environment": ["dataset.name='${oc.env:SECRET}'"],
    "the environment in a list": ["tags=['${oc.env:SECRET}']"],
    "a name by interpolation": ["model._target_='${oc.decode:planted.Boom}'"],
    "what is no setting": ["]["],
}


class Malicious:
    """Leaves the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """The default config, as a run writes it down."""
    register()
    before = HydraConfig.instance().cfg
    with initialize_config_dir(str(CONF), version_base="1.3"):
        typed = ["hydra.runtime.output_dir=/run"]
        config = compose("config", typed, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config.hydra
    content: Any = OmegaConf.to_container(config, resolve=True)
    HydraConfig.instance().cfg = before
    return content


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: Patch) -> Iterator[Path]:
    """What the stranger's code would leave; it lies in wait in the current folder."""
    path = tmp_path / "marker"
    for name in ("planted.py", "sigma_planted.py", "hubconf.py"):
        (tmp_path / name).write_text(PLANTED.format(marker=str(path)))
    for name in ("conf/evil", "evil"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.yaml").write_text(HYDRA_CALLBACK)
    torch.save({"state_dict": Malicious(path)}, tmp_path / "pickle")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SECRET", SECRET)
    yield path
    for name in ("planted", "sigma_planted", "hubconf"):
        sys.modules.pop(name, None)


def filled(text: str, folder: Path) -> str:
    """Text with the paths of an attack."""
    out = os.path.relpath(folder, CONF / "experiment")
    for word, path in (("MARKER", "marker"), ("PICKLE", "pickle"), ("FOLDER", "")):
        text = text.replace(word, str(folder / path))
    return text.replace("OUT", out)


def put(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of the config with another value at a dotted key."""
    config = node = copy.deepcopy(config)
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    node[last] = value
    return config


def write_run(folder: Path, config: dict[str, Any]) -> Path:
    """A folder that looks like a run's."""
    (folder / BEST).parent.mkdir(parents=True)
    torch.save({"state_dict": {}}, folder / BEST)
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def write_older(folder: Path, words: list[str]) -> None:
    """Hydra's own files of what was typed."""
    (folder / ".hydra").mkdir(parents=True)
    hydra = {"hydra": {"overrides": {"task": words}}}
    for name, content in (("overrides", words), ("hydra", hydra)):
        (folder / ".hydra" / f"{name}.yaml").write_text(yaml.safe_dump(content))


def expect_sentence(text: str) -> None:
    assert text.count("\n") <= 1, text
    assert text.count(". ") == 0, text
    assert len(text) < 600, text
    assert SECRET not in text


@pytest.mark.parametrize("attack", IN_CONFIG)
def test_a_config_runs_nothing(
    attack: str, composed: dict[str, Any], marker: Path, tmp_path: Path
) -> None:
    key, value = IN_CONFIG[attack]
    config = put(composed, key, json.loads(filled(json.dumps(value), tmp_path)))
    with pytest.raises(UserError) as refused:
        load(write_run(tmp_path / "run", config))
    assert not marker.exists()
    expect_sentence(str(refused.value))


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("attack", IN_COMMAND)
def test_a_command_line_runs_nothing(
    attack: str, older: bool, marker: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    words = [filled(word, tmp_path) for word in IN_COMMAND[attack]]
    folder = write_run(tmp_path / "run", {})
    if older:  # Hydra's own file has no flags
        write_older(folder, words)
    else:
        flags = [word for word in words if word.startswith("-")] if words[0][0] == "-" else []
        content = {"flags": flags, "overrides": [word for word in words if word not in flags]}
        (folder / COMMAND).write_text(json.dumps(content))
    assert call(monkeypatch, f"resume={folder}", "trainer.fast_dev_run=true", "logger=none") == 1
    output = capsys.readouterr()
    assert not marker.exists()
    expect_sentence(output.err)
    assert output.err.startswith("error: ")
    assert "planted" not in sys.modules


def test_a_written_environment_is_not_read(marker: Path, tmp_path: Path) -> None:
    """Though OmegaConf resolves what it reads as soon as somebody looks."""
    write_older(tmp_path / "run", ["${oc.env:SECRET}"])
    with pytest.raises(UserError) as refused:
        expand_resume([f"resume={tmp_path / 'run'}"])
    expect_sentence(str(refused.value))


@pytest.mark.parametrize("name", ["train.log", "checkpoints", ".hydra", "checkpoints/last.ckpt"])
def test_a_folder_does_not_lead_elsewhere(name: str, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (folder / name).parent.mkdir(parents=True)
    (folder / COMMAND).write_text(json.dumps({"flags": [], "overrides": []}))
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{name} is a link that leads out") as refused:
        expand_resume([f"resume={folder}"])
    expect_sentence(str(refused.value))
    (folder / name).unlink()
    (folder / name).symlink_to(folder / COMMAND)
    (tmp_path / "link").symlink_to(folder)  # nor does a link to it, or within it
    assert expand_resume([f"resume={tmp_path / 'link'}"])[-1] == "resume=true"


def test_a_checkpoint_runs_nothing(marker: Path, tmp_path: Path) -> None:
    """Though it is as it was written, by the sums of its archive."""
    folder, task = write_run(tmp_path / "run", {}), small_task()
    content = {"state_dict": task.state_dict(), "callbacks": {"x": Malicious(marker)}}
    for name in (LAST, BEST):
        torch.save(content, folder / name)
        for read in (partial(checkpoints.load, task=task), CheckpointFiles(task).load_checkpoint):
            with pytest.raises(UserError, match=f"{name} .*may hold code") as refused:
                read(folder / name)
            assert not marker.exists()
            expect_sentence(str(refused.value))


def test_a_checkpoint_says_of_no_file_that_it_may_go(tmp_path: Path) -> None:
    """Lightning deletes the best one of before, by the name that stands in the last one."""
    victim = f"{tmp_path}/checkpoints/../victim"
    callback = BestCheckpoint()
    callback.dirpath = f"{tmp_path}/checkpoints"
    state = callback.state_dict() | {
        "best_model_path": "",
        "kth_best_model_path": victim,
        "last_model_path": victim,
        "best_k_models": {victim: torch.tensor(0.0)},
    }
    callback.load_state_dict(state)
    assert "victim" not in repr(callback.state_dict())


def test_what_recommendations_do_not_need_is_not_looked_at(
    composed: dict[str, Any], marker: Path, tmp_path: Path
) -> None:
    """One's own callbacks and loggers are not built, so they need no leave."""
    config = put(put(composed, "callbacks.x", BOOM), "trainer.plugins", [BOOM])
    folder = write_run(tmp_path / "run", config)
    assert not {"callbacks", "logger"} & trusted_config(folder / CONFIG).keys()
    assert not marker.exists()


def test_data_is_written_where_the_user_says(
    composed: dict[str, Any], tmp_path: Path, monkeypatch: Patch, caplog: Logged
) -> None:
    theirs, config = tmp_path / "theirs", put(composed, "dataset.root", str(tmp_path / "theirs"))
    folder = write_run(tmp_path / "run", config)
    (folder / COMMAND).write_text(
        json.dumps({"flags": [], "overrides": ["seed=1", f"dataset.root={theirs}"]})
    )

    def roots() -> tuple[str, list[str]]:
        words = expand_resume([f"resume={folder}"])
        root = trusted_config(folder / CONFIG)["dataset"]["root"]
        return root, [word for word in words if word.startswith("dataset.root")]

    monkeypatch.delenv("SIGMA_DATA", raising=False)
    assert roots() == ("data", [])
    assert "holds no data" in caplog.text
    monkeypatch.setenv("SIGMA_DATA", "mine")
    assert roots() == ("mine", [])
    (theirs / "processed").mkdir(parents=True)  # a folder of data already
    assert roots() == (str(theirs), [f"dataset.root={theirs}"])


def test_what_the_user_types_is_his(tmp_path: Path) -> None:
    overrides = ["seed=1", "hydra.job.name=a", "+callbacks.x._target_=planted.Boom"]
    content = {"flags": ["--config-name=config", "--config-dir=theirs"], "overrides": overrides}
    (tmp_path / COMMAND).write_text(json.dumps(content))
    typed = ["--config-dir=theirs", *overrides[1:]]
    words = expand_resume([f"resume={tmp_path}", *typed])
    assert words[:-2] == ["--config-name=config", "--config-dir=theirs", "seed=1", *overrides[1:]]


def test_allowed_packages_are_said_aloud(
    composed: dict[str, Any], tmp_path: Path, caplog: Logged
) -> None:
    """The refusal says what to type, and it works."""
    model = {"_target_": "tests.tasks.Fixed"}
    folder = write_run(tmp_path / "run", put(composed, "model", model))
    words = ["model._target_=tests.tasks.Fixed", "seed=1"]
    (folder / COMMAND).write_text(json.dumps({"flags": [], "overrides": words}))
    for refused in (
        lambda: trusted_config(folder / CONFIG),
        lambda: trusted_config(folder / CONFIG, allow=["test", "tests.task", "sigma"]),
        lambda: expand_resume([f"resume={folder}"]),
    ):
        with pytest.raises(UserError, match=r"if tests is your own code, add allow=tests\.$"):
            refused()
    assert "Allowed" not in caplog.text
    assert trusted_config(folder / CONFIG, allow="tests")["model"] == model
    assert expand_resume([f"resume={folder}", "allow=other,tests"])[:2] == words
    assert caplog.text.count("Allowed beyond this project") == 2
    # What a package that is allowed has from elsewhere is not of it.
    for target in ("tests.runs.test_trust.Path", "tests.runs.test_trust.call", "planted.Boom"):
        with pytest.raises(UserError):
            check_entries(Path(), entries({"x": {"_target_": target}}), ["tests"])


def test_what_we_configure_is_trusted(composed: dict[str, Any], tmp_path: Path) -> None:
    check_entries(tmp_path, entries(composed), [])
    count = 0
    for path in CONF.rglob("*.yaml"):
        text = path.read_text()
        header = re.match(r"# @package (\S+)\n", text)
        package = header[1] if header else ".".join(path.relative_to(CONF).parent.parts)
        content = list(entries(yaml.safe_load(text), package.replace("_global_", "")))
        for key, value in content:
            if key.endswith("_target_"):
                key = key.removesuffix("._target_")
                assert not check_class(str(path), key, value, []), path
                count += 1
    assert count > 60


def test_what_our_experiments_type_is_trusted(tmp_path: Path) -> None:
    overrides = ["dataset.path=/data/a.csv", "~callbacks.curves", "tags=[a,b]", "group=a/b"]
    overrides += [
        "model.name='it\\'s'",
        "+logger.wandb.entity=team",
        "++trainer.precision=16-mixed",
    ]
    parser = OverridesParser.create()
    for path in (CONF / "experiment").glob("*.yaml"):
        hydra = yaml.safe_load(path.read_text()).get("hydra", {})
        for key, values in hydra.get("sweeper", {}).get("params", {}).items():
            sweep = parser.parse_override(f"{key}={values}")
            one = sweep.sweep_string_iterator() if sweep.is_sweep_override() else [values]
            overrides += [f"{key}={value}" for value in one]
    content = {"flags": ["--config-name=config"], "overrides": overrides}
    (tmp_path / COMMAND).write_text(json.dumps(content))
    words = expand_resume([f"resume={tmp_path}"])
    assert words[: len(overrides) + 1] == ["--config-name=config", *overrides]
    assert len(overrides) > 30
