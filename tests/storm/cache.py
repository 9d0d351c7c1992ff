"""The processed data's cache: any bit of it flipped is seen, and the data is processed anew."""

import logging
import shutil
from functools import partial
from pathlib import Path

from sigma.datamodules.sets.custom import Custom
from tests.storm.damage import damages
from tests.storm.forks import run
from tests.storm.part import Part
from tests.storm.runs import LIMIT

PROMISES = {"other data without a word": "damaged caches", "failed starts": "damaged caches"}
TOGETHER = 200  # damages to a child


def digest(data: Path, root: Path) -> str:
    """Of the data as a run has it."""
    return Custom(path=data, root=root).build().fingerprint()


def try_all(cache: Path, contents: list[tuple[str, bytes]], data: Path, root: Path) -> None:
    """Print the number of each damage and what came of it."""
    logging.disable()
    for number, (_, content) in enumerate(contents):
        print(number, "began", flush=True)
        cache.write_bytes(content)
        try:
            print(number, digest(data, root), flush=True)
        except Exception as error:
            print(number, f"failed {type(error).__name__}: {error}", flush=True)


def storm(part: Part) -> None:
    data, root = part.data, part.root
    end = run(lambda: print(digest(data, root)), part.log, LIMIT)
    expected, (cache,) = end.output.strip(), (root / "processed").iterdir()
    content = cache.read_bytes()
    part.count("bytes of the file", len(content))
    bits = list(range(8 * len(content)))
    part.rng.shuffle(bits)
    kinds = damages(content, part.rng)
    while part.goes_on() and bits:
        contents = [next(kinds) for _ in range(TOGETHER // 10)]
        for bit in (bits.pop() for _ in range(min(len(bits), TOGETHER - len(contents)))):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            contents.append((f"bit {bit % 8} of byte {bit // 8:,} flipped", bytes(changed)))
            part.count("single bits")
        judge(part, cache, contents, expected, data, root)


def judge(
    part: Part,
    cache: Path,
    contents: list[tuple[str, bytes]],
    expected: str,
    data: Path,
    root: Path,
) -> None:
    """Try damages in a child, and again those behind one that ended it."""
    while contents:
        end = run(partial(try_all, cache, contents, data, root), part.log, LIMIT)
        answers = dict(line.split(" ", 1) for line in end.output.splitlines() if " " in line)
        tried = len(answers)
        part.count("damaged caches", tried)
        for number, (what, damaged) in enumerate(contents[:tried]):
            answer = answers.get(str(number), "")
            if answer == expected:
                continue
            example = part.folder / "damaged" / cache.name
            example.parent.mkdir(exist_ok=True)
            example.write_bytes(damaged)
            kind = "failed starts" if answer.startswith(("failed", "began")) else None
            how = f"a start with {{files}} in dataset.root/processed  # {what}: {answer}"
            part.fault(kind or "other data without a word", how, end, example)
        if not tried:
            raise RuntimeError(f"nothing was tried: {end.output[-500:]}")
        contents = contents[tried:]
    shutil.rmtree(root / "unpacked", ignore_errors=True)
