"""Recommendations for everybody: users a second and memory, beside RecTools.

    python -m experiments.benchmarks.recommend <folder of a run> [<another>] \\
        --peer rectools/bin/python

with ``--out results/benchmarks`` it writes ``recommend.csv``. The users are those of the first
run's data with all that is known of them, and the same again under other names until there are
``--times`` as many; each gets the first 10 of the items that he has not had. Three ways:

table     a DataFrame of histories in, one of recommendations out; the model is loaded already
file      Parquet in, Parquet out, some users at a time; the model is loaded already
command   ``python -m sigma.recommend`` from its start to its end

``peak_mib`` is that of the whole process. ``--peer`` names a Python that has RecTools with PyTorch
(``pip install 'rectools[torch]'``); its SASRec (64 wide, 2 blocks, histories cut to 50) answers for
the same table. What RecTools needs before, the data set it makes of a table and the training, of
one step, does not count.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Case
from sigma.datamodules.preprocess import Sequences
from sigma.recommend import answers
from sigma.recommend import options as recommend_options
from sigma.recommender import Recommender
from sigma.runs.provenance import peak_bytes
from sigma.tables import write_tables
from sigma.trained import load

KEY, COLUMNS = ["model", "way", "users"], ["seconds", "users_per_second", "peak_mib"]
WAYS, PEER, K = ("table", "file", "command"), "sasrec (rectools)", 10


def write(path: Path, sequences: Sequences, times: int) -> None:
    """All histories as Parquet, ``times`` times over, each time with new names of the users.

    Beside it as CSV with items as whole numbers, which RecTools is fastest with.
    """
    number, lengths = sequences.num_users, np.diff(sequences.offsets)
    users = np.concatenate([np.arange(number).repeat(lengths) + number * n for n in range(times)])
    items = np.array([str(raw) for raw in sequences.item_ids], dtype=object)[sequences.items - 1]
    frame = pd.DataFrame({"user": users, "item": np.tile(items, times)})
    frame["timestamp"] = np.arange(len(frame))
    frame.to_parquet(path)
    frame.assign(item=np.tile(sequences.items, times)).to_csv(path.with_suffix(".csv"), index=False)


def one(case: Case) -> Case:
    """Seconds and peak memory of one way for some users."""
    if case["way"] == "command" or case["model"] == PEER:
        result = command(case)
    else:
        result = here(case)
    return result | {"users_per_second": case["users"] / result["seconds"]}


def here(case: Case) -> Case:
    """In this process, with a model that has answered before."""
    recommender = Recommender.load(case["run"], device=case["device"].type)
    recommender.recommend(users=recommender.user_index[:100].tolist(), k=K)
    histories, out = case["histories"], f"{case['histories']}.out.parquet"
    if case["way"] == "table":
        table = pd.read_parquet(histories)
        start = time.perf_counter()
        lines = len(recommender.recommend(table, K))
    else:
        typed = recommend_options().parse_args(
            [f"--run={case['run']}", f"--histories={histories}", f"--k={K}"]
        )
        start = time.perf_counter()
        lines = write_tables(Path(out), answers(recommender, typed))[0]
    seconds = time.perf_counter() - start
    assert lines == K * case["users"]
    return {"seconds": seconds, "peak_mib": peak_bytes(torch.device("cpu")) / 2**20}


def command(case: Case) -> Case:
    """In a process of its own, which for RecTools says itself what counts."""
    ours = ("GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE")  # of ``sigma``, for PyTorch
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    histories = case["histories"]
    if case["model"] == PEER:
        script = Path(__file__).with_name("rectools_sasrec.py")
        line = [
            case["peer"],
            script,
            Path(histories).with_suffix(".csv"),
            case["base"],
            K,
            case["device"].type,
        ]
    else:
        line = [sys.executable, "-m", "sigma.recommend", f"run={case['run']}", f"k={K}"]
        line += [f"histories={histories}", f"out={histories}.out.parquet"]
        line += [f"device={case['device'].type}"]
    words, start = [str(word) for word in line], time.perf_counter()
    folder = Path(histories).parent if case["model"] == PEER else measure.ROOT
    text = subprocess.check_output(words, text=True, cwd=folder, env=environment)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    result = {"seconds": seconds, "peak_mib": peak}
    return result | (json.loads(text.splitlines()[-1]) if case["model"] == PEER else {})


def cases_of(options: argparse.Namespace, folder: Path) -> list[Case]:
    """Every way for every number of users, whose files are written into a folder."""
    runs = {load(run).config.model.name: str(run.resolve()) for run in options.runs}
    sequences = load(options.runs[0]).sequences
    cases = []
    for times in options.times:
        path = folder / f"{times}.parquet"
        write(path, sequences, times)
        base = sequences.num_users
        common = {"histories": str(path), "users": times * base, "base": base}
        common |= {"device": options.device, "peer": options.peer}
        for name, run in runs.items():
            cases += [{"model": name, "way": way, "run": run, **common} for way in WAYS]
        if options.peer:
            cases.append({"model": PEER, "way": "table", **common})
    return cases


def main() -> None:
    arguments = measure.parser(__doc__)
    arguments.add_argument("runs", type=Path, nargs="+", help="their folders")
    arguments.add_argument("--times", type=int, nargs="+", default=[1, 4])
    arguments.add_argument("--peer", metavar="PYTHON", help="that can import RecTools")
    options = arguments.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = cases_of(options, Path(folder))
        table = measure.medians(cases, one, options.repeats, KEY, COLUMNS)
    measure.keep(table, "recommend", options.out, options.device)


if __name__ == "__main__":
    main()
