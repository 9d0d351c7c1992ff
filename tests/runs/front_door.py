"""Runs ``train.py`` as a user does, on small data made here."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sigma.runs.files import ROW

ROOT = Path(__file__).parents[2]
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
Logged = pytest.LogCaptureFixture
# Sizes at which an epoch takes a moment.
SMALL = [
    "model.hidden_size=8",
    "model.mamba.state_size=4",
    "dataset=custom",
    "dataset.batch_size=64",
    "dataset.max_length=12",
    "logger=csv",
]


def write_sequences(path: Path, users: int = 120, items: int = 40, seed: int = 0) -> Path:
    """One-user-a-line text in which an item is mostly followed by the next one."""
    draw = random.Random(seed)
    lines = []
    for user in range(1, users + 1):
        item = draw.randrange(items)
        history = []
        for _ in range(draw.randrange(6, 25)):
            history.append(item + 1)
            item = (item + 1) % items if draw.random() < 0.7 else draw.randrange(items)
        lines.append(" ".join(map(str, [user, *history])))
    path.write_text("\n".join(lines) + "\n")
    return path


def row(folder: Path) -> dict[str, Any]:
    return json.loads((folder / ROW).read_text())


def arguments(folder: Path, data: Path, *overrides: str) -> list[str]:
    """A small run's command line."""
    return [
        *SMALL,
        f"dataset.path={data}",
        f"dataset.root={data.parent / 'root'}",
        f"hydra.run.dir={folder}",
        *overrides,
    ]


def command(folder: Path, data: Path, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *arguments(folder, data, *overrides)]


def multirun(folder: Path, data: Path, *overrides: str) -> list[str]:
    """The command line of a sweep in ``folder``."""
    python, script, *typed = command(folder / "unused", data, *overrides)
    return [python, script, "-m", *typed, f"hydra.sweep.dir={folder}"]


def environment() -> dict[str, str]:
    """Offline, one thread: what runs beside these tests must not move them."""
    return os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def run(*words: object, expect: int = 0, env: dict[str, str] | None = None) -> str:
    """Output of a program that must end with ``expect``."""
    options: dict[str, Any] = {"cwd": ROOT, "env": env or environment(), "text": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "timeout": 240}
    done = subprocess.run(list(map(str, words)), **options)
    assert done.returncode == expect, done.stdout
    return done.stdout
