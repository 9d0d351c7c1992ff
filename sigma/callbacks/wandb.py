"""Weights & Biases, such that it can never cost a run: online, offline, or not at all."""

import json
import logging
import os
import uuid
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from sigma.callbacks.wandb_mode import choose_mode
from sigma.callbacks.wandb_results import log_results
from sigma.runs.files import atomic_path
from sigma.runs.identity import is_free

log = logging.getLogger(__name__)

FINISH_SECONDS = 60.0  # how long a finished run waits for its upload; the files stay anyway
DELETED = "previously created and deleted"  # W&B's refusal of an id: it never gives one twice


def variant(overrides: Sequence[str]) -> str:
    """What sets a run apart from others of its model, data set and seed: ``model.gate=false``.

    Not the experiment: a run that several of them share is logged by the one that came first.
    """

    def apart(override: str) -> bool:
        key = override.partition("=")[0].lstrip("+~")
        told = ("model", "dataset", "seed", "experiment")
        return not is_free(key) and key not in told and override != "variant=whole"

    return " ".join(sorted(filter(apart, overrides))) or "default"


class WandbLogger(Logger):
    """Logs one run's config, metrics by epoch, a summary, and the ranks of the test's users.

    A resumed run goes on under the same id, kept in the run's folder. Summary: ``best/val/…`` and
    ``best/epoch`` (of equals the later, as everywhere), ``test/…`` and ``efficiency/…``. Tables:
    ``ranks/users_sample`` and ``ranks/by_history`` (see ``wandb_results``). The last two come from
    ``row.json`` and ``ranks.parquet``, so they are left out where ``ResultRow`` is.

    Args:
        folder: the run's folder; W&B's files go to ``<folder>/wandb``.
        project: W&B project.
        name: of the run, for example ``sigma-beauty-s2020``.
        group: W&B group, or None.
        job_type: the model's name.
        tags: W&B tags.
        also_tagged: more of them, which every run has; None among them is left out.
        overrides: as typed; config ``variant`` tells those that set the run apart.
        id: W&B's id of the run, for one that is resumed on another machine; the folder's state goes
            on wherever it is of that id. None for a new one, or when resuming for that of the
            folder. A run that was deleted in W&B gets the id with four digits added.
        resume: go on under the id kept in the folder.
        init_timeout: seconds an online start may take before the run goes offline.
        monitor: metric that chooses the best epoch, the larger the better.
    """

    def __init__(
        self,
        folder: str,
        project: str = "sigma",
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        also_tagged: Sequence[str | None] = (),
        overrides: Sequence[str] = (),
        id: str | None = None,
        resume: bool | str | None = False,
        init_timeout: float = 30.0,
        monitor: str = "val/ndcg@10",
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.described = {"project": project, "name": name, "group": group, "job_type": job_type}
        self.tags = list(dict.fromkeys([*tags, *(tag for tag in also_tagged if tag)]))
        self.variant = variant(overrides)
        self.id = id
        self.resume = resume not in (False, None)
        self.init_timeout = init_timeout
        self.monitor = monitor
        self._state_path = self.folder / "wandb.json"
        self._state: dict[str, Any] = {}
        self._run: Any = None
        self._off = False
        self._tested: dict[str, float] = {}

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return str(self._state.get("id", ""))

    @property
    @rank_zero_only
    def experiment(self) -> Any:
        """The W&B run, started at first use; None where there is none."""
        if self._run is None and not self._off:
            self._guarded(self._start)
        return self._run

    def _guarded(self, action: Callable[[], None]) -> None:
        """Whatever W&B raises ends W&B, not the run."""
        try:
            action()
        except Exception as error:
            self._off = True
            run, self._run = self._run, None
            with suppress(Exception):
                if run is not None:
                    run.finish(exit_code=1)
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("W&B is off for the rest of this run: %s", reason)

    def _start(self) -> None:
        # Its own banner would repeat what the run says itself.
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb
        except ImportError:
            raise RuntimeError("the package wandb is not installed (pip install wandb)") from None
        self._state = self._found_state()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "wandb").mkdir(exist_ok=True)
        self._save_state()
        mode = choose_mode()
        if mode == "disabled":
            self._off = True
            return
        self._run = self._connected(wandb, mode)
        self._state["open"] = True
        self._save_state()
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        self._run.summary.update(self._best_summary())

    def _found_state(self) -> dict[str, Any]:
        """The state to go on with: the folder's where it is this run's, else a new one."""
        # Not from a seeded generator: two runs of one seed are two runs.
        state: dict[str, Any] = {"id": self.id or uuid.uuid4().hex[:8], "best": {}}
        if not self._state_path.is_file():
            return state
        kept: dict[str, Any] = json.loads(self._state_path.read_text())
        if self.id is None:
            return kept if self.resume else state
        if kept["id"] == self.id or kept["id"].startswith(f"{self.id}-"):
            return kept
        return {**kept, "id": self.id} if self.resume else state

    def _connected(self, wandb: Any, mode: str, fresh: bool = False) -> Any:
        """The run: under another id where W&B has deleted its own, offline where all else fails."""
        try:
            return self._init(wandb, mode)
        except Exception as error:
            if mode != "online":
                raise
            reason = " ".join(str(error).split())
            # The service holds on to the id of a start that failed.
            wandb.teardown()
        if DELETED in reason and not fresh:
            deleted = self._state["id"]
            self._state["id"] = f"{self.id or deleted}-{uuid.uuid4().hex[:4]}"
            self._save_state()
            log.info("W&B's run %s was deleted; it goes on as %s.", deleted, self._state["id"])
            return self._connected(wandb, mode, fresh=True)
        log.warning("W&B cannot be reached, so this run is logged offline: %s", reason)
        return self._init(wandb, "offline")

    def _init(self, wandb: Any, mode: str) -> Any:
        config_path = self.folder / "config.json"
        config = json.loads(config_path.read_text()) if config_path.is_file() else {}
        # A killed run keeps its curves; W&B's 15 seconds would lose them. Older W&B lacks it.
        flush = "x_transaction_log_flush_interval"
        flushed = {flush: 1.0} if flush in wandb.Settings.model_fields else {}
        return wandb.init(
            **self.described,
            tags=self.tags,
            config={**config, "variant": self.variant},
            id=self._state["id"],
            resume="allow",
            mode=mode,
            dir=str(self.folder),
            # Jobs of a multirun share a process; each has its own run.
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=self.init_timeout,
                finish_timeout=FINISH_SECONDS,
                **flushed,
            ),
        )

    def _save_state(self) -> None:
        with atomic_path(self._state_path) as partial:
            partial.write_text(json.dumps(self._state, indent=1))

    def _best_summary(self) -> dict[str, float]:
        return {f"best/{name}": value for name, value in self._state["best"].items()}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        run = self.experiment
        if run is not None:
            self._guarded(lambda: self._log(run, {k: float(v) for k, v in metrics.items()}, step))

    def _log(self, run: Any, metrics: dict[str, float], step: int | None) -> None:
        test = {k: v for k, v in metrics.items() if k.startswith("test/")}
        if test:
            # One number per run, not a curve.
            self._tested = test
            run.summary.update(test)
            return
        run.log(metrics if step is None else {**metrics, "step": step})
        best = self._state["best"].get(self.monitor, float("-inf"))
        if metrics.get(self.monitor, float("-inf")) >= best:
            self._state["best"] = {
                k: v for k, v in metrics.items() if k == "epoch" or k.startswith("val/")
            }
            run.summary.update(self._best_summary())
            self._save_state()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """The whole resolved config is logged at the start already."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close after the test or a failure; Lightning also calls this between fit and test."""
        run = self._run
        if run is None or (status == "success" and not self._tested):
            return
        self._run = None
        self._off = True
        self._guarded(lambda: self._close(run, status == "success"))

    def complete(self) -> None:
        """Give W&B what a run owes it that was killed between its row and its end; else nothing."""
        try:
            if not json.loads(self._state_path.read_text()).get("open"):
                return
            row = json.loads((self.folder / "row.json").read_text())
        except (OSError, ValueError):
            return
        self.resume = True
        self.log_metrics({f"test/{k}": v for k, v in row["metrics"]["test"].items()})
        self.finalize("success")

    def _close(self, run: Any, whole: bool) -> None:
        try:
            if whole:
                log_results(run, self.folder, self._tested)
        finally:
            run.finish(exit_code=0 if whole else 1)
            if whole:
                self._state.pop("open", None)
                self._save_state()
            if run.settings.mode == "offline":
                folders = sorted((self.folder / "wandb").glob(f"offline-run-*-{run.id}"))
                log.info("Upload to W&B: wandb sync %s", " ".join(str(f) for f in folders))
            elif run.url:
                log.info("W&B: %s", run.url)
