"""Time and memory of a training step and of inference over the length N, and their exponents.

    python -m experiments.benchmarks.length --rows 2 --repeats 1 --out results/benchmarks
    python -m experiments.benchmarks.length --rows 64 --device cuda

writes ``length.csv`` and ``length_exponents.csv``. For the third seed's efficiency comparison and
the claim of SIGMA's appendix A, O(N). Models have the settings of ``conf/model`` with
``dataset.max_length=N``. Measured are, each in a process of its own, a training step (states at the
targets, cross entropy over all items, backward; no optimizer, no model's extra loss) and inference
(no gradient, evaluation mode; states at the last items and their scores of all items). Rows are
full, with one target each at its end, so that a model can skip what only other places need, as in
training.

Every length has the same number of rows, and time and memory are given per row. With fewer rows at
greater lengths a GRU, which takes N steps one after the other, would lose its company and seem
quadratic. One row is enough for a CPU; a GPU needs tens, or its time is that of starting kernels.

Memory is the peak of the steps above that of the same step at 4 positions: item table, gradients
and workspaces, which no length changes, are left out. It is the device's, or on the CPU this
process's. An exponent is the slope of least squares of log time (or memory) over log N, over the
larger half of the lengths measured. Attention on the CPU keeps several (N, N) matrices per head and
row in training, some 12 GB at N = 8192: what does not fit is told as failed and left out.
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

    def full_batch(width: int) -> Batch:
        return measure.random_batch(torch.full((num_rows,), width), width, num_items, on)

    step = train if case["stage"] == "training" else infer
    model.train(step is train)
    memory = measure.Memory(on)
    short = full_batch(SHORT)
    step(short)
    step(short)  # the second holds the first one's gradients, as all others do
    fixed, batch = memory.mib(), full_batch(length)
    ms = 1e3 * measure.median_seconds(lambda: step(batch), case["least"])
    values = (ms / num_rows, (memory.mib() - fixed) / num_rows, memory.mib())
    return dict(zip(COLUMNS, values, strict=True))


def exponent(values: pd.Series) -> float:
    """b of values = a length ** b over the larger half; NaN with less than two of them.

    Args:
        values: by length; what is none or not above zero has no say.
    """
    values = values[values > 0].sort_index()
    half = values.iloc[-max(2, (len(values) + 1) // 2) :]
    if len(half) < 2:
        return float("nan")
    return float(np.polyfit(np.log(half.index.to_numpy(float)), np.log(half.to_numpy(float)), 1)[0])


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """Of time and memory, a line for each model and stage of ``table`` (model, stage, length)."""
    columns = {"ms_per_row": "time", "mib_per_row": "memory"}
    parts = table.rename(columns=columns)[[*columns.values()]].unstack("length")
    return pd.DataFrame(
        {name: parts[name].apply(exponent, axis=1) for name in columns.values()}
    ).reindex(table.index.droplevel("length").unique())


def main() -> None:
    arguments = measure.parser(__doc__)
    lengths = [50, 100, 200, 400, 800, 1600, 3200, 6400]
    arguments.add_argument("--lengths", type=int, nargs="+", default=lengths)
    arguments.add_argument(
        "--models", nargs="+", default=["sigma", "mamba4rec", "sasrec", "linrec"]
    )
    arguments.add_argument("--rows", type=int, default=1, help="at every length")
    arguments.add_argument("--items", type=int, default=12101, help="Beauty's by default")
    options = arguments.parse_args()
    axes = {"model": options.models, "stage": ["training", "inference"], "length": options.lengths}
    cases = measure.grid(options, **axes, rows=[options.rows], items=[options.items])
    table = measure.medians(cases, one, options.repeats, KEY, COLUMNS)
    table.insert(0, "rows", options.rows)
    measure.keep(table, "length", options.out, options.device)
    measure.keep(exponents(table), "length_exponents", options.out, options.device)


if __name__ == "__main__":
    main()
