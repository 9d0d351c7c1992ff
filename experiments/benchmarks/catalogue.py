"""Training over a growing catalogue: seconds and peak memory, beside the matrix of all scores.

    python -m experiments.benchmarks.catalogue --repeats 1 --out results/benchmarks

writes ``catalogue_cpu.csv``, or ``catalogue_cuda.csv``. SASRec on random histories of up to 50
items, with Adam, whose states count as in training. ``matrix`` is PyTorch's cross entropy of all
scores at once, ``chunks`` is ours; a case of more than ``--limit`` GiB is left out.
"""

import torch
import torch.nn.functional as F
from hydra.utils import instantiate

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Case
from sigma.losses import CrossEntropy

LONGEST = 50


def one(case: Case) -> Case:
    """Seconds and GiB of a training step with one loss over one number of items."""
    on, num_items = case["device"], case["items"]
    torch.manual_seed(0)
    config = measure.composed("model=sasrec", f"dataset.max_length={LONGEST}").model
    memory = measure.Memory(on)
    model = instantiate(config, num_items=num_items, _convert_="all").to(on)
    lengths = torch.randint(1, LONGEST + 1, (case["rows"],))
    batch = measure.random_batch(lengths, LONGEST, num_items, on)
    chunks = CrossEntropy(torch.ones(num_items))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        states = model(batch.items, batch.rows, batch.places)
        if case["loss"] == "chunks":
            loss = chunks(states, batch.targets, model.logits)
        else:
            loss = F.cross_entropy(model.logits(states), batch.targets - 1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = measure.median_seconds(step, case["least"])
    return {"seconds": seconds, "peak_gib": memory.mib() / 1024}


def main() -> None:
    arguments = measure.parser(__doc__, 2.0)
    arguments.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    arguments.add_argument("--rows", type=int, default=2048)
    arguments.add_argument("--limit", type=float, default=12, help="GiB of scores, three times")
    options = arguments.parse_args()
    most = options.limit * 2**30 / 12 / options.rows  # scores in float32, three times
    axes = {"items": options.items, "loss": ["chunks", "matrix"], "rows": [options.rows]}
    cases = measure.grid(options, **axes)
    cases = [case for case in cases if case["loss"] == "chunks" or case["items"] < most]
    table = measure.medians(cases, one, options.repeats, ["loss", "items"], ["seconds", "peak_gib"])
    measure.keep(table, f"catalogue_{options.device.type}", options.out, options.device)


if __name__ == "__main__":
    main()
