"""Weights & Biases, such that it can never cost a run: online, offline, or not at all."""

import json
import logging
import netrc
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.loggers import WandbLogger as LightningLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from sigma.ranking.metrics import METRICS, expected_gains, gain_table
from sigma.runs.files import CONFIG, RANKS, ROW, WANDB, atomic_path
from sigma.runs.messages import one_line
from sigma.runs.row import Row

log = logging.getLogger(__name__)

FINISH_SECONDS = 60.0  # how long a finished run waits for its upload; the files stay anyway
SAMPLE_LINES = 10_000  # of the table of ranks; W&B shows no more of a table at once
K = 10
# Lower ends, in doubling steps that keep to the paper's groups [0, 5), [5, 20) and [20, …).
HISTORY_BINS = (0, 3, 5, 10, 20, 50, 100)


def has_login() -> bool:
    """Whether a key is set or a netrc file knows W&B's host."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = os.environ.get("NETRC") or str(Path.home() / ".netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def choose_mode() -> Any:
    """W&B's own setting (``WANDB_MODE``, ``wandb offline``), else ``online`` with a login."""
    import wandb

    if mode := os.environ.get("WANDB_MODE"):
        return mode
    mode = wandb.setup().settings.mode
    return mode if mode != "online" or has_login() else "offline"


def start(folder: Path, run_id: str, init_timeout: float, described: dict[str, Any]) -> Any:
    """A W&B run with the folder's config; offline where an online one cannot be started in time."""
    import wandb

    path, place = folder / CONFIG, folder / "wandb"
    place.mkdir(parents=True, exist_ok=True)
    os.environ["WANDB_DATA_DIR"] = str(place.absolute())  # the home may be read-only
    described = {**described, "id": run_id, "resume": "allow", "dir": str(folder)}
    init = partial(
        wandb.init,
        **described,
        config=json.loads(path.read_text()) if path.is_file() else {},
        reinit="create_new",  # jobs of a multirun share a process; each has its own run
        settings=wandb.Settings(
            silent=True, console="off", init_timeout=init_timeout, finish_timeout=FINISH_SECONDS
        ),
    )
    mode = choose_mode()
    try:
        run = init(mode=mode)
    except Exception as error:
        if mode != "online":
            raise
        log.warning("W&B cannot be reached, so this run is logged offline: %s", one_line(error))
        wandb.teardown()  # the service holds on to the id of a start that failed
        run = init(mode="offline")
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    return run


def id_of(folder: Path, run_id: str | None) -> str:
    """The id of this folder's W&B run, written down there: the one asked for, as before, or new."""
    path = folder / WANDB
    before = json.loads(path.read_text())["id"] if path.is_file() else None
    # Not from a seeded generator: two runs of one seed are two runs.
    run_id = run_id or before or uuid.uuid4().hex[:8]
    with atomic_path(path) as partial:
        partial.write_text(json.dumps({"id": run_id}))
    return run_id


class WandbLogger(LightningLogger):
    """Lightning's, with the run's config, one summary, and two tables of the test's ranks.

    A resumed run goes on under its id, which is kept in the run's folder. When the test has ended,
    the summary gets the row's ``best/…``, ``test/…`` and ``efficiency/…`` (see ``summary``), and
    the run is closed, so that each job of a multirun is a run of its own. Whatever W&B raises ends
    W&B, not the run.

    Args:
        save_dir: the run's folder; W&B's files go to ``<save_dir>/wandb``.
        id: W&B's id of the run, for one that is resumed on another machine. None for the one that
            the folder knows, or a new one.
        init_timeout: seconds an online start may take before the run goes offline.
        **described: of ``wandb.init``: project, name, group, job_type, tags, entity, ….
    """

    def __init__(
        self, save_dir: str, id: str | None = None, init_timeout: float = 30.0, **described: Any
    ) -> None:
        super().__init__(save_dir=save_dir, id=id, **described)
        os.environ.setdefault("WANDB_SILENT", "true")  # it would repeat what the run says itself
        self.folder, self.id = Path(save_dir), id
        self.init_timeout, self.described = init_timeout, described
        self.run: Any = None
        self.closed = False
        self.tested: dict[str, float] = {}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at first use; None once it is closed."""
        if self.run is None and not self.closed:
            try:
                self.id = id_of(self.folder, self.id)
                self.run = start(self.folder, self.id, self.init_timeout, self.described)
            except Exception as error:
                self.fail(error)
        return self.run

    @property
    def version(self) -> str | None:
        return self.id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.tested |= {n[5:]: v for n, v in metrics.items() if n.startswith("test/")}
        run = self.experiment
        if run is None:
            return
        try:
            if self.tested and step is not None:  # one number per run, not a curve
                run.summary.update(metrics)
            else:
                run.log(dict(metrics) if step is None else {**metrics, "step": step})
        except Exception as error:
            self.fail(error)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close after the test or a failure; Lightning also calls this between fit and test."""
        if self.run is None or (status == "success" and not self.tested):
            return
        try:
            if status == "success" and (self.folder / ROW).is_file():
                row = Row.read(self.folder / ROW)
                if row.metrics.test == self.tested:  # else it is of an earlier end of the run
                    self.log_results(row)
        except Exception as error:
            self.fail(error)
        self.close(0 if status == "success" else 1)

    def fail(self, error: Exception) -> None:
        """What W&B raises ends W&B."""
        log.warning("W&B is off for the rest of this run: %s", one_line(error))
        self.close(1)

    def log_results(self, row: Row) -> None:
        """Add the row's numbers and two tables of ranks to the run."""
        self.run.summary.update(summary(row))
        lines = user_lines(pd.read_parquet(self.folder / RANKS))
        evenly = np.linspace(0, len(lines) - 1, min(len(lines), SAMPLE_LINES)).round().astype(int)
        self.log_table("ranks/users_sample", dataframe=lines.iloc[evenly])
        self.log_table("ranks/by_history", dataframe=by_history(lines))

    def close(self, exit_code: int) -> None:
        """End the run, and say where it is; nothing is logged from here on."""
        self.closed, run, self.run = True, self.run, None
        if run is None:
            return
        with suppress(Exception):
            run.finish(exit_code=exit_code)
        if run.settings.mode == "offline":
            folders = sorted((self.folder / "wandb").glob(f"offline-run-*-{run.id}"))
            log.info("Upload to W&B: wandb sync %s", " ".join(str(f) for f in folders))
        elif run.url:
            log.info("W&B: %s", run.url)


def summary(row: Row) -> dict[str, float | None]:
    """``best/…``, ``test/…`` and ``efficiency/…`` of a result row."""
    return {
        **{f"best/val/{name}": value for name, value in row.metrics.val.items()},
        **{f"test/{name}": value for name, value in row.metrics.test.items()},
        **{f"efficiency/{name}": value for name, value in row.efficiency.items()},
        "best/epoch": row.best_epoch,
        "efficiency/parameters": row.parameters,
        "efficiency/epochs": row.epochs,
    }


def user_lines(ranks: pd.DataFrame) -> pd.DataFrame:
    """Each test sample's expected rank and its part in HR, NDCG and MRR@10, ties at random.

    Args:
        ranks: what ``ranks.parquet`` holds.

    Returns:
        ``line`` (of ``ranks.parquet``: the same user in every run on the same data, and no raw id
        leaves the machine), ``history_length``, ``rank`` (from 1), ``ties``, ``hr@10``, … ; names
        carry ``sampled_`` as in the file.
    """
    greater, ties = (str(name) for name in ranks.columns[-2:])
    prefix = greater.removesuffix("greater")
    lines = ranks[["history_length"]].assign(**{f"{prefix}rank": ranks[greater] + 1})
    lines[f"{prefix}rank"] += ranks[ties] / 2
    lines[ties] = ranks[ties]
    counts = [torch.tensor(ranks[name].to_numpy(), dtype=torch.int64) for name in (greater, ties)]
    for name in METRICS:
        lines[f"{prefix}{name}@{K}"] = expected_gains(gain_table(name, K), *counts).numpy()
    return lines.rename_axis("line").reset_index()


def by_history(lines: pd.DataFrame) -> pd.DataFrame:
    """Number of samples and means of rank and metrics by history length, ``0-2``, ``3-4``, ….

    Args:
        lines: as from ``user_lines``.
    """
    names = [f"{a}-{b - 1}" for a, b in pairwise(HISTORY_BINS)] + [f"{HISTORY_BINS[-1]}-"]
    bins = pd.cut(lines["history_length"], [*HISTORY_BINS, np.inf], right=False, labels=names)
    groups = lines.drop(columns=["line", "history_length"]).groupby(bins, observed=True)
    table = groups.mean()
    table.insert(0, "samples", groups.size())
    return table.reset_index()
