"""The console: log lines as plain sentences that do not tear a progress bar."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log


class ConsoleHandler(logging.StreamHandler):
    """Writes to whatever ``sys.stdout`` is now: while a bar is drawn, rich puts lines above it.

    Warnings and errors carry their level; the log file carries times and names as well.
    """

    def __init__(self, stream: Any = None) -> None:  # Hydra's own configuration gives one
        super().__init__(sys.stdout)

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, value: Any) -> None:
        """Set once by logging; the property decides."""

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return level + super().format(record)


@contextmanager
def before_logging() -> Iterator[None]:
    """As before Hydra set up the job's logging, which it does again at the end.

    Lightning sets up loggers of its own when it is loaded, in one way where the root has handlers
    and in another where it has none; ``hydra.job_logging`` is to have the last word on them.
    """
    root, hydra = logging.getLogger(), HydraConfig.get()
    handlers, root.handlers = root.handlers, []
    try:
        yield
    finally:
        root.handlers = handlers
        configure_log(hydra.job_logging, hydra.verbose)  # type: ignore[arg-type]
