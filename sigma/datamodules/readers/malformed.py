"""Malformed lines: refused at the first one, or left out, counted and told."""

from pathlib import Path

from sigma.datamodules.interactions import Skipped
from sigma.datamodules.readers.lines import open_raw
from sigma.errors import UserError

_ALWAYS = 10  # lines that may be left out of a file however short it is
_CHUNK = 1 << 24


class LeftOut:
    """The malformed lines of one file.

    Args:
        path: of the file.
        malformed: ``error`` refuses the first one, ``skip`` notes them.

    Attributes:
        numbers: of the lines to leave out, from 1.
    """

    def __init__(self, path: Path, malformed: str) -> None:
        self.path, self.malformed = path, malformed
        self.numbers: set[int] = set()
        self._first: tuple[int, str] | None = None
        self._lines = self._limit = 0

    def add(self, first: int, last: int, reason: str, advice: str) -> None:
        """Note a row that stands on the lines ``first`` to ``last``.

        Raises:
            UserError: lines are not to be left out, or too many of them are malformed.
        """
        reason = " ".join(reason.split())  # what it quotes may go over several lines
        if self.malformed != "skip":
            raise UserError(
                f"{self.path}, line {first}: {reason}; {advice}, or leave such lines out with "
                "dataset.malformed=skip."
            )
        if self._first is None:
            self._first = first, reason
            self._lines = _count_lines(self.path)
            self._limit = max(_ALWAYS, self._lines // 100)
        self.numbers.update(range(first, last + 1))
        # Told at once: in a file of another format every line is malformed, and there are millions.
        if len(self.numbers) > self._limit:
            line, why = self._first
            raise UserError(
                f"{self.path}: more than {self._limit:,} of its {self._lines:,} lines are "
                f"malformed, too many to be accidents (the first is line {line}: {why}); mend the "
                "file, or check that its name and dataset.columns say what it holds."
            )

    def skipped(self) -> Skipped | None:
        """What was left out, or None."""
        if self._first is None:
            return None
        return Skipped(len(self.numbers), self._lines, *self._first)


def _count_lines(path: Path) -> int:
    lines, last = 0, b"\n"
    with open_raw(path, quoted=True) as stream:
        while chunk := stream.read(_CHUNK):
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return lines + (last != b"\n")  # the last line may lack its end
