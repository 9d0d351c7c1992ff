"""One run's folder: where it stands, whether it may go on, and whether it is done."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from sigma.errors import UserError
from sigma.files import whole
from sigma.identity import determining

log = logging.getLogger(__name__)

ROW, LOCK, FAILED = "row.json", ".lock", "failed.json"
TAKEN = "Another process is at the run"


class RunTakenError(UserError):
    """Another process is at this run."""


def note_failure(folder: Path, sentence: str) -> None:
    """Write down why a job of a sweep failed; the next start of it removes the note."""
    note = {"error": sentence, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole(folder / FAILED) as partial:
            partial.write_text(json.dumps(note, indent=1))
    except OSError:  # such as a full disk, which is the failure itself
        log.warning("The failure could not be written to %s.", folder / FAILED)


class RunFolder:
    """The folder Hydra made for this run.

    In a multirun the folder's name says what the run is, so a run found there is always resumed.

    Args:
        cfg: the run's config, resolved.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.path = Path(HydraConfig.get().runtime.output_dir)
        self.row_path = self.path / ROW
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
        first = getattr(rank_zero_only, "rank", 0) in (None, 0)
        if not first or self.config["trainer"].get("fast_dev_run"):
            yield  # a development run writes nothing
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise RunTakenError(f"{TAKEN} in {self.path}; wait for it or stop it.") from None
        try:
            yield
        finally:
            lock.release()

    def checkpoint_to_resume(self) -> str | None:
        """The last checkpoint, when resuming and there is one.

        Raises:
            UserError: the folder's run was made with other settings.
        """
        last = self.path / "checkpoints" / "last.ckpt"
        if not self.resume or not last.is_file():
            return None
        self._check_unchanged()
        return str(last)

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

    def start(self) -> None:
        """Keep the resolved config beside what the run will write; an old failure is history."""
        with whole(self.path / "config.json") as partial:
            partial.write_text(json.dumps(self.config, indent=1))
        (self.path / FAILED).unlink(missing_ok=True)

    def finished_score(self) -> float | None:
        """Best validation score of a run that is to be resumed but has ended already.

        Raises:
            UserError: it was made with other settings.
        """
        if not self.resume or not self.row_path.is_file():
            return None
        self._check_unchanged()
        metric = self.config["evaluation"]["monitor"].removeprefix("val/")
        return float(json.loads(self.row_path.read_text())["metrics"]["val"][metric])

    def best_score(self, trainer: L.Trainer) -> float:
        """Best validation score, the number a sweep optimises (NaN in a development run)."""
        best = getattr(trainer.checkpoint_callback, "best_model_score", None)
        return float("nan") if best is None else float(best)
