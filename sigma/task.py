"""The only LightningModule: batch -> states -> loss, or ranks and metrics. Knows no model."""

import logging
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from sigma.capture import CapturedStep, Inputs
from sigma.datamodules.batches import Batch
from sigma.errors import UserError
from sigma.models.base import Model
from sigma.ops import capture_reason
from sigma.ranking.metrics import ALL, SAMPLED, UNSEEN, CutOffs, Groups, MeanLoss, RankingMetrics
from sigma.ranking.sampled import SampledNegatives
from sigma.ranking.scores import Ranks, ranks
from sigma.training import BuildOptimizer, LossWatch, fused

log = logging.getLogger(__name__)


class SequenceTask(L.LightningModule):
    """Trains and evaluates any sequence model; one without parameters is not trained.

    Args:
        loss: maps states (M, D), targets (M,) and ``logits`` to a scalar.
        ks: cut-offs of HR, NDCG and MRR.
        groups: of users by the length of their histories.
        monitor: metric of the validation that chooses the best epoch, the larger the better.
        capture: on CUDA, run a training step as one replay; see ``sigma.capture``.
        compile: the model by ``torch.compile``; on the CPU slower than without.
        sampled: draws negatives to rank the target among; None ranks it among all items and among
            unseen ones.
        item_counts: (K,) training interactions, for novelty and its like; None goes without.

    Attributes:
        results: of the last evaluation of a stage, ``{"val": {"val/ndcg@10": …}, "test": …}``.

    Raises:
        ValueError: impossible cut-off or group, or a monitor that no validation reports.
    """

    def __init__(
        self,
        model: Model,
        optimizer: BuildOptimizer,
        loss: nn.Module,
        ks: CutOffs = (5, 10, 20),
        groups: Groups | None = None,
        monitor: str | None = None,
        capture: bool = True,
        compile: bool = False,
        sampled: SampledNegatives | None = None,
        item_counts: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        if compile:
            # In place: the names in checkpoints stay. T differs from batch to batch.
            model.compile(dynamic=True)
        self.count_seconds = 0.0  # that a counted model took to count
        self.optimizer = optimizer
        self.loss = loss
        self.sampled = sampled
        self.capture = capture
        self._step: Callable[[Inputs], Tensor] = self.batch_loss
        self._logged = False  # in this epoch
        self._watch = LossWatch()
        # In checkpoints, so that an epoch's mean outlives a stop within it.
        self.train_loss = MeanLoss()
        rankings = (ALL, UNSEEN) if sampled is None else (SAMPLED,)
        counts = None if sampled is not None else item_counts
        options: dict[str, Any] = {"ks": ks, "groups": groups, "item_counts": counts}
        stages = {s: RankingMetrics(rankings=rankings, **options) for s in ("val", "test")}
        self.metrics = nn.ModuleDict(stages)
        self.results: dict[str, dict[str, float]] = {}
        self.monitor = monitor or f"val/{rankings[0]}ndcg@{10 if 10 in ks else max(ks)}"
        names = [f"val/{name}" for name in self.ranking("val").names]
        if self.monitor not in names:
            raise ValueError(f"monitor={self.monitor} is no metric; there are: {', '.join(names)}")

    @property
    def trained(self) -> bool:
        return any(p.requires_grad for p in self.parameters())

    @property
    def attached(self) -> bool:
        """Whether a trainer runs this; the steps work without one, too."""
        try:
            return self.trainer is not None
        except RuntimeError:
            return False

    def on_train_start(self) -> None:
        # A precision such as bf16-true casts it with the model, and its sums would stop growing.
        self.train_loss.set_dtype(torch.float32)
        if self.trainer.world_size > 1:
            # All processes were seeded alike; their dropout and negatives must differ.
            torch.manual_seed(torch.initial_seed() + self.global_rank)
        self._step = self._captured() or self.batch_loss
        self._logged = False

    def _captured(self) -> CapturedStep | None:
        """The step by replay, where this device and precision allow it."""
        if not self.capture or self.device.type != "cuda" or not self.trained:
            return None
        reason = capture_reason(self.model, self.device)
        if self.trainer.precision == "16-mixed":
            reason = "float16 gradients are scaled, and a recorded step cannot know by how much"
        if reason is not None:
            log.info("The training step of %s is not captured: %s.", self.model.name, reason)
            return None
        return CapturedStep(self.batch_loss, list(self.parameters()))

    def on_train_epoch_start(self) -> None:
        # A checkpoint of an epoch's end holds its mean; a run resumed within one starts no epoch.
        self.train_loss.reset()
        self._logged = False

    def on_train_end(self) -> None:
        self._step = self.batch_loss  # graphs and their memory go with the captured one

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        if not self.trained:
            return None
        if self.device.type != "cuda":
            return self.optimizer(self.parameters())
        precision = str(self.trainer.precision) if self.attached else ""
        clipped = self.attached and precision.endswith("-mixed") and self.trainer.gradient_clip_val
        # Lightning neither scales nor, under mixed precision, clips with a fused optimizer.
        barred = precision == "16-mixed" or clipped
        return (self.optimizer if barred else fused(self.optimizer))(self.parameters())

    def batch_loss(self, inputs: Inputs) -> Tensor:
        """The mean loss over a batch's targets, and the model's extra loss."""
        items, rows, places, targets, twins = inputs
        device = items.device.type
        half, kind = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        with torch.autocast(device, kind, half, cache_enabled=False):  # see ``CapturedStep``
            states = self.model(items, rows, places)
            loss = self.loss(states, targets, self.model.logits)
            extra = self.model.extra_loss(items, rows, places, states, twins)
            return loss if extra is None else loss + extra

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        if not self.trained:
            return None
        inputs = Inputs(batch.items, batch.rows, batch.places, batch.targets, batch.twins)
        loss = self._step(inputs)
        self._expect_finite(self._watch.add(self.global_step, loss.detach()))
        self.train_loss.update(loss.detach(), batch.num_targets)
        if self.attached and self.trainer.world_size > 1:
            # Gradients are averaged over processes; the loss is a mean over all their targets.
            count = loss.detach().new_full((), float(batch.num_targets))  # built on the device
            counts = cast(Tensor, self.all_gather(count))
            loss = loss * (count / counts.mean())
        if not self._logged:  # the metric itself is what Lightning keeps, and reads at the end
            self._logged = True
            self.log("train/loss", self.train_loss, prog_bar=True, on_step=False, on_epoch=True)
        return loss

    def on_validation_start(self) -> None:
        self._expect_finite(self._watch.broken())  # a score of such weights means nothing

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._expect_finite(self._watch.broken())  # nothing could go on from them

    def _expect_finite(self, broken: tuple[int, float] | None) -> None:
        """Stop at a loss that is no number."""
        if broken is None:
            return
        paths = [getattr(c, "best_model_path", "") for c in self.trainer.checkpoint_callbacks]
        good = next((path for path in paths if path), "none yet")
        raise UserError(
            f"The training loss became {broken[1]} at step {broken[0]} (epoch "
            f"{self.current_epoch}); the last good checkpoint is {good}. Lower task.optimizer.lr "
            "or use trainer.precision=32-true."
        )

    def ranking(self, stage: str) -> RankingMetrics:
        return cast(RankingMetrics, self.metrics[stage])

    def evaluation_step(self, stage: str, batch: Batch) -> Ranks:
        """Rank each target and update the metrics of ``stage``."""
        metrics = self.ranking(stage)
        result = ranks(self.model, batch, self.sampled, metrics.k_max)
        metrics.update(result.rankings, result.history_lengths)
        return result

    def validation_step(self, batch: Batch, batch_idx: int) -> Ranks:  # type: ignore[override]
        return self.evaluation_step("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Ranks:  # type: ignore[override]
        return self.evaluation_step("test", batch)

    def _log_metrics(self, stage: str) -> None:
        metrics = self.ranking(stage)
        results = {f"{stage}/{name}": float(value) for name, value in metrics.compute().items()}
        metrics.reset()
        self.results[stage] = results
        if not self.attached:
            return
        # Loggers get all at once, callbacks find them in ``results``: Lightning's own way costs a
        # millisecond a metric. What stops and selects goes that way, and what is no group's.
        line = results | {"epoch": self.current_epoch}
        for logger in self.loggers:
            logger.log_metrics(line, step=self.global_step)
        for name in [f"{stage}/{n}" for n in metrics.main]:
            self.log(name, results[name], prog_bar=name == self.monitor, logger=False)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")
