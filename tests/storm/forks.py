"""Children of a process that has loaded everything: a start costs half a second, not six.

The process that forks never computes: it has no threads that a child would miss.
"""

import gc
import importlib
import os
import resource
import runpy
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from sigma.environment import load_lightning
from sigma.runs.files import SCRIPT
from sigma.runs.messages import explained

Action = Callable[[], object]
LOADED = (
    *("sigma.build", "sigma.models", "sigma.callbacks", "sigma.datamodules.sets.custom"),
    *("sigma.models.sigma", "sigma.models.gru4rec", "sigma.models.sasrec", "sigma.recommend"),
    *(
        "experiments.collect",
        "pyarrow.parquet",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
    ),
)


def preload() -> None:
    """Load what a run, a recommendation and a collection need."""
    load_lightning()
    for name in LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children share these pages until they write to them


class End(NamedTuple):
    """How a child ended.

    Attributes:
        code: as in ``subprocess``: below 0 a signal.
        output: stdout and stderr together.
        seconds: it lived.
        peak: bytes of memory at most.
        killed: by us, at the moment that was asked for; late: because it took too long.
    """

    code: int
    output: str
    seconds: float
    peak: int
    killed: bool
    late: bool

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.output

    @property
    def refused(self) -> bool:
        """One sentence and no traceback."""
        return self.code == 1 and not self.traceback and "error: " in self.output


def train(*arguments: str) -> Action:
    """``python train.py *arguments``."""

    def action() -> None:
        sys.argv = ["train.py", *arguments]
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return action


def recommend(*arguments: str) -> Action:
    """``python -m sigma.recommend *arguments``."""

    def action() -> None:
        from sigma.recommend import main

        main(arguments)

    return action


def collect(*arguments: str) -> Action:
    """``python -m experiments.collect *arguments``."""

    def action() -> None:
        from experiments.collect import main

        with explained():
            main(arguments)

    return action


class Child:
    """A forked process that does one thing, in a session of its own.

    Args:
        action: what it does; its end is the process's.
        log: file of its output.
        env: set on top of the environment.
    """

    def __init__(self, action: Action, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log, self.began = log, time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.pid = os.fork()
        if self.pid == 0:
            become(action, output, env or {})
        os.close(output)
        self.handle = os.pidfd_open(self.pid)

    def ended(self, seconds: float) -> bool:
        """Whether it ends within this time."""
        poll = select.poll()
        poll.register(self.handle, select.POLLIN)
        return bool(poll.poll(max(0, int(seconds * 1000))))

    def send(self, number: int, group: bool = False) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, limit: float, killed: bool = False, group: bool = True) -> End:
        """Its end, forced after ``limit`` seconds; with ``group`` that of its own children, too."""
        late = False
        try:
            late = not self.ended(limit)
        finally:
            if late or group or not self.ended(0):
                self.send(signal.SIGKILL, group=True)
            _, status, usage = os.wait4(self.pid, 0)
            os.close(self.handle)
        output = self.log.read_text(errors="replace")
        code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - self.began
        return End(code, output, seconds, usage.ru_maxrss * 1024, killed, late)


def become(action: Action, output: int, env: Mapping[str, str]) -> NoReturn:
    """Be that process, to its end; ``os._exit`` keeps the parent's clean-up from running here."""
    code = 70
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, closefd=False) for n in (1, 2))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(
                number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler
            )
        os.environ.update(env)
        action()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run(
    action: Action,
    log: Path,
    limit: float = 60.0,
    env: Mapping[str, str] | None = None,
    kill_after: float | None = None,
    number: int = signal.SIGKILL,
) -> End:
    """Do it in a child; ``kill_after`` so many seconds it gets the signal."""
    child = Child(action, log, env)
    killed = False
    try:
        if kill_after is not None and not child.ended(kill_after):
            killed = True
            child.send(number)
    except BaseException:
        child.send(signal.SIGKILL, group=True)
        raise
    return child.wait(limit, killed)


def limit_memory(size: int) -> None:
    """Of this process from here on: ``size`` bytes on top of what it has mapped."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
