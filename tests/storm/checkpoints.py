"""Checkpoints with bits flipped, cut, zeroed: the same result or one sentence, nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sigma.runs.files import BEST, LAST, RANKS, ROW
from tests.storm.damage import archive_places, bit, damages
from tests.storm.forks import Action, End, recommend, run, train
from tests.storm.part import Part
from tests.storm.runs import LIMIT, copy, follow, reference, same_epochs, same_row

PROMISES = {
    "other results without a word": "damaged files",
    "tracebacks": "damaged files",
    "ended by a signal or not at all": "damaged files",
    "advice that fails": "refusals followed",
}
MORE = "trainer.max_epochs=4"


class Use(NamedTuple):
    """What is done with a checkpoint.

    Attributes:
        name: of the file, in the run's folder.
        folder: of an undamaged run, of which each time a copy is made.
        action: for the copy.
        command: the same, to type.
        same: whether the copy's result is what it would have been.
    """

    name: str
    folder: Path
    action: Callable[[Path], Action]
    command: str
    same: Callable[[Path], bool]


def table(folder: Path) -> Path:
    return folder / "recommended.csv"


def uses(part: Part) -> list[Use]:
    """To go on from the last checkpoint, to test the best one, and to recommend from it."""
    stopped, ended, trained = (part.folder / name for name in ("stopped", "ended", "trained"))
    reference(part, "sigma", stopped, "trainer.max_epochs=2")
    copy(stopped, ended)
    for action in (train(f"resume={ended}", MORE), recommender(ended)):
        end = run(action, part.log, 10 * LIMIT)
        if end.code:
            raise RuntimeError(f"an undisturbed run failed: {end.output[-500:]}")
    for name in (ROW, RANKS):  # as it was killed before the test
        (copy(ended, trained) if name == ROW else trained).joinpath(name).unlink()
    (stopped / ROW).unlink()
    expected = table(ended).read_bytes()

    def same(folder: Path) -> bool:
        # The losses have all digits, which show what changes no rank.
        return same_row(folder, ended) and same_epochs(folder, ended)

    def same_table(folder: Path) -> bool:
        return table(folder).read_bytes() == expected

    resume = f"python train.py resume={{files}} {MORE}"
    ask = "python -m sigma.recommend run={files} test=all out={files}/recommended.csv"
    return [
        Use(LAST, stopped, lambda folder: train(f"resume={folder}", MORE), resume, same),
        Use(BEST, trained, lambda folder: train(f"resume={folder}", MORE), resume, same),
        Use(BEST, ended, recommender, ask, same_table),
    ]


def recommender(folder: Path) -> Action:
    return recommend(f"run={folder}", "test=all", f"out={table(folder)}")


def judge(part: Part, use: Use, folder: Path, end: End) -> str | None:
    """What of the promises a damaged file has broken."""
    if end.traceback:
        return "tracebacks"
    if end.code < 0 or end.late or not (end.refused or end.code == 0):
        return "ended by a signal or not at all"
    if end.refused:
        part.count("refused")
        return None
    if use.same(folder):
        part.count("used, with the same result")
        return None
    return "other results without a word"


def advice_fails(part: Part, use: Use, folder: Path, end: End) -> End | None:
    """Do what the refusal says, and the same again; how that ends, where it is wrong."""
    if not follow(end, folder / use.name, folder):
        return None
    part.count("refusals followed")
    if use.command.startswith("python -m"):  # what is deleted here, the run has to write anew
        run(train(f"resume={folder}", MORE), part.log, LIMIT)
    end = run(use.action(folder), part.log, LIMIT)
    return end if end.code or not use.same(folder) else None


def storm(part: Part) -> None:
    ways = []
    for use in uses(part):
        data = (use.folder / use.name).read_bytes()
        table(use.folder).unlink(missing_ok=True)
        ways.append((use, data, damages(data, part.rng, archive_places(data))))
    while part.goes_on():
        # Most of them on what is trained on, and half of those single bits.
        use, data, kinds = part.rng.choices(ways, (3, 1, 1))[0]
        single = part.rng.random() < 0.5
        what, content = bit(data, part.rng) if single else next(kinds)
        folder = part.folder / "run"

        def damaged(use: Use = use, folder: Path = folder, content: bytes = content) -> Path:
            copy(use.folder, folder).joinpath(use.name).write_bytes(content)
            return folder

        end = run(use.action(damaged()), part.log, LIMIT)
        part.count("damaged files")
        part.count("single bits", int(what.startswith("bit")))
        fault, how = judge(part, use, folder, end), f"{use.command}  # {use.name}: {what}"
        if end.refused and part.rng.random() < 0.1:
            wrong = advice_fails(part, use, folder, end)
            if wrong is not None:
                how += f"; then done what it says: {end.output.splitlines()[-1]}"
                part.fault("advice that fails", how, wrong, damaged())
        if fault is not None:
            part.fault(fault, how, end, damaged())
