"""Runs ``train.py`` as a user does, on small data made here."""

import os
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
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


def command(folder: Path, data: Path, *overrides: str) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "train.py"),
        *SMALL,
        f"dataset.path={data}",
        f"dataset.root={data.parent / 'root'}",
        f"hydra.run.dir={folder}",
        *overrides,
    ]


def environment() -> dict[str, str]:
    """Offline, one thread: what runs beside these tests must not move them."""
    return os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def run(*arguments: object, expect: int = 0) -> str:
    """Output of a run that must end with ``expect``."""
    done = subprocess.run(
        list(map(str, arguments)), cwd=ROOT, env=environment(), text=True, timeout=240,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout
    return done.stdout
