"""The efficiency tables of SIGMA's paper (3, 5 and 7), measured here beside the paper's numbers.

    python -m experiments.benchmarks.efficiency --data beauty=beauty.txt ml_1m=ml-1m.txt

A data set is named as in ``conf/dataset``, with its raw file; ``name=`` without one looks where
``train.py`` does. Data and models are built as ``train.py`` builds them, with its deterministic
algorithms and the paper's dropout on ML-1M (there N = 200, elsewhere 50). Each measurement is a
process of its own.

Inference is the evaluation step (states, scores of all items, ranks) on a batch of 4,096 test
users; smaller data sets are scaled to so many. Training is a whole step (forward, loss, backward,
optimizer) on a batch of the config, each of a few batches in turn. Batches are made beforehand.
Memory is the peak from building the data to the last step: of the device (``gpu_mib``), or on the
CPU of this process above its imports (``process_mib``). The paper's is of one NVIDIA L4.

As hardware differs, the columns ``…_of_sigma`` give each model as a multiple of SIGMA on the same
data (Table 5: of its single layer), ours and the paper's. The paper's Games is the set of 2018.
"""

import itertools
import os
import statistics
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.benchmarks.measure import (
    Case,
    Memory,
    built,
    composed,
    device,
    keep,
    parser,
    rounds,
    seconds,
    summary,
)
from experiments.canvas import picture
from experiments.paper.values import PAPER_SET, paper

MODELS = ["sasrec", "fearec", "linrec", "mamba4rec", "echo", "sigma"]
SETTINGS = {"ml_1m": ["model.dropout=0.2"]}  # conf/experiment/sigma_ml_1m.yaml's, for all models
KEY = ["table", "dataset", "model"]
USERS = 4096
BATCHES = 8  # of training: their lengths differ, and so does their time


def one(case: Case) -> Case:
    """Milliseconds and peak MiB of one model's inference or training."""
    import torch

    on = device(case["device"])
    config = composed(f"model={case['model']}", *case["overrides"])
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as Lightning sets it
    torch.use_deterministic_algorithms(config.trainer.deterministic)
    torch.set_float32_matmul_precision(config.matmul_precision)
    memory = Memory(on)
    data, task = built(config, on)

    def spent(step: Any) -> float:
        return 1e3 * statistics.median(seconds(step, on, case["seconds"], case["steps"]))

    if case["stage"] == "inference":
        task.eval()
        batch = next(iter(data.test_dataloader()))
        with torch.inference_mode():
            ms = spent(lambda: task.evaluation_step("test", batch))
        return {"infer_ms": ms * USERS / len(batch.users), "infer_mib": memory.mib()}
    if not task.trained:
        return {}
    optimizer = task.configure_optimizers()
    batches = itertools.cycle(list(itertools.islice(data.train_dataloader(), BATCHES)))

    def step() -> None:
        optimizer.zero_grad()
        task.training_step(next(batches), 0).backward()
        optimizer.step()

    return {"train_ms": spent(step), "train_mib": memory.mib()}


def chosen(pair: str) -> tuple[str, list[str]] | None:
    """Data set and overrides of ``name=path``; None, with a line why, where it cannot be had.

    Whatever has to be processed is processed here, so that no measurement's memory holds it.
    """
    from hydra.utils import instantiate

    from sigma.errors import UserError

    name, _, path = pair.partition("=")
    overrides = [f"dataset={name}", *SETTINGS.get(name, [])]
    if path:
        if not Path(path).exists():
            print(f"{name} is skipped: there is no {path}.", flush=True)
            return None
        overrides.append(f"dataset.path='{Path(path).resolve()}'")
    try:
        data = instantiate(composed(*overrides).dataset, _convert_="all")
        data.prepare_data()
    except UserError as error:
        print(f"{name} is skipped: {error}", flush=True)
        return None
    return name, overrides


def printed() -> pd.DataFrame:
    """The paper's numbers by table ("3, 7" or "5"), dataset and model ("sigma x 2": layers)."""
    models = paper("table3_table7_efficiency")
    layers = paper("table5_layers")
    layers = layers.assign(model=[f"sigma x {n}" for n in layers["layers"]])
    both = pd.concat([models.assign(table="3, 7"), layers.assign(table="5")])
    both = both.drop_duplicates(KEY)  # Yelp is in both tables
    both = both.rename(
        columns={"inference_ms_per_batch": "paper_ms", "gpu_memory_gb": "paper_gpu_gb"}
    )
    beside = both[both["dataset"].isin(PAPER_SET.values())]
    names = {theirs: ours for ours, theirs in PAPER_SET.items()}
    both = pd.concat([both, beside.assign(dataset=beside["dataset"].map(names))])
    return both.set_index(KEY)[["paper_ms", "paper_gpu_gb"]]


def relative(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each column of time or memory as a multiple of SIGMA's, ``…_of_sigma``."""
    table = table.copy()
    base = [(kind, name, "sigma" if kind != "5" else "sigma x 1") for kind, name, _ in table.index]
    for column in ("infer_ms", "paper_ms", "train_ms", "infer_mib", "train_mib", "paper_gpu_gb"):
        if column in table:
            table[f"{column}_of_sigma"] = table[column] / table[column].reindex(base).to_numpy()
    return table


def draw(table: pd.DataFrame, path: Path) -> None:
    """Bars of inference time relative to SIGMA, ours and the paper's, a panel for each group."""
    groups = list(table.groupby(level=["table", "dataset"], sort=False))
    figure = picture(max(5.0, 4.2 * len(groups)), 3.8)
    for at, ((kind, name), part) in enumerate(groups):
        axes = figure.add_subplot(1, len(groups), at + 1)
        for side, column, label, colour in (
            (-0.2, "infer_ms_of_sigma", "here", "#0072B2"),
            (0.2, "paper_ms_of_sigma", "paper", "#E69F00"),
        ):
            places = [i + side for i in range(len(part))]
            bars = axes.bar(places, part[column].fillna(0), 0.4, label=label, color=colour)
            words = [f"{v:.2g}" if v == v else "–" for v in part[column]]
            axes.bar_label(bars, words, fontsize=7)
        axes.set_xticks(range(len(part)), part.index.get_level_values("model"), rotation=30)
        axes.axhline(1, color="black", linewidth=0.6)
        axes.set_title(f"{name} (Table {kind})", fontsize=10)
        if at == 0:
            axes.set_ylabel("inference time, of SIGMA's")
            axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--data", nargs="+", default=["simulated="], help="name=path of raw data")
    made.add_argument("--models", nargs="+", default=MODELS)
    made.add_argument("--layers", type=int, nargs="*", default=[1, 2, 4], help="of SIGMA, Table 5")
    made.add_argument("--layers_on", default="beauty", help="data set of Table 5")
    made.add_argument("--steps", type=int, default=3, help="least steps of a measurement")
    made.add_argument("--seconds", type=float, default=3.0, help="least time of a measurement")
    options = made.parse_args()
    on = device(options.device)
    had = [chosen(pair) for pair in options.data] if options.one is None else []
    cases: list[Case] = []
    for name, overrides in filter(None, had):
        rows = [("3, 7", model, model, overrides) for model in options.models]
        if name == options.layers_on:
            rows += [
                ("5", f"sigma x {n}", "sigma", [*overrides, f"model.num_layers={n}"])
                for n in options.layers
            ]
        cases += [
            {
                "table": table,
                "dataset": name,
                "label": label,
                "model": model,
                "stage": stage,
                "overrides": given,
                "device": on.type,
                "steps": options.steps,
                "seconds": options.seconds,
            }
            for table, label, model, given in rows
            for stage in ("inference", "training")
        ]
    frame = rounds("experiments.benchmarks.efficiency", cases, options.repeats, one, options.one)
    if "infer_ms" not in frame:
        raise SystemExit("Nothing could be measured; the reasons are above.")
    frame = frame.drop(columns="model").rename(columns={"label": "model"})
    table = summary(frame, KEY, "infer_ms").drop(columns=["steps", "seconds"])
    table = table.rename(columns={"low": "infer_low", "high": "infer_high"})
    table = relative(table.join(printed(), how="left"))
    # On the CPU it is not what the paper calls memory.
    where = "gpu_mib" if on.type == "cuda" else "process_mib"
    table.columns = table.columns.str.replace(r"(?<=infer_|train_)mib", where, regex=True)
    keep(table, "tables_efficiency", options.out, on)
    if options.out is not None:
        draw(table, options.out / "tables_efficiency.png")


if __name__ == "__main__":
    main()
