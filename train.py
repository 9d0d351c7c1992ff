"""Train and test one model on one data set: ``python train.py model=sigma dataset=beauty``."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from sigma.environment import load_lightning
from sigma.runs.check import check_config
from sigma.runs.command import expand_resume
from sigma.runs.distributed import launch, needs_launch
from sigma.runs.folder import RunFolder
from sigma.runs.messages import explained, explained_job
from sigma.runs.words import check_words, with_quotes


def train(cfg: DictConfig) -> float:
    """Run one configuration from data to result row; returns the best validation score."""
    # Here, as all that needs PyTorch: help and a config that is shown or refused go without.
    import lightning as L

    from sigma.ancestor import begin_from
    from sigma.build import build, build_trainer, set_precision

    folder = RunFolder(cfg)
    with folder.lock():
        score = folder.finished_score(lambda: build(cfg)[0])
        if score is not None:
            return score
        checkpoint = folder.checkpoint()
        L.seed_everything(cfg.seed, workers=True, verbose=False)
        set_precision(cfg.matmul_precision)
        data, task = build(cfg)
        folder.check_data(data)
        trainer = build_trainer(cfg, task)
        folder.start(data)
        if cfg.init_from is not None and checkpoint is None:
            begin_from(folder.path, Path(cfg.init_from), task, data)
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if trainer.interrupted:
            raise KeyboardInterrupt
        folder.start(data)  # again, as somebody may have deleted it
        best = None if trainer.fast_dev_run else "best"  # type: ignore[attr-defined]
        trainer.test(task, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)
        score = getattr(trainer.checkpoint_callback, "best_model_score", None)
        return float("nan") if score is None else float(score)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    if "lightning" not in sys.modules:
        load_lightning()
        hydra_config = HydraConfig.get()  # has the last word on loggers that Lightning set up
        configure_log(hydra_config.job_logging, hydra_config.verbose)
    with explained_job():
        OmegaConf.resolve(cfg)
        check_config(OmegaConf.to_container(cfg))
        return launch(cfg) if needs_launch(cfg) else train(cfg)
    return float("nan")  # a job of a multirun that another process is at


if __name__ == "__main__":
    with explained():
        sys.argv[1:] = with_quotes(sys.argv[1:])
        check_words(sys.argv[1:])
        sys.argv[1:] = expand_resume(sys.argv[1:])
        main()
