"""From a composed config to data and task: the one order in which the parts are made."""

import time

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from sigma.datamodules.base import SequenceDataModule
from sigma.errors import UserError
from sigma.task import SequenceTask


def accelerator(name: str) -> str:
    """What the trainer runs on: ``auto`` is CUDA or the CPU, never Metal, which has no float64.

    Raises:
        UserError: Metal is asked for.
    """
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


def build(cfg: DictConfig) -> tuple[SequenceDataModule, SequenceTask]:
    """Data that is set up, and the task around the model that fits it.

    Args:
        cfg: resolved, with ``seed``, ``dataset``, ``objective``, ``model``, ``loss``,
            ``evaluation`` and ``task``.

    Raises:
        UserError: parts that do not go together.
    """
    objective = instantiate(cfg.objective)
    data = instantiate(cfg.dataset, objective=objective, _convert_="all")
    data.prepare_data()
    data.setup()
    # Seeded again: whether the data came from the cache must not move the initial weights.
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    model = instantiate(cfg.model, num_items=data.num_items, _convert_="all")
    objective.check(model)
    start = time.perf_counter()
    if model.counted:
        model.count(*data.training_histories())
    seconds = time.perf_counter() - start
    counts = data.item_counts()
    loss = instantiate(cfg.loss, item_counts=counts)
    sampled = instantiate(cfg.evaluation.sampled, item_counts=counts)
    parts = {"model": model, "loss": loss, "sampled": sampled, "monitor": cfg.evaluation.monitor}
    task = instantiate(cfg.task, **parts, _convert_="all")
    task.count_seconds = seconds
    return data, task
