"""Train and test one model on one data set: ``python train.py model=sigma dataset=beauty``."""

import logging
import sys

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sigma.environment import load_lightning
from sigma.runs import distributed as alone
from sigma.runs.check import check_config
from sigma.runs.console import before_logging
from sigma.runs.folder import RunFolder
from sigma.runs.messages import (
    expand_resume,
    explained,
    explained_job,
    note_working_directory,
    observers,
)

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float:
    """Run one configuration from data to result row; returns the best validation score."""
    folder = RunFolder(cfg)
    with folder.taken():
        return run(cfg, folder)


def run(cfg: DictConfig, folder: RunFolder) -> float:
    """The same, in a folder that no other process is at."""
    # Here, as all that needs PyTorch: help and a config that is shown or refused go without.
    import lightning as L
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger

    from sigma.build import accelerator, build, set_precision

    folder.check_unused()
    if (score := folder.finished_score()) is not None:
        if folder.data_lies_elsewhere():
            folder.check_data(build(cfg)[0])
        log.info("This run is finished already: %s", folder.row_path)
        return score
    checkpoint = folder.checkpoint_to_resume()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    set_precision(cfg.matmul_precision)

    datamodule, task = build(cfg)
    folder.check_data(datamodule)
    callbacks = observers(cfg.callbacks, "callbacks", Callback)
    loggers = observers(cfg.logger, "logger", Logger)
    trainer = instantiate(
        cfg.trainer,
        accelerator=accelerator(cfg.trainer.accelerator),
        callbacks=callbacks,
        logger=loggers,
        _convert_="all",
    )
    if not trainer.fast_dev_run:
        folder.start(datamodule)
    trainer.fit(task, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    trainer.test(
        task,
        datamodule=datamodule,
        ckpt_path=None if trainer.fast_dev_run else "best",
        weights_only=True,
        verbose=False,
    )
    return folder.best_score(trainer)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    if "lightning" not in sys.modules:
        with before_logging():
            load_lightning()
    with explained_job():
        OmegaConf.resolve(cfg)
        check_config(OmegaConf.to_container(cfg))
        note_working_directory(cfg)
        return alone.run(cfg) if alone.needed(cfg) else train(cfg)
    return float("nan")  # a job of a multirun that another process is at


if __name__ == "__main__":
    sys.argv[1:] = expand_resume(sys.argv[1:])
    with explained():
        main()
