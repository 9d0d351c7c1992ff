"""One more item: by a session, and by the pass over the whole history, over its length N.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.session --out results/benchmarks

writes ``session.csv``: milliseconds until the state after a new item is there (``event_ms``,
``whole_ms``, their ratio ``times``), and until all items are scored, too (``scored_…``); the same
for an item of each of ``--together`` sessions at once, an item (``together_ms``); what it takes to
begin a session with N items (``start_ms``); the size of what a session holds, and the largest error
of its state as a part of the state's largest number, ten items after such a start.
"""

import torch
from hydra.utils import instantiate

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Case
from sigma.ops import rows_of
from sigma.session import Session, add_to_all

EVENTS = 200_000  # positions for a model that learns them: a session gets longer as it is timed
LAST = 10  # items after the start of the session whose error is taken
KEY = ["model", "length"]
COLUMNS = ["event_ms", "whole_ms", "times", "scored_event_ms", "scored_whole_ms", "together_ms"]
COLUMNS += ["start_ms", "state_kib", "largest_error"]
LENGTHS = [50, 100, 200, 500, 1000, 2000, 5000, 10_000]
MODELS = ["mamba4rec", "mamba2", "recmamba", "gru4rec", "sigma_causal"]


def one(case: Case) -> Case:
    """Of one model and length."""
    on, length, num_items, least = (case[key] for key in ("device", "length", "items", "least"))
    longest = f"dataset.max_length={length + EVENTS}"
    config = measure.composed(f"model={case['model']}", longest)
    torch.manual_seed(config.seed)
    model = instantiate(config.model, num_items=num_items, _convert_="all").to(on).eval()
    items = torch.randint(1, num_items + 1, (length,))
    history, rows, last = (
        items.tolist(),
        rows_of(torch.tensor([length])),
        torch.tensor([length - 1]),
    )
    inputs = items.to(on), rows._replace(offsets=rows.offsets.to(on)), last.to(on)
    session = Session(model, history[:-LAST])
    for item in history[-LAST:]:
        session.add(item)
    crowd = [Session(model, history[:1]) for _ in range(case["together"])]

    def scored_event() -> None:
        session.add(1)
        session.scores()

    with torch.inference_mode():
        state = model(*inputs)[0]
        error = float((session.state - state).abs().max() / state.abs().max())
        seconds = {
            "event_ms": lambda: session.add(1),
            "whole_ms": lambda: model(*inputs),
            "scored_event_ms": scored_event,
            "scored_whole_ms": lambda: model.logits(model(*inputs)),
            "together_ms": lambda: add_to_all(crowd, history[:1] * len(crowd)),
            "start_ms": lambda: Session(model, history),
        }
        result = {key: 1e3 * measure.median_seconds(work, least) for key, work in seconds.items()}
    result["together_ms"] /= len(crowd)
    result["times"] = result["whole_ms"] / result["event_ms"]
    return result | {"state_kib": session.nbytes / 1024, "largest_error": error}


def main() -> None:
    arguments = measure.parser(__doc__)
    arguments.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    arguments.add_argument("--models", nargs="+", default=MODELS)
    arguments.add_argument("--items", type=int, default=12101, help="Beauty's by default")
    arguments.add_argument("--together", type=int, default=256, help="sessions at once")
    options = arguments.parse_args()
    axes = {"model": options.models, "length": options.lengths}
    cases = measure.grid(options, **axes, items=[options.items], together=[options.together])
    table = measure.medians(cases, one, options.repeats, KEY, COLUMNS)
    measure.keep(table, "session", options.out, options.device)


if __name__ == "__main__":
    main()
