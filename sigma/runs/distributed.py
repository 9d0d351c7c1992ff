"""A job of a multirun that needs several processes runs in processes of its own.

Lightning starts the other ranks by repeating the command line, which in a multirun is the whole
sweep, leaves ranks and process group behind for the next job, and kills the program when a rank
fails. So such a job is launched as the single run it is, and its score read from its row.
"""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sigma.errors import RunTakenError, UserError
from sigma.runs.command import flags, quoted
from sigma.runs.files import ROW, SCRIPT


def needs_launch(cfg: DictConfig) -> bool:
    """Whether this is a job of a multirun that may start further processes."""
    several = cfg.trainer.devices != 1 or cfg.trainer.get("num_nodes", 1) != 1
    return several and HydraConfig.get().mode == RunMode.MULTIRUN


def command(cfg: DictConfig) -> list[str]:
    """This job as a command line of its own, in the same folder, and the same run to W&B."""
    hydra = HydraConfig.get()
    place = ("hydra.mode=", "hydra.run.dir=")
    # The run's own name in a multirun, which a single run does not have.
    wandb_id = OmegaConf.select(cfg, "logger.wandb.id")
    return [
        *(sys.executable, str(SCRIPT), *flags(), *hydra.overrides.task),
        *(o for o in hydra.overrides.hydra if not o.startswith(place)),
        *([] if wandb_id is None else [f"logger.wandb.id={quoted(wandb_id)}"]),
        "resume=true",  # as every job of a multirun goes on
        f"hydra.run.dir={quoted(hydra.runtime.output_dir)}",
        f"hydra.sweep.dir={quoted(str(Path(hydra.sweep.dir).absolute()))}",
        f"hydra.job.num={hydra.job.num}",
    ]


def run_command(words: list[str], quiet: bool = False) -> tuple[int, str]:
    """Run a process to its end; its exit status, and the sentence of its error.

    A SIGTERM stops the process, too, instead of leaving it behind without a parent.

    Args:
        quiet: show nothing of it.
    """
    sentence = ""
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL if quiet else None}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, **streams) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            for line in process.stderr or ():
                if not quiet:
                    sys.stderr.write(line)
                if line.startswith("error: "):
                    sentence = line.removeprefix("error: ").strip()
            process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    return process.returncode, sentence


def launch(cfg: DictConfig) -> float:
    """The job's best validation score (NaN in a development run).

    Raises:
        RunTakenError: another process is at it.
        SIGTERMException: it was stopped, and the sweep ends with it.
        UserError: it failed; its own sentence.
    """
    row_path = Path(HydraConfig.get().runtime.output_dir) / ROW
    status, sentence = run_command(command(cfg))
    # By its own word, or before it could say one.
    if status in (128 + signal.SIGTERM, -signal.SIGTERM):
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        raise SIGTERMException
    if status != 0:
        taken = status == RunTakenError.exit_code
        reason = sentence or "its processes ended without a message"
        raise (RunTakenError if taken else UserError)(reason)
    from sigma.runs.row import Row

    if not row_path.is_file():
        return float("nan")
    return Row.read(row_path).score(cfg.evaluation.monitor)
