"""Training over a growing catalogue: seconds and peak memory, beside the matrix of all scores.

    python -m experiments.benchmarks.catalogue --items 10000 100000 1000000 --out results/benchmarks

SASRec (``conf/model/sasrec.yaml``) on random histories of up to 50 items, batch 2048, Adam; model
and optimizer are in the memory, as in training. ``matrix`` is PyTorch's cross entropy of all scores
at once, ``chunks`` is ours; a case that would need more than ``--limit`` GiB is left out.
"""

import statistics
from typing import Any

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


def one(case: Case) -> Case:
    import torch
    import torch.nn.functional as F
    from hydra.utils import instantiate

    from sigma.losses import CrossEntropy

    on, k, width = device(case["device"]), case["items"], 50
    torch.manual_seed(0)
    config = composed("model=sasrec", f"dataset.max_length={width}").model
    memory = Memory(on)
    model = instantiate(config, num_items=k, _convert_="all").to(on)
    batch = drawn_batch(torch.randint(1, width + 1, (case["rows"],)), width, k, on)
    loss = CrossEntropy(torch.ones(k))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        states = model(batch.items, batch.rows, batch.places)
        if case["loss"] == "chunks":
            value = loss(states, batch.targets, model.logits)
        else:
            value = F.cross_entropy(model.logits(states), batch.targets - 1)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    spent = seconds(step, on, 2.0, 2)
    return {"seconds": statistics.median(spent), "peak_gib": memory.mib() / 1024}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    made.add_argument("--rows", type=int, default=2048)
    made.add_argument("--limit", type=float, default=12, help="GiB of scores, three times over")
    options = made.parse_args()
    on = device(options.device)
    cases = [
        {"loss": loss, "items": items, "rows": options.rows, "device": on.type}
        for items in options.items
        for loss in ("chunks", "matrix")
        if loss == "chunks" or 3 * 4 * items * options.rows < options.limit * 2**30
    ]
    frame = rounds("experiments.benchmarks.catalogue", cases, options.repeats, one, options.one)
    table = summary(frame, ["loss", "items"], "seconds").drop(columns="rows")
    name = f"catalogue_{on.type}"
    keep(table, name, options.out, on)
    if options.out is not None:
        draw(table, options.out / f"{name}.png")


def draw(table: Any, path: Any) -> None:
    """Memory and time over the number of items."""
    figure = picture(8, 3.6)
    for i, (column, label) in enumerate(
        [("peak_gib", "peak memory, GiB"), ("seconds", "one training step, seconds")], start=1
    ):
        axes = figure.add_subplot(1, 2, i)
        for loss, colour, marker in (("chunks", "#0072B2", "o"), ("matrix", "#D55E00", "s")):
            if loss in table.index.get_level_values("loss"):
                line = table.xs(loss, level="loss")[column]
                axes.plot(line.index, line, color=colour, marker=marker, label=loss)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("items")
        axes.set_ylabel(label)
        axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
