"""The console: log lines as plain sentences that do not tear a progress bar."""

import logging
import sys
from typing import Any, TextIO


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
