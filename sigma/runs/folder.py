"""One run's folder: where it stands, whether it may go on, and whether it is done."""

from __future__ import annotations

import json
import logging
import shlex
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sigma.errors import UserError
from sigma.runs.files import atomic_path
from sigma.runs.identity import determining

if TYPE_CHECKING:
    import lightning as L

    from sigma.datamodules.base import SequenceDataModule

log = logging.getLogger(__name__)

ROW, LOCK, FAILED = "row.json", ".lock", "failed.json"
# What was typed, and on which data. Hydra's own copy, .hydra/overrides.yaml, is of the last start,
# a refused one too.
COMMAND = "command.json"
TAKEN = "Another process is at the run"


class RunTakenError(UserError):
    """Another process is at this run."""


def note_failure(folder: Path, sentence: str) -> None:
    """Write down why a job of a sweep failed; the next start of it removes the note."""
    note = {"error": sentence, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / FAILED) as partial:
            partial.write_text(json.dumps(note, indent=1))
    except OSError:  # such as a full disk, which is the failure itself
        log.warning("The failure could not be written to %s.", folder / FAILED)


def quoted(text: str) -> str:
    """Text as a value on Hydra's command line."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def hydra_flags() -> list[str]:
    """The flags that say where this job's config comes from, for another command line."""
    hydra = HydraConfig.get()
    sources = hydra.runtime.config_sources
    added = [f"--config-dir={s.path}" for s in sources if s.provider == "command-line"]
    return [f"--config-name={hydra.job.config_name}", *added]


def told_data(data: SequenceDataModule) -> dict[str, str]:
    """What tells processed data from other data: counts to read, and a digest."""
    assert data.sequences is not None
    s = data.statistics
    counts = f"{s.users:,} users, {s.items:,} items, {s.interactions:,} interactions"
    return {"counts": counts, "digest": data.sequences.fingerprint()}


class RunFolder:
    """The folder Hydra made for this run.

    In a multirun the folder's name says what the run is, so a run found there is always resumed.

    Args:
        cfg: the run's config, resolved.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.path = Path(HydraConfig.get().runtime.output_dir)
        self.row_path = self.path / ROW
        self.last_path = self.path / "checkpoints" / "last.ckpt"
        self.resume = cfg.resume is True or HydraConfig.get().mode == RunMode.MULTIRUN
        self.config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold the folder for this process.

        The lock is the operating system's and ends with the process, however that ends. Other
        ranks of a distributed run work under their first one's.

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
            raise RunTakenError(f"{TAKEN} in {self.path}; wait for it or stop it.") from None
        try:
            yield
        finally:
            lock.release()

    def _writes(self) -> bool:
        """Whether this process answers for the folder; a development run writes nothing."""
        from lightning.pytorch.utilities.rank_zero import rank_zero_only

        first = getattr(rank_zero_only, "rank", 0) in (None, 0)
        return first and not self.config["trainer"].get("fast_dev_run")

    def check_unused(self) -> None:
        """See that nothing of another run would be taken for this one's.

        Raises:
            UserError: the folder holds a run, and this start is not to go on with it.
        """
        if self.resume or not self._writes():
            return
        if self.row_path.is_file() or self.last_path.is_file():
            raise UserError(
                f"{self.path} holds a run already; go on with it by python train.py "
                f"resume={shlex.quote(str(self.path))}, or start anew in another hydra.run.dir."
            )

    def checkpoint_to_resume(self) -> str | None:
        """The last checkpoint, when resuming and there is one.

        Raises:
            UserError: the folder's run was made with other settings, or the file is damaged.
        """
        if not self.resume or not self.last_path.is_file():
            return None
        self._check_unchanged()
        # A zip file's table of contents is at its end, so this sees one that was cut short.
        if not zipfile.is_zipfile(self.last_path):
            raise UserError(
                f"{self.last_path} is damaged (cut short by a full disk or a broken copy?); delete "
                "it, and the same command starts this run anew. best.ckpt beside it, which that "
                "replaces, holds the best epoch's weights."
            )
        return str(self.last_path)

    def _check_unchanged(self) -> None:
        before = determining(json.loads((self.path / "config.json").read_text()))
        now = determining(self.config)
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if changed:
            raise UserError(
                f"The run in {self.path} was started with another "
                + ", ".join(f"{k} ({before.get(k)}, now {now.get(k)})" for k in changed)
                + "; resume it unchanged or choose a new hydra.run.dir."
            )

    def data_lies_elsewhere(self) -> bool:
        """Whether the run was made on a file of another name, which may hold the same data."""
        before = json.loads((self.path / "config.json").read_text())
        return bool(before["dataset"].get("path") != self.config["dataset"].get("path"))

    def check_data(self, data: SequenceDataModule) -> None:
        """See that a run that is to go on does so on the data it was started with.

        Raises:
            UserError: the data is another's; a row must not be of two.
        """
        saved = self.path / COMMAND
        if not self.resume or not saved.is_file():
            return
        before = json.loads(saved.read_text()).get("data")
        now = told_data(data)
        if before is None or before == now:  # a run from before this was kept cannot tell
            return
        if before["counts"] == now["counts"]:
            told = f"{now['counts']}, but not the same or in another order"
        else:
            told = f"{before['counts']}, now {now['counts']}"
        raise UserError(
            f"The run in {self.path} was made on other data ({told}). Go on with that data, or "
            "start anew in another folder (hydra.run.dir=…); in a sweep, give each data set a "
            "name of its own with dataset.name=…."
        )

    def start(self, data: SequenceDataModule) -> None:
        """Keep config and command line beside what the run will write; a failure is history."""
        overrides = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
        command = {"flags": hydra_flags(), "overrides": overrides, "data": told_data(data)}
        for name, content in (("config.json", self.config), (COMMAND, command)):
            with atomic_path(self.path / name) as partial:
                partial.write_text(json.dumps(content, indent=1))
        (self.path / FAILED).unlink(missing_ok=True)

    def finished_score(self) -> float | None:
        """Best validation score of a run that is to be resumed but has ended already.

        None for a run that is to go on for more epochs.

        Raises:
            UserError: it was made with other settings.
        """
        if not self.resume or not self.row_path.is_file():
            return None
        self._check_unchanged()
        metric = self.config["evaluation"]["monitor"].removeprefix("val/")
        try:
            row = json.loads(self.row_path.read_text())
            return None if self._goes_on(row) else float(row["metrics"]["val"][metric])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.row_path} is damaged ({type(error).__name__}: {error}); delete it, and the "
                "same command goes on from the last checkpoint and writes it anew."
            ) from error

    def _goes_on(self, row: dict[str, Any]) -> bool:
        """Whether only ``max_epochs`` ended the run, and more of them are asked for now.

        The row stays until the new end: a stop on the way changes nothing of this answer.
        """
        epochs, had = row["epochs"], row["config"]["trainer"]["max_epochs"]
        wanted = self.config["trainer"]["max_epochs"]
        patience = (row["config"]["callbacks"].get("early_stopping") or {}).get("patience")
        best = row["best_epoch"]
        stopped = None not in (patience, best) and epochs - 1 - best > patience
        more = wanted == -1 or wanted > epochs
        # A job of a multirun that wants more is another run.
        single = HydraConfig.get().mode != RunMode.MULTIRUN
        return single and more and epochs == had and not stopped and self.last_path.is_file()

    def best_score(self, trainer: L.Trainer) -> float:
        """Best validation score, the number a sweep optimises (NaN in a development run)."""
        best = getattr(trainer.checkpoint_callback, "best_model_score", None)
        return float("nan") if best is None else float(best)
