"""A trained run: built again from its folder, with the weights of its best epoch."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf

from sigma.build import build
from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.preprocess import Sequences
from sigma.errors import UserError
from sigma.runs.files import BEST, CONFIG
from sigma.runs.folder import check_data
from sigma.runs.identity import current
from sigma.task import SequenceTask


class TrainedRun(NamedTuple):
    """A run as it was when it was tested: config, data, and the task with its best weights."""

    folder: Path
    config: DictConfig
    data: SequenceDataModule
    task: SequenceTask

    @property
    def sequences(self) -> Sequences:
        return self.data.sequences


def load(run: Path, path: str | None = None) -> TrainedRun:
    """Build the data and model of a run's folder and load its best checkpoint, on the CPU.

    Raises:
        UserError: no run, no checkpoint, or data that is not what the run was trained on.
    """
    run = Path(run).expanduser()
    for name, reason in (
        (CONFIG, "it is not the folder of a run"),
        (BEST, f"its first epoch did not end; go on with python train.py resume={run}"),
    ):
        if not (run / name).is_file():
            raise UserError(f"{run} holds no {name}: {reason}.")
    config: Any = OmegaConf.create(current(json.loads((run / CONFIG).read_text())))
    if path is not None:
        config.dataset.path = str(path)
    config.task.compile = False  # costs more than it saves here
    with isolate_rng():  # building seeds
        data, task = build(config)
    check_data(run, data)
    try:
        weights = torch.load(run / BEST, map_location="cpu", weights_only=True)["state_dict"]
        task.load_state_dict(weights)
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{run / BEST} does not fit its run's config and data.") from error
    return TrainedRun(run, config, data, task.eval())
