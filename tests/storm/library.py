"""The compiled kernels, damaged: built again or done without, never run."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import torch

from tests.storm.damage import damages
from tests.storm.forks import End, run
from tests.storm.part import Part, SkipError
from tests.storm.runs import copy

PROMISES = {
    "starts ended by a signal": "damaged libraries",
    "tracebacks": "damaged libraries",
    "other results without a word": "damaged libraries",
}
LIMIT = 180.0
# Compiling the same once more takes seconds, so what a compiler has written is kept.
COMPILER = """#!/bin/sh
kept={folder}/compiled
while [ "$#" -gt 0 ]; do
  case "$1" in -o) out="$2"; shift;; -c) step=-c; words="$words $1";; *) words="$words $1";; esac
  shift
done
[ -f "$kept$step" ] || {cc} $words -o "$kept$step" || exit 1
cp "$kept$step" "$out"
"""


def compute() -> None:
    """Print a digest of a small model's states and gradients, and how they were computed."""
    from sigma.ops import choose_backend
    from tests.tasks import batch, inputs, small_sigma

    model, data = small_sigma(), inputs(batch())
    states = model(data.items, data.rows, data.places)
    states.square().sum().backward()
    values = [states.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    rounded = [(value * 1e8).round().to(torch.int64).tolist() for value in values]
    print("backend", choose_backend("auto", torch.device("cpu"))[0], file=sys.stderr)
    print("states", hashlib.sha256(repr(rounded).encode()).hexdigest())


def states(end: End) -> list[str]:
    return [line for line in end.output.splitlines() if line.startswith("states ")]


def storm(part: Part) -> None:
    if shutil.which("cc") is None:
        raise SkipError("no C compiler is at hand")
    compiler = part.folder / "bin" / "cc"
    compiler.parent.mkdir()
    compiler.write_text(COMPILER.format(folder=part.folder, cc=shutil.which("cc")))
    compiler.chmod(0o755)
    path = f"{compiler.parent}:{os.environ['PATH']}"
    good, cache = part.folder / "good", part.folder / "cache"

    def start(folder: Path) -> End:
        env = {"XDG_CACHE_HOME": str(folder), "CC": "cc", "PATH": path}
        return run(compute, part.log, LIMIT, env)

    first, second = start(good), start(good)
    libraries = list((good / "sigma-rec").glob("*.so"))
    if first.code or states(first) != states(second) or len(libraries) != 1:
        raise RuntimeError(f"the kernels are not built: {first.output[-500:]}")
    name, data = libraries[0].relative_to(good), libraries[0].read_bytes()
    kinds = damages(data, part.rng, [64, 4096, len(data) // 2, len(data) - 64])
    while part.goes_on():
        what, content = next(kinds)

        def damaged(content: bytes = content) -> Path:
            (copy(good, cache) / name).write_bytes(content)
            return cache

        end = start(damaged())
        part.count("damaged libraries")
        how = f"XDG_CACHE_HOME={{files}} CC=cc python train.py  # {name}: {what}"
        if end.code < 0 or end.late:
            part.fault("starts ended by a signal", how, end, damaged())
        elif end.traceback or end.code:
            part.fault("tracebacks", how, end, damaged())
        elif states(end) != states(first):
            part.fault("other results without a word", how, end, damaged())
        part.count("of them in use afterwards", int("backend cpu" in end.output))
