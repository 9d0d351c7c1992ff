"""Sweeps with a W&B server that refuses, is silent, knows no key or dies: no run waits for long."""

import shutil
from pathlib import Path

from sigma.runs.files import ROW
from tests.storm.forks import End, run, train
from tests.storm.part import Part
from tests.storm.runs import same_row, typed
from tests.storm.servers import server

PROMISES = {
    "runs lost": "runs",
    "rows changed": "runs",
    "tracebacks": "sweeps",
    "sweeps more than 90 s slower": "sweeps",
}
KINDS = {
    **{"refuses": "refuses connections", "wrong_key": "knows no key"},
    **{"dies": "dies", "silent": "is silent"},
}
LIMIT = 600.0


def sweep(part: Part, folder: Path, runs: int, **env: str) -> End:
    """Some tiny runs, one after another, with W&B where its server is named."""
    shutil.rmtree(folder, ignore_errors=True)
    seeds = ",".join(map(str, range(1, runs + 1)))
    words = typed(part, "gru4rec", f"seed={seeds}", "trainer.max_epochs=1")
    logger = "logger=wandb" if env else "logger=none"
    command = ["-m", *words, logger, f"hydra.sweep.dir={folder}"]
    return run(train(*command), part.log, LIMIT, env)


def storm(part: Part) -> None:
    expected, folder = part.folder / "none", part.folder / "sweep"
    runs = 10 if part.seconds >= 60 else 2
    plain = sweep(part, expected, runs)
    if plain.code:
        raise RuntimeError(f"an undisturbed sweep failed: {plain.output[-500:]}")
    part.largest(f"seconds of {runs} runs without W&B:", plain.seconds)
    for kind, words in KINDS.items():
        if not part.goes_on():
            part.note = f"no time was left for a server that {words}"
            return
        with server(kind) as url:
            home = part.folder / "home"  # no key of the user's
            env = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "HOME": str(home)}
            end = sweep(part, folder, runs, WANDB_MODE="online", **env)
        part.count("sweeps")
        part.count("runs", runs)
        more = end.seconds - plain.seconds
        part.largest(f"seconds more with a server that {words}:", more)
        how = f"a sweep of {runs} with WANDB_BASE_URL at tests.storm.servers.server({kind!r})"
        if end.traceback:
            part.fault("tracebacks", how, end)
        if more > 90:  # one wait is of 25, and a busy machine is slow
            part.fault("sweeps more than 90 s slower", f"{how}: {more:.0f} s", end)
        for path in expected.glob(f"*/{ROW}"):
            other = folder / path.parent.name
            if not (other / ROW).is_file():
                part.fault("runs lost", how, end, folder)
            elif not same_row(other, path.parent):
                part.fault("rows changed", how, end, other)
