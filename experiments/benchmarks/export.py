"""Exported files beside the run that they are of: size, time to write and load, users a second.

    python -m experiments.benchmarks.export <folder of a run> [<another>] --out results/benchmarks

writes ``export.csv``: for each run ``recommender`` (``Recommender.recommend``, ids in, a table out)
and the files ``.pt2`` and ``.onnx``, which give the same ten unseen items. ``one_ms`` is for a
history alone, ``users_per_second`` for ``--batch`` together, ``of_recommender`` its part of the
recommender's; ``error`` is the largest of a score of the test from the model's, as written.
"""

import tempfile
import time
from pathlib import Path

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Case
from sigma.export import export, questions
from sigma.program import FORMATS
from sigma.recommender import Recommender
from sigma.trained import load

K = 10
WAYS = ["recommender", *FORMATS]
KEY = ["model", "length", "way"]
COLUMNS = ["users_per_second", "one_ms", "megabytes", "write_seconds", "load_seconds", "error"]


def one(case: Case) -> Case:
    """Of one run by one way."""
    run, result = load(Path(case["run"])), {}
    inputs, _ = questions(run)
    rows = [[n for n in row if n] for row in inputs.items.tolist()]
    start = time.perf_counter()
    if case["way"] == "recommender":
        recommender, ids = Recommender.load(case["run"], device="cpu"), run.sequences.catalogue
        result["load_seconds"] = time.perf_counter() - start
        histories = [[ids[n - 1] for n in row] for row in rows]

        def answer(number: int) -> None:
            recommender.recommend(histories[:number], K)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{case['way']}"
            file = export(run, path, K, unseen=True)
            content = path.read_bytes()
        written = time.perf_counter()
        ask = FORMATS[case["way"]][1](content)
        result["load_seconds"] = time.perf_counter() - written
        result |= {"write_seconds": written - start, "megabytes": file.size / 1e6}
        result["error"] = file.difference

        def answer(number: int) -> None:
            ask(**inputs.named(slice(number)))

    number = min(case["batch"], len(rows))
    result["one_ms"] = 1e3 * measure.median_seconds(lambda: answer(1), case["least"])
    seconds = measure.median_seconds(lambda: answer(number), case["least"])
    return result | {"users_per_second": number / seconds}


def main() -> None:
    arguments = measure.parser(__doc__)
    arguments.add_argument("runs", type=Path, nargs="+", help="their folders")
    arguments.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    arguments.add_argument("--batch", type=int, default=100, help="histories together")
    options = arguments.parse_intermixed_args()
    cases = []
    for path in options.runs:
        run = load(path)
        names = {"model": run.config.model.name, "length": run.data.max_length}
        cases += measure.grid(options, way=options.ways, run=[str(path)], batch=[options.batch])
        cases[-len(options.ways) :] = [case | names for case in cases[-len(options.ways) :]]
    table = measure.medians(cases, one, options.repeats, KEY, COLUMNS).drop(columns=["low", "high"])
    whole = table["users_per_second"].groupby(level=["model", "length"], sort=False)
    table.insert(1, "of_recommender", table["users_per_second"] / whole.transform("first"))
    measure.keep(table, "export", options.out, options.device)


if __name__ == "__main__":
    main()
