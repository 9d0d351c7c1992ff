"""A disk that fills up while a run is at it: one sentence, nothing earned lost, and it goes on."""

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

from sigma.runs.files import BEST, LAST, ROW
from tests.storm.forks import run
from tests.storm.kills import Run
from tests.storm.part import Part, SkipError
from tests.storm.runs import LIMIT, copy, reference, same_row, typed

PROMISES = {
    "tracebacks": "starts on a full disk",
    "files that are not whole": "starts on a full disk",
    "runs lost": "starts on a full disk",
    "rows changed": "starts on a full disk",
}
SIZE = 8 << 20  # bytes of the disk
NEEDED = 3 << 20  # of a run, its checkpoints twice
EPOCHS = "trainer.max_epochs=3"


def broken(folder: Path) -> list[str]:
    """Files of a run that are there and not whole."""
    names = []
    for path in folder.glob("*.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            names.append(path.name)
    for name in (LAST, BEST):
        path = folder / name
        if path.is_file() and (not zipfile.is_zipfile(path) or zipfile.ZipFile(path).testzip()):
            names.append(name)
    return names


def fill(disk: Path, free: int) -> Path:
    """Leave so many bytes free; the file that takes the rest."""
    ballast = disk / "ballast"
    space = os.statvfs(disk)
    size = max(0, space.f_bavail * space.f_frsize - free)
    with ballast.open("wb") as file:
        for _ in range(size // 4096):
            file.write(bytes(4096))
    return ballast


def one(
    part: Part, disk: Path, stopped: Path, expected: Path, command: list[str], seconds: float
) -> None:
    """Start or go on with little room, and go on when there is some again."""
    folder, free = disk / "run", part.rng.randrange(part.rng.choice([NEEDED, NEEDED // 20]))
    began = part.rng.random() < 0.5
    if began:
        copy(stopped, folder)
    ballast = fill(disk, free)
    start = Run(part, command, folder, seconds)
    end = run(start.action(), part.log, LIMIT)
    part.count("starts on a full disk")
    part.count("of them refused", int(end.refused))
    how = f"python train.py {' '.join(start.command)}  # {free:,} bytes free"
    if end.traceback or (end.code and not end.refused):
        part.fault("tracebacks", how, end, folder)
    if names := broken(folder):
        part.fault("files that are not whole", f"{how}: {names}", end, folder)
    if began and not (folder / LAST).is_file():
        part.fault("files that are not whole", f"{how}: {LAST} is gone", end, folder)
    ballast.unlink()
    end = run(start.action(), part.log, LIMIT)
    if end.refused and not (folder / LAST).is_file():  # it never began, so it is started anew
        start.refused = True
        end = run(start.action(), part.log, LIMIT)
    if end.code or not (folder / ROW).is_file():
        part.fault("runs lost", how, end, folder)
    elif not same_row(folder, expected):
        part.fault("rows changed", how, end, folder)


def storm(part: Part) -> None:
    disk = part.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount).returncode:
        raise SkipError("only root may mount a small disk")
    try:
        expected, stopped = part.folder / "reference", part.folder / "stopped"
        seconds = reference(part, "gru4rec", expected, EPOCHS).seconds
        command = typed(part, "gru4rec", EPOCHS)
        half = Run(part, command, stopped, seconds)
        while not (stopped / LAST).is_file():
            run(half.action(), part.log, LIMIT, None, part.rng.uniform(0.3, 0.9) * seconds)
        while part.goes_on():
            if (stopped / ROW).is_file():
                (stopped / ROW).unlink()
            one(part, disk, stopped, expected, command, seconds)
            for path in disk.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
