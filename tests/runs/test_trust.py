"""A run's folder of a stranger's: whatever is planted in it, none of it runs."""

import copy
import json
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
from sigma.runs.trust import check_class, check_entries, entries, is_data_folder, trusted_config
from sigma.trained import load
from tests.in_process import call
from tests.runs.attacks import BOOM, IN_COMMAND, IN_CONFIG, SECRET, Malicious, filled, plant
from tests.runs.front_door import Capture, Logged, Patch
from tests.tasks import small_task


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
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SECRET", SECRET)
    yield plant(tmp_path)
    for name in ("planted", "sigma_planted", "hubconf"):
        sys.modules.pop(name, None)


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
    assert not any(map(is_data_folder, ("x" * 300, "\0", "~nobody", None, 3)))
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
