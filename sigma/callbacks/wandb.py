"""Weights & Biases, such that it can never cost a run: online, offline, or not at all."""

import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch.loggers import WandbLogger as LightningLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from sigma.callbacks.wandb_settings import choose_mode, description, user_settings
from sigma.errors import UserError, excerpt
from sigma.files import atomic_path
from sigma.ranking.metrics import METRICS, expected_gains, gain_table
from sigma.runs.files import CONFIG, RANKS, ROW, WANDB
from sigma.runs.messages import one_line
from sigma.runs.records import WandbRun, read
from sigma.runs.row import Row

log = logging.getLogger(__name__)

FINISH_TIMEOUT = 12.0  # seconds to wait at a run's end for the upload; the files stay anyway
RETRY = 3600.0  # seconds until a server that did not answer is waited for again
STAGING = "WANDB_DATA_DIR"
UNREACHED = "SIGMA_WANDB_UNREACHED"
"""Environment variable: when W&B's server was last waited for in vain. The jobs of a multirun share
a process, or inherit it."""

# Doubling steps that keep to the paper's groups [0, 5), [5, 20) and [20, …).
HISTORY_BINS = {"0-2": 0, "3-4": 3, "5-9": 5, "10-19": 10, "20-49": 20, "50-99": 50, "100-": 100}


def key_problem(error: Exception) -> str | None:
    """What to do where W&B does not accept the key; None if that is not what an error says."""
    from wandb.errors import AuthenticationError  # of a key that cannot be one

    if not isinstance(error, AuthenticationError) and "error 401" not in str(error):
        return None
    if os.environ.get("WANDB_API_KEY"):
        return "the key in WANDB_API_KEY is not accepted; set it to a valid one, or unset it"
    return "the key in the netrc file is not accepted; wandb login --relogin takes a new one"


def unreached() -> bool:
    """Whether a run before has waited for W&B's server in vain, and not long ago."""
    return 0 <= time.time() - float(os.environ.get(UNREACHED, "-inf")) < RETRY


def run_id_of(folder: Path) -> str:
    """The id that the folder knows or W&B is told (``WANDB_RUN_ID``), else a new one."""
    if (folder / WANDB).is_file():
        try:
            return read(folder / WANDB, WandbRun, "W&B gets a new run").id
        except UserError as error:
            log.warning("%s", error)
    # Not from a seeded generator: two runs of one seed are two runs.
    return user_settings().run_id or uuid.uuid4().hex[:8]


def start(folder: Path, run_id: str | None, init_timeout: float, **described: Any) -> Any:
    """A W&B run with the folder's config; offline where an online one cannot be started in time;
    None where W&B is disabled.
    """
    import wandb

    if (mode := choose_mode()) == "disabled":
        return None
    run_id = run_id or run_id_of(folder)
    with atomic_path(folder / WANDB) as part:
        part.write_text(json.dumps({"id": run_id}))
    config = folder / CONFIG
    init = partial(
        wandb.init,
        **described,
        id=run_id,
        resume="allow",
        config=json.loads(config.read_text()) if config.is_file() else {},
        reinit="create_new",  # jobs of a multirun share a process; each has its own run
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=init_timeout,
            finish_timeout=FINISH_TIMEOUT,
            finish_timeout_raises=True,
        ),
    )
    if mode == "online" and unreached():
        log.warning("This run is logged offline, as W&B did not answer an earlier one.")
        mode = "offline"
    begin = time.monotonic()
    try:
        run = init(mode=mode)
    except Exception as error:
        if mode != "online":
            raise
        reason = key_problem(error) or f"it cannot be reached: {excerpt(one_line(error), 300)}"
        log.warning("This run is logged offline, not at W&B: %s.", reason)
        if time.monotonic() - begin >= init_timeout:
            os.environ[UNREACHED] = str(time.time())
        wandb.teardown()  # the service holds on to the id of a start that failed
        run = init(mode="offline")
    os.environ.setdefault(STAGING, run.settings.wandb_dir)  # the home may be read-only
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    return run


class WandbLogger(LightningLogger):
    """Lightning's, with the run's config, one summary, and two tables of the test's ranks.

    A resumed run goes on under its id, which is kept in the run's folder. After the test it is
    closed: each job of a multirun is a run of its own. What W&B raises ends W&B, not the run.

    Args:
        save_dir: the run's folder.
        id: of a W&B run that goes on here; None for the one the folder knows, or a new one.
        init_timeout: seconds an online start may take before the run goes offline.
        usual: of ``wandb.init``, where neither ``typed`` nor the user's settings of W&B say it.
        **typed: of ``wandb.init``: project, name, group, job_type, tags, entity, ….
    """

    def __init__(
        self,
        save_dir: str,
        id: str | None = None,
        init_timeout: float = 25.0,
        usual: Mapping[str, Any] | None = None,
        **typed: Any,
    ) -> None:
        super().__init__(save_dir=save_dir, id=id, **typed)
        os.environ.setdefault("WANDB_SILENT", "true")  # it would repeat what the run says itself
        # Its reports of itself hold up the end of the process where the server is silent.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self.folder = Path(save_dir)
        self.id, self.init_timeout = id, init_timeout
        self.typed, self.usual = typed, {"dir": save_dir} | dict(usual or {})
        self.run: Any = None
        self.closed = False
        self.tested: dict[str, float] = {}

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What W&B raises in here ends W&B."""
        try:
            yield
        except Exception as error:
            log.warning("W&B is off for the rest of this run: %s", one_line(error))
            self.close(1)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at first use; None once it is closed."""
        if self.run is None and not self.closed:
            with self.guarded():
                described = description(self.typed, self.usual)
                self.run = start(self.folder, self.id, self.init_timeout, **described)
                self.closed = self.run is None
        return self.run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.tested |= {n[5:]: v for n, v in metrics.items() if n.startswith("test/")}
        if (run := self.experiment) is None:
            return
        with self.guarded():
            if self.tested:  # one number per run, not a curve
                run.summary.update(metrics)
            else:
                run.log({**metrics, "step": step})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close after the test or a failure; Lightning also calls this between fit and test."""
        if self.run is None or (status == "success" and not self.tested):
            return
        with self.guarded():
            if status == "success" and (self.folder / ROW).is_file():
                row = Row.read(self.folder / ROW)
                if row.metrics.test == self.tested:  # else it is of an earlier end of the run
                    self.log_results(row)
        self.close(0 if status == "success" else 1)

    def log_results(self, row: Row) -> None:
        """Add the row's numbers and two tables of ranks to the run."""
        from wandb import Table

        val = {f"best/val/{name}": value for name, value in row.metrics.val.items()}
        measured = {f"efficiency/{name}": value for name, value in row.efficiency.items()}
        counts = {"efficiency/parameters": row.parameters, "efficiency/epochs": row.epochs}
        self.run.summary.update({**val, **measured, **counts, "best/epoch": row.best_epoch})
        lines = user_lines(pd.read_parquet(self.folder / RANKS))
        sample = lines.iloc[:: len(lines) // 10_000 + 1]  # W&B shows no more of a table at once
        tables = {"ranks/users_sample": sample, "ranks/by_history": by_history(lines)}
        self.run.log({name: Table(dataframe=table) for name, table in tables.items()})

    def close(self, exit_code: int) -> None:
        """End the run, and say where it is; nothing is logged from here on."""
        self.closed, run, self.run = True, self.run, None
        if run is None:
            return
        kind = "offline-run" if run.settings.mode == "offline" else None
        folder = run.settings.wandb_dir
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            log.warning("Not all of this run has reached W&B: %s", one_line(error))
            kind = kind or "run"
            if isinstance(error, TimeoutError):
                os.environ[UNREACHED] = str(time.time())
        if os.environ.get(STAGING) == folder:  # not the user's
            del os.environ[STAGING]
        if kind:
            folders = sorted(Path(folder).glob(f"{kind}-*-{run.id}"))
            log.info("Upload to W&B: wandb sync %s", " ".join(map(str, folders)))
        elif run.url:
            log.info("W&B: %s", run.url)


def user_lines(ranks: pd.DataFrame) -> pd.DataFrame:
    """Of ``ranks.parquet``, but no raw id leaves the machine: ``line`` in it, ``history_length``,
    and of each ranking, such as ``unseen_``: expected ``rank`` (from 1), ``ties``, and the part in
    ``hr@10``, ``ndcg@10`` and ``mrr@10``.
    """
    lines = ranks[["history_length"]].copy()
    for prefix in [n.removesuffix("ties") for n in map(str, ranks) if n.endswith("ties")]:
        greater, ties = ranks[f"{prefix}greater"], ranks[f"{prefix}ties"]
        lines[f"{prefix}rank"] = greater + 1 + ties / 2
        lines[f"{prefix}ties"] = ties
        counts = [torch.tensor(column.to_numpy(), dtype=torch.int64) for column in (greater, ties)]
        for name in METRICS:
            lines[f"{prefix}{name}@10"] = expected_gains(gain_table(name, 10), *counts).numpy()
    return lines.rename_axis("line").reset_index()


def by_history(lines: pd.DataFrame) -> pd.DataFrame:
    """Number of samples and means of what ``user_lines`` gives, by history length."""
    edges = [*HISTORY_BINS.values(), float("inf")]
    bins = pd.cut(lines["history_length"], edges, right=False, labels=list(HISTORY_BINS))
    groups = lines.drop(columns=["line", "history_length"]).groupby(bins, observed=True)
    table = groups.mean()
    table.insert(0, "samples", groups.size())
    return table.reset_index()
