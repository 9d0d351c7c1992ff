"""The only LightningModule: batch -> states -> loss, or ranks and metrics. Knows no model."""

import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import lightning as L
import torch
from torch import Tensor, nn

from sigma.capture import CapturedStep, Inputs
from sigma.datamodules.batches import Batch
from sigma.errors import UserError
from sigma.losses import CrossEntropy, full_precision
from sigma.models.base import Model
from sigma.ops import capture_reason
from sigma.ops.cross_entropy import MIN_ROWS, chunk_rows
from sigma.ops.scores import TiedScores
from sigma.ranking.metrics import MeanLoss, RankingMetrics, target_ranks
from sigma.ranking.sampled import SampledNegatives
from sigma.runs.check import check_groups

log = logging.getLogger(__name__)

WATCHED_STEPS = 64  # whose losses are looked at together: looking waits for the device


class Ranks(NamedTuple):
    """What an evaluation step found, each (B,); callbacks read it.

    ``greater`` items score above the target and ``ties`` others equal it, among all items or, in
    sampled evaluation, among those drawn.
    """

    users: Tensor
    targets: Tensor
    history_lengths: Tensor
    greater: Tensor
    ties: Tensor


class SequenceTask(L.LightningModule):
    """Trains and evaluates any sequence model.

    Args:
        model: see ``sigma.models.base.Model``. Without parameters nothing is trained.
        optimizer: builds the optimizer from the parameters.
        loss: maps states (M, D), targets (M,) and ``logits`` to a scalar.
        ks: cut-offs of HR, NDCG and MRR.
        groups: name -> [lower, upper) of the history length, see ``RankingMetrics``.
        capture: on CUDA, run a training step as one replay; see ``sigma.capture``.
        compile: the model by ``torch.compile``; on the CPU slower than without.
        sampled: draws negatives to rank the target among; None ranks all items.
        monitor: validation metric, the larger the better, by which callbacks choose and stop.

    Raises:
        UserError: impossible cut-off or group.
        ValueError: a monitor that no validation reports.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        loss: nn.Module,
        ks: Sequence[int] = (5, 10, 20),
        groups: Mapping[str, Sequence[int | None]] | None = None,
        capture: bool = True,
        compile: bool = False,
        sampled: SampledNegatives | None = None,
        monitor: str = "val/ndcg@10",
    ) -> None:
        super().__init__()
        if 10 not in ks or min(ks) < 1:
            raise UserError(
                f"task.ks is {list(ks)}; it must hold positive cut-offs and 10, which tables show "
                "and by which the best epoch is chosen."
            )
        check_groups(groups or {})
        scores = model.logits
        others = isinstance(scores, TiedScores) and scores.others is not None
        if others and not isinstance(loss, CrossEntropy):
            raise UserError(
                f"{model.name} counts padding as an item of the softmax, "
                "so it needs loss=cross_entropy; or set model.padding_item=false."
            )
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
        self._losses: list[tuple[int, Tensor]] = []  # of the last steps, not looked at yet
        # Kept in checkpoints, so that an epoch's mean outlives a stop within it.
        self.train_loss = MeanLoss()
        self.metrics = nn.ModuleDict(
            {
                stage: RankingMetrics(ks, groups, "" if sampled is None else "sampled_")
                for stage in ("val", "test")
            }
        )
        self.monitor = monitor
        ranking = self.ranking("val")
        group, _, label = monitor.removeprefix("val/").rpartition("/")
        known = label in ranking.labels and (not group or group in ranking.groups)
        if not monitor.startswith("val/") or not known:
            raise ValueError(
                f"monitor={monitor} is not available; there are "
                f"{', '.join(f'val/{name}' for name in ranking.labels)}"
                f"{', and those of groups, such as val/short/…' if ranking.groups else ''}"
            )

    @property
    def trained(self) -> bool:
        """Whether there is anything to learn by gradients."""
        return any(p.requires_grad for p in self.parameters())

    def setup(self, stage: str) -> None:
        if not self.trained and self.trainer.world_size > 1:
            raise UserError(
                f"{self.model.name} learns nothing by gradients and runs in one process; use "
                "trainer.devices=1."
            )
        if self.trainer.world_size > 1 and self.model.reads_batch:
            log.warning(
                "%s computes with means over its batch, which are each process's own here: with "
                "another number of devices it is another model, though the run's name is the same.",
                self.model.name,
            )

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
        build = self.optimizer
        settings = dict(getattr(build, "keywords", {}))
        kind = build.func if isinstance(build, functools.partial) else build
        mixed = self._trainer is not None and str(self.trainer.precision).endswith("-mixed")
        # Lightning neither scales nor, under mixed precision, clips with a fused optimizer.
        barred = mixed and (self.trainer.precision == "16-mixed" or self.trainer.gradient_clip_val)
        fusible = "fused" in inspect.signature(kind).parameters and not settings.get("foreach")
        if self.device.type == "cuda" and fusible and not barred:  # all parameters in one kernel
            build = functools.partial(build, **{"fused": True, **settings})
        return build(self.parameters())

    @property
    def logits(self) -> Callable[..., Tensor]:
        """To be called with states (M, D) -> scores (M, K) of items 1 … K, or (M, n) of items."""
        return self.model.logits

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
        self._losses.append((self.global_step if self._trainer else 0, loss.detach()))
        if len(self._losses) >= WATCHED_STEPS or loss.device.type == "cpu":
            self._look_at_losses()
        self.train_loss.update(loss.detach(), batch.num_targets)
        if self._trainer is not None and self.trainer.world_size > 1:
            # Gradients are averaged over processes; the loss is a mean over all their targets.
            count = loss.detach().new_full((), float(batch.num_targets))  # made on the device
            counts = cast(Tensor, self.all_gather(count))
            loss = loss * (count / counts.mean())
        if not self._logged:  # the metric itself is what Lightning keeps, and reads at the end
            self._logged = True
            self.log("train/loss", self.train_loss, prog_bar=True, on_step=False, on_epoch=True)
        return loss

    def on_validation_start(self) -> None:
        self._look_at_losses()  # before a score is made of weights that are no numbers

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._look_at_losses()  # nor are they kept

    def _look_at_losses(self) -> None:
        """Stop at a loss that is no number; the first of them names the step."""
        steps, self._losses = self._losses, []
        if not steps:
            return
        losses = torch.stack([loss for _, loss in steps]).tolist()
        for (step, _), loss in zip(steps, losses, strict=True):
            if not math.isfinite(loss):
                raise UserError(self._not_finite(loss, step))

    def _not_finite(self, loss: float, step: int) -> str:
        paths = [getattr(c, "best_model_path", "") for c in self.trainer.checkpoint_callbacks]
        good = next((path for path in paths if path), None)
        return (
            f"The training loss became {loss} at step {step} (epoch {self.current_epoch}); the "
            f"last good checkpoint is {good or 'none yet'}. Lower task.optimizer.lr or use "
            "trainer.precision=32-true."
        )

    def ranking(self, stage: str) -> RankingMetrics:
        """The metrics of ``val`` or ``test``."""
        return cast(RankingMetrics, self.metrics[stage])

    def scores(self, states: Tensor, items: Tensor | None = None) -> Tensor:
        """As ``logits``, in float32 even under mixed precision: rounded scores tie with others."""
        weight = next(self.model.parameters(), None)
        if weight is not None and torch.is_autocast_enabled(states.device.type):
            states = states.to(weight.dtype)
        with torch.autocast(states.device.type, enabled=False):
            return full_precision(self.logits(states, items))

    def all_scores(self, batch: Batch, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Chunk after chunk of the states (M, D): which they are, and their scores (rows, K).

        Column j scores item j + 1; items that the batch leaves out of the ranking hold -inf.
        """
        first, rows = 0, MIN_ROWS  # until the number of items is known
        while first < len(states):
            chunk = slice(first, first + rows)
            scores = self.scores(states[chunk])
            if len(batch.seen_rows):
                here = (batch.seen_rows >= first) & (batch.seen_rows < first + rows)
                seen = batch.seen_rows[here] - first, batch.seen_items[here] - 1
                scores = scores.index_put(seen, scores.new_tensor(float("-inf")))
            yield chunk, scores
            first += rows
            rows = chunk_rows(scores.shape[1], scores.dtype, scores.device)

    def states(self, batch: Batch) -> Tensor:
        """States (M, D) at the batch's places."""
        states: Tensor = self.model(batch.items, batch.rows, batch.places)
        return states

    def target_ranks(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Items above and beside each target, (B,) each, among all items or those drawn."""
        states = self.states(batch)
        if self.sampled is not None:
            drawn = self.sampled(batch)
            scores = self.scores(states, torch.cat([batch.targets[:, None], drawn], 1))
            return target_ranks(scores, torch.ones_like(batch.targets))
        greater, ties = [], []
        for chunk, scores in self.all_scores(batch, states):
            above, beside = target_ranks(scores, batch.targets[chunk])
            greater.append(above)
            ties.append(beside)
        return torch.cat(greater), torch.cat(ties)

    def evaluation_step(self, stage: str, batch: Batch) -> Ranks:
        """Rank each target and update the metrics of ``stage``."""
        greater, ties = self.target_ranks(batch)
        self.ranking(stage).update(greater, ties, batch.history_lengths)
        return Ranks(batch.users, batch.targets, batch.history_lengths, greater, ties)

    def validation_step(self, batch: Batch, batch_idx: int) -> Ranks:  # type: ignore[override]
        return self.evaluation_step("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Ranks:  # type: ignore[override]
        return self.evaluation_step("test", batch)

    def _log_metrics(self, stage: str) -> None:
        metrics = self.ranking(stage)
        for name, value in metrics.compute().items():
            shown = stage == "val" and name == f"{metrics.prefix}ndcg@10"
            self.log(f"{stage}/{name}", value, prog_bar=shown)
        metrics.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")
