"""A trained run: built again from its folder, with the weights of its best epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf

from sigma import checkpoints
from sigma.build import build
from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.preprocess import Sequences
from sigma.errors import UserError
from sigma.runs.files import BEST, CONFIG, ROW
from sigma.runs.folder import check_data
from sigma.runs.records import check_settings
from sigma.runs.trust import trusted_config
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


def load(run: Path, path: str | None = None, allow: Sequence[str] = ()) -> TrainedRun:
    """Build the data and model of a run's folder and load its best checkpoint, on the CPU.

    The folder may be a stranger's: of its config only classes of this project and ``torch.optim``
    are built, and data is written where ``dataset.root`` is a folder of data already, else in
    ``SIGMA_DATA`` or ``./data``.

    Args:
        path: the raw data, where it does not lie any more where it was.
        allow: packages of your own that the config may name classes of, too.

    Raises:
        UserError: no run, no checkpoint, a config that is damaged or names other code, or data that
            is not what the run was trained on.
    """
    run = Path(run).expanduser()
    for name, reason in (
        (CONFIG, "it is not the folder of a run"),
        (BEST, f"its first epoch did not end; go on with python train.py resume={run}"),
    ):
        if not (run / name).is_file() and not (run / ROW).is_file():
            raise UserError(f"{run} holds no {name}: {reason}.")
    config: Any = OmegaConf.create(trusted_config(run / CONFIG, path, allow))
    config.task.compile = False  # costs more than it saves here
    with isolate_rng():  # building seeds
        data, task = build(config)
    check_data(run, data)
    check_settings(run)
    checkpoints.load(run / BEST, task)
    return TrainedRun(run, config, data, task.eval())
