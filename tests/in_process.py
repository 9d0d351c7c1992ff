"""Calls ``train.py``'s own entry in this process: a second per run instead of six."""

import logging
import runpy
import sys

import pytest

from tests.runs.front_door import ROOT, arguments

__all__ = ["arguments"]


def call(monkeypatch: pytest.MonkeyPatch, *command: str) -> int:
    """Exit code of ``python train.py *command``."""
    # Set for the life of a process; each call here stands for a process.
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("SIGMA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["train.py", *command])
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as stopped:
        return int(stopped.code or 0)
    finally:
        # Hydra leaves the run's own log open, in a folder that need not outlive the call; W&B
        # writes to it, too.
        for logger in (logging.getLogger(), logging.getLogger("wandb")):
            for handler in logger.handlers[:]:
                if isinstance(handler, logging.FileHandler):
                    logger.removeHandler(handler)
                    handler.close()
    return 0
