"""What one part of the storm has tried, and what went wrong; written down as it goes."""

import json
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigma.files import atomic_path
from tests.storm.forks import End

DATA = "data.txt"
SAVED = 5  # examples of one fault that are kept
WRITTEN = 0.5  # seconds between two writings


class SkipError(Exception):
    """A part that this machine cannot do: the reason, as a sentence."""


class Part:
    """One part's time, chance, folder and counts.

    Args:
        name: of the part.
        seconds: the part may take.
        seed: of its chance.
        folder: of its own, removed at the end.
        examples: folder for what went wrong; the data of all runs lies there, too.
    """

    def __init__(self, name: str, seconds: float, seed: int, folder: Path, examples: Path) -> None:
        self.name, self.folder, self.examples = name, folder, examples
        self.rng = random.Random(f"{seed} {name}")
        self.began, self.seconds = time.monotonic(), seconds
        self.parent, self.written = os.getppid(), 0.0
        self.promises: dict[str, str] = {}
        self.tried: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.numbers: dict[str, float] = {}
        self.note: str | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "output.log"
        self.data, self.root = examples / DATA, folder / "root"

    def promise(self, promises: Mapping[str, str]) -> None:
        """What must not happen, and what it is counted among: ``{"rows changed": "runs"}``."""
        self.promises |= promises
        self.tried.update(dict.fromkeys(promises.values(), 0))
        self.faults.update(dict.fromkeys(promises, 0))

    @property
    def left(self) -> float:
        return self.began + self.seconds - time.monotonic()

    def goes_on(self) -> bool:
        """Whether there is time left, or nothing tried yet; and somebody to report to."""
        self.write()
        return (self.left > 0 or not any(self.tried.values())) and os.getppid() == self.parent

    def count(self, what: str, n: int = 1) -> None:
        self.tried[what] += n
        self.write()

    def largest(self, what: str, value: float) -> None:
        """Note the largest of a number."""
        self.numbers[what] = max(value, self.numbers.get(what, value))

    def fault(
        self, what: str, how: str, end: End | None = None, files: Path | None = None, of: int = 1
    ) -> None:
        """Count a fault, and keep the first few as examples.

        Args:
            what: one of the promises.
            how: one line that does it again, where ``{files}`` stands for the example's copy.
            end: of the process it happened to.
            files: folder or file it happened with.
            of: how often at once.
        """
        if what not in self.promises:
            raise KeyError(what)
        self.faults[what] += of
        self.write()
        if self.faults[what] > SAVED:
            return
        place = (
            self.examples
            / f"{self.name}-{'-'.join(re.findall(r'[a-z]+', what))}-{self.faults[what]}"
        )
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if files is not None and files.exists():
            copy = place / files.name
            (shutil.copytree if files.is_dir() else shutil.copy)(files, copy)
            how = how.replace("{files}", str(copy))
        (place / "again.txt").write_text(how + "\n")
        if end is not None:
            (place / "output.txt").write_text(f"{end.output}\nexit code {end.code}\n")

    def content(self) -> dict[str, Any]:
        return {
            "seconds": round(time.monotonic() - self.began, 1),
            "tried": dict(self.tried),
            "faults": {what: [n, self.promises[what]] for what, n in self.faults.items()},
            "numbers": self.numbers,
            "note": self.note,
        }

    def write(self, ended: bool = False) -> None:
        """Put the counts where the storm reads them."""
        if ended or time.monotonic() - self.written > WRITTEN:
            self.written = time.monotonic()
            with atomic_path(self.folder.with_suffix(".json")) as partial:
                partial.write_text(json.dumps(self.content() | {"ended": ended}))
