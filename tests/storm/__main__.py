"""Storm the project: ``python -m tests.storm --minutes 20``.

Counts are written to ``--out`` as they come, and what went wrong to ``--keep``, each with a line
that does it again. Ctrl-C prints the table so far.
"""

import argparse
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import rich
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sigma.files import atomic_path
from tests.runs.front_door import write_sequences
from tests.storm import report
from tests.storm.part import DATA, Part, SkipError

# Part, a module of this package -> its share of the time.
SHARES = {
    **{"kills": 23.0, "sweeps": 8.0, "checkpoints": 8.0, "library": 2.0, "cache": 2.0},
    **{"files": 5.0, "folders": 6.0, "disk": 2.0, "wandb": 4.0},
}
GRACE = 600.0  # seconds a part may take beyond its time, to end what it is at


class Worker(NamedTuple):
    """A part under way, in a process of its own."""

    name: str
    pid: int
    seconds: float
    began: float


def work(name: str, seconds: float, seed: int, folder: Path, examples: Path) -> None:
    """Do one part and end this process; what breaks the part is in its note."""
    os.setpgid(0, 0)  # Ctrl-C is the storm's, which ends this by a SIGTERM
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    part = Part(name, seconds, seed, folder / name, examples)
    try:
        module = importlib.import_module(f"tests.storm.{name}")
        part.promise(module.PROMISES)
        module.storm(part)
    except SkipError as error:
        part.note = f"left out: {error}"
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        reason = "stopped" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        part.note = f"ended early: {reason}"
        if not isinstance(error, SystemExit):
            examples.mkdir(parents=True, exist_ok=True)
            (examples / f"{name}-ended-early.txt").write_text(traceback.format_exc())
    finally:
        with suppress(BaseException):
            part.write(ended=True)
        os._exit(0)


class Storm:
    """All parts, a few at a time."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.results = report.heading(options.seed, options.minutes) | {"parts": {}}
        total = sum(SHARES[name] for name in options.only)
        minutes = {n: options.minutes * options.jobs * SHARES[n] / total for n in options.only}
        self.seconds = {n: 60 * min(options.minutes, m) for n, m in minutes.items()}
        self.workers: list[Worker] = []

    def start(self, name: str) -> None:
        pid = os.fork()
        if pid == 0:
            options = self.options
            work(name, self.seconds[name], options.seed, self.folder, options.keep)
        self.workers.append(Worker(name, pid, self.seconds[name], time.monotonic()))

    def look(self) -> None:
        """Read the counts and see whose worker has ended, or must."""
        for worker in list(self.workers):
            over = time.monotonic() - worker.began - worker.seconds
            if over > GRACE:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL if over > GRACE + 20 else signal.SIGTERM)
            ended, _ = os.waitpid(worker.pid, os.WNOHANG)
            self.read(worker.name, bool(ended))
            if ended:
                self.workers.remove(worker)
        with atomic_path(self.options.out) as partial:
            partial.write_text(json.dumps(self.results, indent=1))

    def read(self, name: str, ended: bool) -> None:
        path = self.folder / f"{name}.json"
        content: dict[str, Any] = {
            "seconds": 0,
            "tried": {},
            "faults": {},
            "numbers": {},
            "note": None,
        }
        if path.is_file():
            content = json.loads(path.read_text())
        if ended and not content.pop("ended", False):
            content["note"] = content["note"] or "ended early: its process was killed"
        self.results["parts"][name] = content

    def end(self) -> None:
        """Stop what is under way."""
        began = time.monotonic()
        while self.workers:
            # Again, as Python may lose an exit that a signal asks for at a bad moment.
            number = signal.SIGTERM if time.monotonic() - began < 15 else signal.SIGKILL
            for worker in self.workers:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, number)
            time.sleep(1)
            self.look()

    def run(self) -> None:
        waiting = list(self.options.only)
        columns = (TextColumn("{task.description:<60}"), BarColumn(), TimeElapsedColumn())
        # Without a thread of its own, which a fork would lose in the middle of something.
        bar = Progress(
            *columns,
            TimeRemainingColumn(),
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not rich.get_console().is_terminal,
        )
        task = bar.add_task("", total=sum(self.seconds.values()))
        with bar:
            while waiting or self.workers:
                while waiting and len(self.workers) < self.options.jobs:
                    self.start(waiting.pop(0))
                time.sleep(0.3)
                self.look()
                bar.update(task, description=self.doing(), completed=self.done(waiting))
                bar.refresh()

    def doing(self) -> str:
        """What is under way, in a few words."""
        words = []
        for worker in self.workers:
            part = self.results["parts"][worker.name]
            tried = next(iter(part["tried"].items()), None)
            faults = sum(times for times, _ in part["faults"].values())
            if tried is not None:
                words.append(f"{worker.name}: {tried[1]:,} {tried[0]}, {faults} faults")
        return "; ".join(words)

    def done(self, waiting: Sequence[str]) -> float:
        busy = {w.name: min(w.seconds, time.monotonic() - w.began) for w in self.workers}
        return sum(
            busy.get(name, seconds) for name, seconds in self.seconds.items() if name not in waiting
        )


def show(results: dict[str, Any]) -> None:
    table = Table(title=report.title(results))
    for name, side in zip(report.HEAD, ("left", "left", "right", "right"), strict=True):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for line in report.lines(results):
        table.add_row(*line)
    rich.print(table)


def names(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := [part for part in parts if part not in SHARES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(SHARES)}")
    return parts


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.storm", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--only", type=names, default=list(SHARES), help=",".join(SHARES))
    parser.add_argument("--jobs", type=int, default=1, help="parts at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("storm.json"), help="counts, as JSON")
    parser.add_argument("--keep", type=Path, default=Path("storm-failures"), help="what went wrong")
    parser.add_argument(
        "--doc", type=Path, metavar="JSON", help="put its table into the docs, only"
    )
    options = parser.parse_args()
    if options.doc is not None:
        report.write_page(options.doc)
        return
    options.keep = options.keep.absolute()
    options.keep.mkdir(parents=True, exist_ok=True)
    write_sequences(options.keep / DATA)
    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    storm = Storm(options, folder)
    try:
        from tests.storm.forks import preload

        preload()
        storm.run()
    except KeyboardInterrupt:
        pass
    finally:
        storm.end()
        shutil.rmtree(folder, ignore_errors=True)
        if [path.name for path in options.keep.iterdir()] == [DATA]:
            shutil.rmtree(options.keep)
    show(storm.results)
    gc.unfreeze()  # else extensions complain of leaks


if __name__ == "__main__":
    main()
