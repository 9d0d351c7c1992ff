"""Single runs killed at random moments and resumed until they end as if nobody had killed them."""

import os
import shutil
import signal
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from sigma.runs.files import COMMAND, LAST, LOCK, ROW
from tests.storm.forks import Action, Child, End, run, train
from tests.storm.part import Part
from tests.storm.runs import LIMIT, MODELS, leftovers, reference, same_epochs, same_row, typed

PROMISES = {
    "runs lost": "runs",
    "rows changed": "runs",
    "metrics.csv changed": "runs",
    "half written files left": "runs",
    "tracebacks": "starts",
    "second starts that were not refused": "second starts",
}
EPOCHS = "trainer.max_epochs=4"
STARTS = 25  # of one run; the last ones are left alone
OPERATIONS = 112  # of a whole run on files of its folder
WRITING = ("open", "os.rename", "os.remove", "os.mkdir")  # Python's audit events


def killing_itself(action: Action, folder: Path, operation: int) -> Action:
    """The action, ended by SIGKILL just before its n-th operation on a file of the folder."""
    place, seen = str(folder), [0]

    def watch(event: str, values: tuple[object, ...]) -> None:
        if event in WRITING and str(values[0]).startswith(place):
            seen[0] += 1
            if seen[0] == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    def watched() -> object:
        sys.addaudithook(watch)
        return action()

    return watched


class Run:
    """One run: a folder that is started, killed and resumed until it has a row."""

    def __init__(self, part: Part, command: list[str], folder: Path, seconds: float) -> None:
        self.part, self.folder, self.seconds = part, folder, seconds
        self.command = [*command, f"hydra.run.dir={folder}"]
        self.refused = False

    def action(self) -> Action:
        """A start as somebody types it who finds the folder as it is."""
        known = any((self.folder / name).is_file() for name in (COMMAND, ".hydra/overrides.yaml"))
        if known and not self.refused and self.part.rng.random() < 0.5:
            return train(f"resume={self.folder}")
        return train(*self.command, "resume=true")

    def start(self, killed: bool) -> End:
        """A start that is killed by the clock or at a file, or one that is left alone."""
        rng, action = self.part.rng, self.action()
        self.part.count("starts")
        if not killed:
            return run(action, self.part.log, LIMIT)
        if rng.random() < 0.4:
            end = run(
                killing_itself(action, self.folder, rng.randint(1, OPERATIONS)),
                self.part.log,
                LIMIT,
            )
            return end._replace(killed=end.code == -signal.SIGKILL and not end.late)
        number = signal.SIGTERM if rng.random() < 0.15 else signal.SIGKILL
        return run(action, self.part.log, LIMIT, None, rng.uniform(0, self.seconds), number)

    def second_start(self) -> End | None:
        """Start beside a start that is held still, which is then killed; how the second ends.

        None where the first did not have the folder yet, or no more.
        """
        first = Child(self.action(), self.folder.with_suffix(".first.log"))
        try:
            if first.ended(self.part.rng.uniform(0.2, 0.9) * self.seconds):
                return None
            first.send(signal.SIGSTOP)
            if not self.taken():
                return None
            return run(train(*self.command, "resume=true"), self.part.log, LIMIT)
        finally:
            first.send(signal.SIGKILL, group=True)
            first.wait(LIMIT)

    def taken(self) -> bool:
        """Whether a process has the folder."""
        if not self.folder.is_dir():
            return False
        try:
            with FileLock(self.folder / LOCK, timeout=0):
                return False
        except Timeout:
            return True

    def drive(self) -> str | None:
        """To its end; in words what went wrong on the way."""
        for n in range(STARTS):
            if self.part.rng.random() < 0.06:
                second = self.second_start()
                if second is not None:
                    self.part.count("second starts")
                    if second.code != 75:
                        how = f"two of: python train.py {' '.join(self.command)} resume=true"
                        self.part.fault("second starts that were not refused", how, second)
            end = self.start(killed=n < STARTS - 5)
            self.part.count("kills", int(end.killed))
            if end.traceback:
                self.part.fault("tracebacks", "python train.py resume={files}", end, self.folder)
            if (self.folder / ROW).is_file() and end.code == 0:
                return None
            if end.refused and not self.refused and not (self.folder / LAST).is_file():
                self.refused = True  # killed before it was written what was typed; nothing is lost
                continue
            if not end.killed and end.code != 0:
                return f"a start ended with {end.code}: {end.output[-300:]}"
            if end.late:
                return "a start did not end"
        return "it never ended"


def storm(part: Part) -> None:
    lasting, references = {}, {}
    for model in MODELS:
        references[model] = part.folder / f"reference-{model}"
        lasting[model] = reference(part, model, references[model], EPOCHS).seconds
    while part.goes_on():
        model = part.rng.choice(list(MODELS))
        folder, expected = part.folder / "run", references[model]
        shutil.rmtree(folder, ignore_errors=True)
        one = Run(part, typed(part, model, EPOCHS), folder, lasting[model])
        problem = one.drive()
        part.count("runs")
        how = f"python -m tests.storm --only kills, a run of {model} that was killed: {problem}"
        if problem is not None:
            part.fault("runs lost", how, None, folder)
            continue
        if not same_row(folder, expected):
            part.fault("rows changed", how, None, folder)
        if not same_epochs(folder, expected):
            part.fault("metrics.csv changed", how, None, folder)
        if left := leftovers(folder):
            part.fault("half written files left", f"{how}; {left}", None, folder)
