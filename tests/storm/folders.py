"""Run folders of strangers, which execute nothing, and damaged ones, which say so in a sentence."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sigma.runs.files import COMMAND, CONFIG, EPOCHS, RANKS, ROW, WANDB
from tests.runs.attacks import SECRET
from tests.storm.forks import Action, End, collect, run, train
from tests.storm.mutate import mutations
from tests.storm.part import Part
from tests.storm.planted import OLDER, asked, beside, resumed, ways, write_lure
from tests.storm.runs import LIMIT, copy, follow, reference

PROMISES = {
    "code executed from a stranger's folder": "ways to plant code",
    "environment read into a row": "ways to plant code",
    "tracebacks from a stranger's folder": "ways to plant code",
    "tracebacks": "damaged run files",
    "ended by a signal": "damaged run files",
    "long messages, or with control characters": "damaged run files",
    "finished rows lost": "damaged run files",
    "advice that fails": "refusals followed",
}
ENV = {"WANDB_MODE": "disabled", "SECRET": SECRET}
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e308, "", "x" * 5000, "../../x", "\x1b[31mred\n", "${oc.env:HOME}"),
    *([], {}, [[]], [None], {"a": {}}, {"_target_": "x.Y"}),
)


def visits(folder: Path, out: Path) -> dict[str, list[tuple[str, Action]]]:
    """Who reads which file, and what would be typed."""
    ask = ("python -m sigma.recommend run={files} users=1", asked(folder))
    more = ("python train.py resume={files} trainer.max_epochs=3", resumed(folder))
    again = ("python train.py resume={files}", train(f"resume={folder}"))
    wandb = f"resume={folder}", "logger=wandb", "trainer.max_epochs=3"
    logged = ("python train.py resume={files} logger=wandb trainer.max_epochs=3", train(*wandb))
    gather = ("python -m experiments.collect {files}", collect(str(folder), "--out", str(out)))
    return {
        CONFIG: [ask, more, again],
        COMMAND: [ask, more, again],
        ROW: [ask, more, again, gather],
        OLDER: [more, again],
        RANKS: [gather, again],
        EPOCHS: [more],
        WANDB: [logged],
    }


def slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in a JSON value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from slots(value[key])


def reshaped(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """JSON with a value replaced, a key gone or renamed; or as a whole something else."""
    value = json.loads(content)
    places = list(slots(value))
    if not places or rng.random() < 0.1:
        other = rng.choice(VALUES)
        return f"is {other!r:.40}", json.dumps(other).encode()
    container, key = rng.choice(places)
    action = rng.choice(["replaced", "gone", "renamed"])
    old = container.pop(key) if action != "replaced" else None
    if action == "replaced":
        container[key] = rng.choice(VALUES)
    elif action == "renamed" and isinstance(container, dict):
        container[f"{key}x"] = old
    return f"{key} is {action}", json.dumps(value).encode()


def damaged(path: Path, rng: random.Random) -> tuple[str, bytes]:
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.6:
        return reshaped(content, rng)
    kinds = mutations(content, rng)
    for _ in range(rng.randrange(40)):  # they come in turn
        next(kinds)
    return next(kinds)


def executed(part: Part, trained: Path) -> None:
    """Try every way to plant code, once."""
    folder, lure = part.folder / "run", part.folder / "lure"
    for way in ways():
        if not part.goes_on():
            return
        shutil.rmtree(lure, ignore_errors=True)
        lure.mkdir()
        marker = write_lure(lure)
        copy(trained, folder)
        way.plant(folder, lure)
        end = run(beside(lure, way.visit(folder)), part.log, LIMIT, ENV)
        part.count("ways to plant code")
        part.count("ways refused", int(end.refused))
        if marker.exists():
            part.fault("code executed from a stranger's folder", way.name, end, folder)
        elif end.traceback:
            part.fault("tracebacks from a stranger's folder", way.name, end, folder)


def leaked(part: Part, trained: Path) -> None:
    """An interpolation that reads the environment must not be resolved into a row."""
    folder = part.folder / "run"
    for key in ("group", "tags", "dataset.name", "paper.x"):
        copy(trained, folder)
        (folder / ROW).unlink()
        command = json.loads((folder / COMMAND).read_text())
        value = "[${oc.env:SECRET}]" if key == "tags" else "${oc.env:SECRET}"
        command["overrides"].append(f"++{key}={value}")
        (folder / COMMAND).write_text(json.dumps(command))
        end = run(resumed(folder), part.log, LIMIT, ENV)
        part.count("ways to plant code")
        rows = [folder / ROW, folder / CONFIG]
        if any(p.is_file() and SECRET in p.read_text() for p in rows):
            part.fault("environment read into a row", f"{COMMAND}: {key}={value}", end, folder)


def damage(part: Part, finished: Path) -> None:
    """Damage one file of a finished run, and do something with it."""
    folder, out = part.folder / "run", part.folder / "results"
    shutil.rmtree(out, ignore_errors=True)
    copy(finished, folder)
    readers = visits(folder, out)
    name = part.rng.choices(list(readers), (4, 3, 4, 1, 1, 1, 1))[0]
    if name == OLDER:
        (folder / COMMAND).unlink()  # else it is not read
    what, content = damaged(folder / name, part.rng)
    (folder / name).write_bytes(content)
    before = (folder / ROW).read_bytes()
    typed, action = part.rng.choice(readers[name])
    end = run(action, part.log, LIMIT, ENV)
    part.count("damaged run files")
    how = f"{typed}  # {name}: {what}"
    lost = name != ROW and end.code != 0 and (folder / ROW).read_bytes() != before
    if name == ROW and "resume=" in typed and end.refused and follow(end, folder / ROW, folder):
        part.count("refusals followed")
        again = run(action, part.log, LIMIT, ENV)
        if again.code or not (folder / ROW).is_file():
            part.fault("advice that fails", f"{how}; then done what it says", again, folder)
    copy(finished, folder).joinpath(name).write_bytes(content)
    judge(part, how, end, folder, lost)


def judge(part: Part, how: str, end: End, folder: Path, lost: bool) -> None:
    part.count("damages refused", int(end.refused))
    part.count("stopped after a minute", int(end.late))
    sentences = [line for line in end.output.splitlines() if line.startswith("error: ")]
    if end.traceback:
        part.fault("tracebacks", how, end, folder)
    elif end.code < 0 and not end.late:
        part.fault("ended by a signal", how, end, folder)
    elif any(len(line) > 1200 or not line.isprintable() for line in sentences):
        part.fault("long messages, or with control characters", how, end, folder)
    if lost:
        part.fault("finished rows lost", how, end, folder)


def storm(part: Part) -> None:
    finished = part.folder / "finished"
    reference(part, "sasrec", finished, "trainer.max_epochs=2")
    (finished / WANDB).write_text(json.dumps({"id": "abcd1234"}))
    for action in (asked, resumed):
        end = run(action(copy(finished, part.folder / "run")), part.log, LIMIT, ENV)
        if end.code:
            raise RuntimeError(f"an undisturbed folder is refused: {end.output[-500:]}")
    executed(part, finished)
    leaked(part, finished)
    while part.goes_on():
        damage(part, finished)
