"""Time and memory of a training step and of inference over the length N, and their exponents.

    python -m experiments.benchmarks.length
    python -m experiments.benchmarks.length --device cuda --positions 524288

For the third seed's efficiency comparison and the claim of SIGMA's appendix A, O(N). Models have
the settings of ``conf/model`` with ``dataset.max_length=N``. Measured are, each in a process of its
own, a training step (states at the targets, cross entropy over all items, backward; no optimizer,
no model's extra loss) and inference (no gradient, evaluation mode; states at the last items and
their scores of all items). Rows are full, with one target each at its end, so that a model can
skip what only other places need, as in training.

Every length has the same number of rows, as many as the longest fits into ``--positions`` (or
``--rows``), and time and memory are given per row. With fewer rows at greater lengths a GRU, which
takes N steps one after the other, would lose its company and seem quadratic. One row is enough for
a CPU; a GPU needs tens, or starting kernels is all there is to see.

Memory is the peak of the steps above that of the same step at 4 positions: item table, gradients
and workspaces, which no length changes, are left out. It is the device's, or on the CPU this
process's. An exponent is the slope of least squares of log time (or memory) over log N, over the
larger half of the lengths measured. Attention on the CPU keeps several (N, N) matrices per head and
row in training, some 12 GB at N = 8192: what does not fit is told as failed and left out.
"""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.benchmarks.measure import (
    Case,
    Memory,
    composed,
    device,
    drawn_batch,
    keep,
    parser,
    rounds,
    seconds,
    summary,
)
from experiments.canvas import picture

STAGES = {"training": "-", "inference": "--"}
SHORT = 4  # positions of the step whose peak is what no length changes
# Okabe and Ito's colours, told apart by all eyes; markers tell them apart in print, too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def one(case: Case) -> Case:
    """Milliseconds and MiB per row of one model, length and stage."""
    import torch
    from hydra.utils import instantiate

    from sigma.losses import CrossEntropy

    on = device(case["device"])
    length, rows, items = (case[key] for key in ("length", "rows", "items"))
    # As long as the short step, too, which a model built for less would refuse.
    longest = f"dataset.max_length={max(length, SHORT)}"
    config = composed(f"model={case['model']}", longest)
    torch.manual_seed(config.seed)
    model = instantiate(config.model, num_items=items, _convert_="all").to(on)
    loss = CrossEntropy(torch.ones(items))

    def states(batch: Any) -> Any:
        return model(batch.items, batch.rows, batch.places)

    def train(batch: Any) -> None:
        model.zero_grad()
        loss(states(batch), batch.targets, model.logits).backward()

    @torch.inference_mode()
    def infer(batch: Any) -> None:
        model.logits(states(batch))

    def full_batch(width: int) -> Any:
        return drawn_batch(torch.full((rows,), width), width, items, on)

    training = case["stage"] == "training"
    model.train(training)
    step = train if training else infer
    memory = Memory(on)
    short = full_batch(SHORT)
    step(short)
    step(short)  # the second holds the first one's gradients, as all others do
    fixed = memory.mib()
    batch = full_batch(length)
    spent = seconds(lambda: step(batch), on, case["seconds"], case["steps"])
    return {
        "ms_per_row": 1e3 * statistics.median(spent) / rows,
        "mib_per_row": (memory.mib() - fixed) / rows,
        "peak_mib": memory.mib(),
    }


def exponent(lengths: Any, values: Any) -> float:
    """b of ``values`` = a ``lengths`` ** b over the larger half; NaN with less than two values."""
    pairs = sorted((n, v) for n, v in zip(lengths, values, strict=True) if np.isfinite(v) and v > 0)
    half = pairs[-max(2, (len(pairs) + 1) // 2) :]
    if len(half) < 2:
        return float("nan")
    x, y = np.log(np.array(half, float)).T
    return float(np.polyfit(x, y, 1)[0])


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """Of time and memory, a row for each model and stage of ``table`` (model, stage, length)."""
    found = {
        key: {
            name: exponent(part.index.get_level_values("length"), part[column])
            for name, column in (("time", "ms_per_row"), ("memory", "mib_per_row"))
        }
        for key, part in table.groupby(level=["model", "stage"], sort=False)
    }
    made = pd.DataFrame.from_dict(found, orient="index")
    made.index = pd.MultiIndex.from_tuples(made.index, names=["model", "stage"])
    return made


def draw(table: pd.DataFrame, fitted: pd.DataFrame, path: Path) -> None:
    """Time and memory over the length, log-log, side by side."""
    figure = picture(11, 4.8)
    panels = (("time", "ms_per_row", "ms per row"), ("memory", "mib_per_row", "MiB per row"))
    for at, (name, column, label) in enumerate(panels):
        axes = figure.add_subplot(1, 2, at + 1)
        for i, model in enumerate(table.index.unique("model")):
            # Memory that is not seen above the short step has no place on a logarithm.
            shown = table[column].xs(model, level="model").where(lambda v: v > 0)
            powers = []
            for stage, style in STAGES.items():
                line = shown.xs(stage, level="stage").dropna().sort_index()
                axes.plot(
                    line.index,
                    line,
                    style,
                    color=COLOURS[i % len(COLOURS)],
                    marker=MARKERS[i % len(MARKERS)],
                    markersize=5,
                    fillstyle="full" if style == "-" else "none",
                    label=model if stage == "training" else None,
                )
                powers.append(f"{fitted.loc[(model, stage), name]:.2f}")
            axes.get_lines()[-2].set_label(f"{model}: {', '.join(powers)}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log" if table[column].gt(0).any() else "linear")
        ticks = sorted(set(table.index.get_level_values("length")))
        axes.set_xticks(ticks, [str(n) for n in ticks], fontsize=8)
        axes.minorticks_off()
        axes.set_xlabel("length N")
        axes.set_ylabel(label)
        axes.set_title(f"{name}: training solid, inference dashed", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(title="exponent: training, inference", fontsize=8, title_fontsize=8)
    figure.savefig(path)


def main() -> None:
    made = parser(__doc__)
    made.add_argument(
        "--lengths", type=int, nargs="+", default=[50, 100, 200, 400, 800, 1600, 3200, 8192]
    )
    made.add_argument("--models", nargs="+", default=["sigma", "mamba4rec", "sasrec", "linrec"])
    made.add_argument("--positions", type=int, default=8192, help="in all rows of the longest")
    made.add_argument("--rows", type=int, help="at every length, instead of --positions")
    made.add_argument("--items", type=int, default=12101, help="Beauty's by default")
    made.add_argument("--steps", type=int, default=3, help="least steps of a measurement")
    made.add_argument("--seconds", type=float, default=1.0, help="least time of a measurement")
    options = made.parse_args()
    on = device(options.device)
    rows = options.rows or max(1, options.positions // max(options.lengths))
    cases = [
        {
            "model": model,
            "stage": stage,
            "length": length,
            "rows": rows,
            "items": options.items,
            "device": on.type,
            "steps": options.steps,
            "seconds": options.seconds,
        }
        for length in options.lengths
        for model in options.models
        for stage in STAGES
    ]
    frame = rounds("experiments.benchmarks.length", cases, options.repeats, one, options.one)
    if "ms_per_row" not in frame:
        raise SystemExit("Nothing could be measured; the reasons are above.")
    table = summary(frame, ["model", "stage", "length"], "ms_per_row")
    table = table.drop(columns=["items", "steps", "seconds"]).sort_index(
        level="model", sort_remaining=False, key=lambda names: names.map(options.models.index)
    )
    fitted = exponents(table)
    keep(table, "length", options.out, on)
    keep(fitted, "length_exponents", options.out, on)
    if options.out is not None:
        draw(table, fitted, options.out / "length.png")


if __name__ == "__main__":
    main()
