"""From a composed config to data, task and trainer: the one order in which the parts are built."""

import logging
import time
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from sigma.checkpoints import CheckpointFiles
from sigma.datamodules.base import SequenceDataModule
from sigma.errors import UserError
from sigma.losses import CrossEntropy
from sigma.models.base import Model
from sigma.ops.scores import TiedScores
from sigma.runs.check import accepted
from sigma.task import SequenceTask

log = logging.getLogger(__name__)


def accelerator(name: str) -> str:
    """What the trainer runs on: ``auto`` is CUDA or the CPU, never Metal, which has no float64."""
    if name == "mps":
        raise UserError(
            "trainer.accelerator=mps is not possible: metrics are summed in float64, which Metal "
            "does not have; use trainer.accelerator=cpu."
        )
    return "cpu" if name == "auto" and torch.backends.mps.is_available() else name


def set_precision(name: str) -> None:
    """Of float32 products: ``highest`` keeps them whole in cuDNN's convolutions, too.

    Deterministic algorithms do not fill new memory, either: nothing here reads it unwritten.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name != "highest"


def defaults(node: DictConfig, **values: Any) -> dict[str, Any]:
    """Those values that the node's class takes and the node does not name."""
    missing = set(accepted(node._target_)) - node.keys()
    return {name: value for name, value in values.items() if name in missing}


def build(cfg: DictConfig) -> tuple[SequenceDataModule, SequenceTask]:
    """Data that is set up, and the task around the model that fits it.

    Raises:
        UserError: parts that do not go together.
    """
    objective = instantiate(cfg.objective)
    seed = defaults(cfg.dataset, seed=cfg.seed)
    data = instantiate(cfg.dataset, objective=objective, **seed, _convert_="all")
    data.prepare_data()
    data.setup()
    # Seeded again: whether the data came from the cache must not move the initial weights.
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    length = defaults(cfg.model, max_length=data.max_length)
    model = instantiate(cfg.model, num_items=data.num_items, **length, _convert_="all")
    objective.check(model)
    carry_times(data, model)
    start = time.perf_counter()
    if model.counted:
        model.count(*data.training_histories())
    seconds = time.perf_counter() - start
    counts = data.item_counts()
    loss = instantiate(cfg.loss, item_counts=counts)
    check_loss(model, loss)
    sampled = instantiate(cfg.evaluation.sampled, item_counts=counts)
    parts = {"model": model, "loss": loss, "sampled": sampled, "item_counts": counts}
    task = instantiate(cfg.task, **parts, monitor=cfg.evaluation.monitor, _convert_="all")
    task.count_seconds = seconds
    return data, task


def carry_times(data: SequenceDataModule, model: Model) -> None:
    """Let batches carry the times that the model reads, and no others."""
    if model.time is None:
        return
    times = data.sequences.timestamps
    if times is None:
        raise UserError(
            f"{model.name} reads times, and {data.name} has none (a file of a history a line holds "
            "but their order); take data with timestamps, or set model.time=null."
        )
    data.flat.times, data.flat.next_times = torch.from_numpy(times), model.time == "target"


def check_loss(model: Model, loss: nn.Module) -> None:
    """See that a model with classes beside its items is trained by a softmax over all of them."""
    scores = model.logits
    others = isinstance(scores, TiedScores) and scores.others is not None
    if others and not isinstance(loss, CrossEntropy):
        raise UserError(
            f"{model.name} counts padding as an item of the softmax, so it needs "
            "loss=cross_entropy; or set model.padding_item=false."
        )


def build_trainer(cfg: DictConfig, task: SequenceTask) -> L.Trainer:
    """The trainer with callbacks and loggers.

    Raises:
        UserError: several processes for a model that learns nothing, or a part that is none.
    """
    # What is trained on is not validated.
    limits = {"limit_val_batches": 0} if OmegaConf.select(cfg, "dataset.train_on_val") else {}
    trainer: L.Trainer = instantiate(
        cfg.trainer,
        **limits,
        accelerator=accelerator(cfg.trainer.accelerator),
        callbacks=observers(cfg.callbacks, "callbacks", Callback),
        logger=observers(cfg.logger, "logger", Logger),
        _convert_="all",
    )
    trainer.strategy.checkpoint_io = CheckpointFiles(task)
    if trainer.world_size > 1 and not task.trained:
        raise UserError(
            f"{task.model.name} learns nothing by gradients and runs in one process; use "
            "trainer.devices=1."
        )
    if trainer.world_size > 1 and task.model.reads_batch:
        log.warning(
            "%s computes with means over its batch, which are each process's own here: with "
            "another number of devices it is another model, though the run's name is the same.",
            task.model.name,
        )
    return trainer


def observers(group: DictConfig, name: str, kind: type) -> list[Any]:
    """The callbacks or loggers of a config; null leaves one out, as ``~`` does."""
    parts = {k: p for k, p in instantiate(group, _convert_="all").items() if p is not None}
    for key, part in parts.items():
        if not isinstance(part, kind):
            raise UserError(
                f"{name}.{key}={part} is no {kind.__name__.lower()}; give the class of one: "
                f"'+{name}.{key}={{_target_: package.Class}}'."
            )
    return list(parts.values())
