"""Sweeps killed and started again, by both launchers: each run once, and none of them changed."""

import importlib.util
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sigma.runs.files import ROW
from tests.storm.forks import Child, run, train
from tests.storm.part import Part
from tests.storm.runs import LIMIT, leftovers, same_row, typed

PROMISES = {
    "runs lost": "runs",
    "runs done twice or under another name": "runs",
    "rows changed": "runs",
    "finished rows written anew": "runs",
    "half written files left": "runs",
    "tracebacks": "starts",
}
SEEDS = 3
STARTS = 12
PARALLEL = ("hydra/launcher=parallel", "hydra.launcher.n_jobs=2")
SLOW = 8.0  # the parallel launcher's processes load PyTorch anew: times longer than forked ones


def command(part: Part, folder: Path, *overrides: str) -> list[str]:
    seeds = ",".join(str(seed) for seed in range(1, SEEDS + 1))
    sweep = (f"seed={seeds}", f"hydra.sweep.dir={folder}", "trainer.max_epochs=2")
    return ["-m", *typed(part, "sasrec", *sweep, *overrides)]


def rows(folder: Path) -> dict[str, bytes]:
    """The finished runs of a sweep by the names of their folders."""
    return {path.parent.name: path.read_bytes() for path in folder.glob(f"*/{ROW}")}


@contextmanager
def beside(part: Part, typed: list[str], starts: bool) -> Iterator[None]:
    """A second start of the same sweep at the same time, or none."""
    if not starts:
        yield
        return
    child = Child(train(*typed), part.folder / "beside.log")
    try:
        yield
    finally:
        child.send(signal.SIGKILL, group=True)
        child.wait(LIMIT)


def drive(part: Part, command: list[str], folder: Path, seconds: float) -> list[str]:
    """Start, kill and start again until every run has its row; what went wrong, in words."""
    problems: list[str] = []
    done: dict[str, bytes] = {}
    for n in range(STARTS):
        rng, last = part.rng, n >= STARTS - 2
        double = not last and rng.random() < 0.25
        part.count("double starts", int(double))
        after = None if last else rng.uniform(0.1, 1.0) * seconds
        with beside(part, command, double):
            end = run(train(*command), part.log, 8 * LIMIT, None, after)
        part.count("starts")
        part.count("kills", int(end.killed))
        if end.traceback and not end.killed:
            part.fault("tracebacks", "python train.py " + " ".join(command), end, folder)
        now = rows(folder)
        changed = [name for name, content in done.items() if now.get(name) != content]
        if changed:
            part.fault("finished rows written anew", f"killed sweep: {changed}", end, folder)
        done = now
        if len(done) >= SEEDS and not double and not end.killed:
            break
        if end.late:
            problems.append("a start did not end")
    if len(done) < SEEDS:
        problems.append(f"{len(done)} of {SEEDS} runs have a row: {end.output[-300:]}")
    return problems


def storm(part: Part) -> None:
    expected, folder = part.folder / "reference", part.folder / "sweep"
    first = run(train(*command(part, expected)), part.log, 20 * LIMIT)
    if first.code:
        raise RuntimeError(f"an undisturbed sweep failed: {first.output[-500:]}")
    joblib = importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is not None
    if not joblib:
        part.note = "without the parallel launcher, which is not installed"
    n = 0
    while part.goes_on():
        n += 1
        parallel = joblib and n % 4 == 2
        words = command(part, folder, *(PARALLEL if parallel else ()))
        shutil.rmtree(folder, ignore_errors=True)
        part.count("sweeps")
        part.count("of them parallel", int(parallel))
        problems = drive(part, words, folder, first.seconds * (SLOW if parallel else 1.0))
        how = f"python train.py {' '.join(words)}, killed: {'; '.join(problems)}"
        part.count("runs", SEEDS)
        if problems:
            part.fault("runs lost", how, None, folder)
            continue
        names = {path.name for path in folder.iterdir() if path.is_dir()}
        if names != set(rows(expected)):
            part.fault("runs done twice or under another name", how, None, folder)
            continue
        for name in sorted(names):
            if not same_row(folder / name, expected / name):
                part.fault("rows changed", how, None, folder / name)
        if left := leftovers(folder):
            part.fault("half written files left", f"{how}; {left}", None, folder)
