"""The efficiency tables of SIGMA's paper (3, 5 and 7), measured here beside the paper's numbers.

    python -m experiments.benchmarks.efficiency --out results/benchmarks --seconds 1 --repeats 1 \\
        --data beauty=beauty.txt games_2014=games_2014.txt ml_1m=ml-1m.txt

writes ``tables_efficiency.csv``. A data set is named as in ``conf/dataset``, with its raw file;
``name=`` without one looks where ``train.py`` does. Data and models are built as ``train.py``
builds them (N = 200 on ML-1M, elsewhere 50).

Inference is the evaluation step (states, scores of all items, ranks), scaled to a batch of 4,096
test users; training is a whole step on batches of the config. Memory is the peak from building the
data to the last step: of the device (``gpu_mib``), or on the CPU of this process above its imports
(``process_mib``). The paper's is of one NVIDIA L4; so the columns ``…_of_sigma`` give each model as
a multiple of SIGMA on the same data (Table 5: of its single layer), ours and the paper's.
"""

import argparse
from pathlib import Path

import pandas as pd
from hydra.utils import instantiate

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Case
from experiments.benchmarks.models import evaluate, train
from experiments.paper.values import PAPER_SET, paper
from sigma.errors import UserError

MODELS = ["sasrec", "fearec", "linrec", "mamba4rec", "echo", "sigma"]
LAYERED = "beauty"  # the data set of Table 5
KEY = ["table", "dataset", "model"]
COLUMNS = ["infer_ms", "infer_mib", "train_ms", "train_mib"]
PRINTED = {"inference_ms_per_batch": "paper_ms", "gpu_memory_gb": "paper_gpu_gb"}


def one(case: Case) -> Case:
    """Milliseconds and peak MiB of one model's inference or training."""
    on, (name, _, layers) = case["device"], case["model"].partition(" x ")
    more = [f"model.num_layers={layers}"] if layers else []
    memory = measure.Memory(on)
    config = measure.composed(f"model={name}", *case["overrides"], *more)
    data, task = measure.built(config, on)
    if case["stage"] == "inference":
        ms = evaluate(data, task, on, case["least"])["eval_ms_per_4096"]
        return {"infer_ms": ms, "infer_mib": memory.mib()}
    return {"train_ms": train(data, task, on, case["least"])["step_ms"], "train_mib": memory.mib()}


def prepare(overrides: list[str]) -> str:
    """Process a data set, so that no measurement's memory holds that; why it cannot be had."""
    try:
        instantiate(measure.composed(*overrides).dataset, _convert_="all").prepare_data()
    except UserError as error:
        return str(error)
    return ""


def printed() -> pd.DataFrame:
    """The paper's numbers by table ("3, 7" or "5"), dataset and model ("sigma x 2": layers)."""
    models = paper("table3_table7_efficiency").assign(table="3, 7")
    layers = paper("table5_layers").assign(table="5")
    layers["model"] = "sigma x " + layers["layers"].astype(str)
    both = pd.concat([models, layers]).drop_duplicates(KEY)  # Yelp is in both tables
    names = {theirs: ours for ours, theirs in PAPER_SET.items()}
    other_vintage = both.assign(dataset=both["dataset"].map(names)).dropna(subset="dataset")
    every = pd.concat([both, other_vintage]).rename(columns=PRINTED)
    return every.set_index(KEY)[[*PRINTED.values()]]


def relative(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each column of time or memory as a multiple of SIGMA's, ``…_of_sigma``."""
    table = table.copy()
    base = [(kind, name, "sigma" if kind != "5" else "sigma x 1") for kind, name, _ in table.index]
    for column in ("infer_ms", "paper_ms", "train_ms", "infer_mib", "train_mib", "paper_gpu_gb"):
        if column in table:
            table[f"{column}_of_sigma"] = table[column] / table[column].reindex(base).to_numpy()
    return table


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Inference and training of every model, and of SIGMA's layers, on every data set at hand."""
    cases: list[Case] = []
    for name, _, path in (pair.partition("=") for pair in options.data):
        overrides = [f"dataset={name}"]
        if path:
            overrides.append(f"dataset.path='{Path(path).resolve()}'")
        if reason := measure.isolated(prepare, overrides):
            print(f"{name} is skipped: {reason}", flush=True)
            continue
        layers = [f"sigma x {n}" for n in (1, 2, 4)] if name == LAYERED else []
        for table, models in (("3, 7", options.models), ("5", layers)):
            axes = {"dataset": [name], "model": models, "stage": ["inference", "training"]}
            cases += measure.grid(options, **axes, overrides=[overrides], table=[table])
    return cases


def main() -> None:
    arguments = measure.parser(__doc__, 3.0)
    arguments.add_argument("--data", nargs="+", required=True, metavar="NAME=PATH")
    arguments.add_argument("--models", nargs="+", default=MODELS)
    options = arguments.parse_args()
    table = measure.medians(cases_of(options), one, options.repeats, KEY, COLUMNS)
    table = table.rename(columns={"low": "infer_low", "high": "infer_high"})
    table = relative(table.join(printed(), how="left"))
    # On the CPU it is not what the paper calls memory.
    where = "gpu_mib" if options.device.type == "cuda" else "process_mib"
    table.columns = table.columns.str.replace(r"(?<=infer_|train_)mib", where, regex=True)
    measure.keep(table, "tables_efficiency", options.out, options.device)


if __name__ == "__main__":
    main()
