"""One run's folder: where it stands, whether it may go on, and whether it is finished."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sigma.errors import RunTakenError, UserError, excerpt
from sigma.files import atomic_path
from sigma.runs.command import typed
from sigma.runs.files import BEST, COMMAND, CONFIG, FAILURE, LAST, LOCK, ROW, sweep
from sigma.runs.identity import digest, settings
from sigma.runs.records import DataIdentity, damaged, read_command, read_config

if TYPE_CHECKING:
    from sigma.datamodules.base import SequenceDataModule
    from sigma.runs.row import Row

log = logging.getLogger(__name__)
SHOWN = 5  # settings that a message names


def note_failure(folder: Path, sentence: str) -> None:
    """Write down why a job of a sweep failed."""
    note = {"error": sentence, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        with atomic_path(folder / FAILURE) as partial:
            partial.write_text(json.dumps(note, indent=1))
    except OSError:  # such as a full disk, which is the failure itself
        log.warning("The failure could not be written to %s.", folder / FAILURE)


def data_identity(data: SequenceDataModule) -> DataIdentity:
    """What a run's processed data are known by."""
    s = data.statistics
    counts = f"{s.users:,} users, {s.items:,} items, {s.interactions:,} interactions"
    return DataIdentity(counts, data.sequences.fingerprint())


def check_data(folder: Path, data: SequenceDataModule) -> None:
    """See that data is what the folder's run was started with.

    Raises:
        UserError: it is another's; what is computed from it would be of two.
    """
    command, now = read_command(folder), data_identity(data)
    before = None if command is None else command.data
    if before is None or before == now:  # a run of an earlier version cannot tell
        return
    counts = f"{excerpt(before.counts)}, now {now.counts}"
    if before.counts == now.counts:
        counts = f"{now.counts}, but not the same or in another order"
    raise UserError(
        f"The run in {folder} was made on other data ({counts}). Go on with that data, or "
        "start anew in another folder (hydra.run.dir=…); in a sweep, give each data set a "
        "name of its own with dataset.name=…."
    )


class RunFolder:
    """The folder Hydra made for the run of a resolved config.

    In a multirun the folder's name says what the run is, so a run that lies there is resumed.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.path = Path(HydraConfig.get().runtime.output_dir)
        self.row_path, self.last_path = self.path / ROW, self.path / LAST
        self.multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        self.resume = cfg.resume is True or self.multirun
        self.config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process, as long as it lives; other ranks have the first's lock.

        Raises:
            RunTakenError: another process has it.
        """
        if not self._writes():
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0.5)  # experiments.status holds it for a moment
        except Timeout:
            raise RunTakenError(
                f"Another process is at the run in {self.path}; wait for it or stop it."
            ) from None
        try:
            sweep(self.path)
            yield
        finally:
            lock.release()

    def _writes(self) -> bool:
        """Whether this process answers for the folder; a development run writes nothing."""
        from lightning.pytorch.utilities.rank_zero import rank_zero_only

        first = getattr(rank_zero_only, "rank", 0) in (None, 0)
        return first and not self.config["trainer"].get("fast_dev_run")

    def finished_score(self, data: Callable[[], SequenceDataModule]) -> float | None:
        """Best validation score of a run to resume that has ended; None where it has not yet.

        Args:
            data: builds the run's data, where a file of another name may hold other data.

        Raises:
            UserError: the run was made with other settings or data, or a file of it is damaged.
        """
        if not self.resume or not self.row_path.is_file():
            return None
        before = self._unchanged()
        from sigma.runs.row import REWRITE, Row

        row = Row.read(self.row_path)
        try:
            score = row.score(self.config["evaluation"]["monitor"])
        except KeyError as error:
            raise damaged(self.row_path, error, REWRITE) from None
        if self._goes_on(row):
            return None
        if before["dataset"].get("path") != self.config["dataset"].get("path"):
            self.check_data(data())
        log.info("This run is finished already: %s", self.row_path)
        return score

    def _goes_on(self, row: Row) -> bool:
        """Whether only ``max_epochs`` ended the run, and more of them are asked for now.

        The row stays until the new end: a stop on the way changes nothing of this answer.
        """
        before, now = row.config["trainer"]["max_epochs"], self.config["trainer"]["max_epochs"]
        patience = (row.config["callbacks"].get("early_stopping") or {}).get("patience")
        best = row.best_epoch
        stopped = None not in (patience, best) and row.epochs - 1 - best > patience  # type: ignore[operator]
        more = row.epochs == before and (now == -1 or now > row.epochs)
        # A job of a multirun that wants more is another run.
        return more and not stopped and not self.multirun and self.last_path.is_file()

    def checkpoint(self) -> str | None:
        """The last checkpoint, when resuming and there is one.

        Raises:
            UserError: the folder holds a run that is not to go on, or not with these settings; or
                it or the best one is damaged.
        """
        used = self.row_path.is_file() or self.last_path.is_file()
        if used and not self.resume and self._writes():
            raise UserError(
                f"{self.path} holds a run already; go on with it by python train.py "
                f"resume={shlex.quote(str(self.path))}, or start anew in another hydra.run.dir."
            )
        if not self.resume or not self.last_path.is_file():
            return None
        self._unchanged()
        from sigma.checkpoints import expect_intact

        expect_intact(self.last_path)  # before the data is built
        if (best := self.path / BEST).is_file():
            expect_intact(best)
        return str(self.last_path)

    def _unchanged(self) -> dict[str, Any]:
        """The config the run was started with, which decides the same result as this one."""
        config = read_config(self.path)
        before, now = settings(config), settings(self.config)
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if changed:
            pairs = ", ".join(
                f"{excerpt(k)} ({excerpt(before.get(k))}, now {excerpt(now.get(k))})"
                for k in changed[:SHOWN]
            ) + f" and {len(changed) - SHOWN} more" * (len(changed) > SHOWN)
            raise UserError(
                f"The run in {self.path} was started with another {pairs}; resume it unchanged or "
                "choose a new hydra.run.dir."
            )
        return config

    def check_data(self, data: SequenceDataModule) -> None:
        if self.resume:
            check_data(self.path, data)

    def start(self, data: SequenceDataModule) -> None:
        """Write config and command line beside what the run will write; a failure is history."""
        if not self._writes():
            return
        command = typed() | {"data": asdict(data_identity(data))}
        command["settings"] = digest(settings(self.config))
        for name, content in ((CONFIG, self.config), (COMMAND, command)):
            with atomic_path(self.path / name) as partial:
                partial.write_text(json.dumps(content, indent=1))
        from sigma.ancestor import write_items

        write_items(self.path, data)
        (self.path / FAILURE).unlink(missing_ok=True)
