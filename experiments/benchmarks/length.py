"""Time and memory of a training step and of inference over the length N, and their exponents.

    python -m experiments.benchmarks.length --rows 2 --repeats 1 --out results/benchmarks

writes ``length.csv`` and ``length_exponents.csv``, for the claim of SIGMA's appendix A, O(N).
A training step is states at the targets, cross entropy over all items and backward; inference is
states at the last items and their scores of all items. Rows are full, with one target each. Time
and memory are given per row, of as many rows at every length: with fewer at greater lengths a GRU,
which takes N steps one after the other, would lose its company and seem quadratic. One row is
enough for a CPU; a GPU needs tens.

Memory is the peak above that of the same step at 4 positions, which holds what no length changes.
An exponent is the slope of log time (or memory) over log N, by least squares over the larger half
of the lengths. What does not fit in memory is said to have failed and left out.
"""

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Case
from sigma.datamodules.batches import Batch
from sigma.losses import CrossEntropy

SHORT = 4  # positions of the step whose peak is what no length changes
KEY, COLUMNS = ["model", "stage", "length"], ["ms_per_row", "mib_per_row", "peak_mib"]
NAMES = {"ms_per_row": "time", "mib_per_row": "memory"}
LENGTHS = [50, 100, 200, 400, 800, 1600, 3200, 6400]
MODELS = ["sigma", "mamba4rec", "sasrec", "linrec"]


def one(case: Case) -> Case:
    """Milliseconds and MiB per row of one model, length and stage."""
    on, length, num_rows, num_items = (case[key] for key in ("device", "length", "rows", "items"))
    # As long as the short step, too, which a model built for less would refuse.
    longest = f"dataset.max_length={max(length, SHORT)}"
    config = measure.composed(f"model={case['model']}", longest)
    torch.manual_seed(config.seed)
    model = instantiate(config.model, num_items=num_items, _convert_="all").to(on)
    loss = CrossEntropy(torch.ones(num_items))

    def train(batch: Batch) -> None:
        model.zero_grad()
        states = model(batch.items, batch.rows, batch.places)
        loss(states, batch.targets, model.logits).backward()

    @torch.inference_mode()
    def infer(batch: Batch) -> None:
        model.logits(model(batch.items, batch.rows, batch.places))

    step = train if case["stage"] == "training" else infer
    model.train(step is train)
    memory = measure.Memory(on)
    short, batch = (
        measure.random_batch(torch.full((num_rows,), width), width, num_items, on)
        for width in (SHORT, length)
    )
    step(short)
    step(short)  # the second holds the first one's gradients, as all others do
    fixed = memory.mib()
    ms = 1e3 * measure.median_seconds(lambda: step(batch), case["least"])
    values = (ms / num_rows, (memory.mib() - fixed) / num_rows, memory.mib())
    return dict(zip(COLUMNS, values, strict=True))


def exponent(values: pd.Series) -> float:
    """b of values = a length ** b over the larger half; NaN with less than two above zero.

    Args:
        values: by length.
    """
    values = values[values > 0].sort_index()
    half = values.iloc[-max(2, (len(values) + 1) // 2) :]
    if len(half) < 2:
        return float("nan")
    return float(np.polyfit(np.log(half.index.to_numpy(float)), np.log(half.to_numpy(float)), 1)[0])


def main() -> None:
    arguments = measure.parser(__doc__)
    arguments.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    arguments.add_argument("--models", nargs="+", default=MODELS)
    arguments.add_argument("--rows", type=int, default=1, help="at every length")
    arguments.add_argument("--items", type=int, default=12101, help="Beauty's by default")
    options = arguments.parse_args()
    axes = {"model": options.models, "stage": ["training", "inference"], "length": options.lengths}
    cases = measure.grid(options, **axes, rows=[options.rows], items=[options.items])
    table = measure.medians(cases, one, options.repeats, KEY, COLUMNS)
    times = table.rename(columns=NAMES)[[*NAMES.values()]].reset_index("length")
    fits = times.groupby(KEY[:2], sort=False).apply(
        lambda lines: lines.set_index("length").apply(exponent)
    )
    table.insert(0, "rows", options.rows)
    measure.keep(table, "length", options.out, options.device)
    measure.keep(fits, "length_exponents", options.out, options.device)


if __name__ == "__main__":
    main()
