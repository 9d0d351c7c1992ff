"""What the paper prints, its authors' logs say and others measured."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

PAPER = Path(__file__).parent
# What the log's runs are here: its Mamba4Rec has one layer, its SIGMA and ECHO are their own code
# (what the paper's SIGMA is to be compared with, too).
LOGGED = {
    "mamba4rec_one_layer": "mamba4rec",
    "mamba4rec": None,
    "echo_sigma": "echo",
    "echo": None,
    "sigma_released": "sigma",
    "sigma_logged": "sigma",
    "linrec": "linrec (printed as sasrec in table 2)",
    # With RecBole's padding row as a class of the softmax, as theirs had it.
    "fearec, padding item": "fearec",
    "linrec, padding item": "linrec (printed as sasrec in table 2)",
    "echo_sigma, padding item": "echo",
}
# Of several runs, the one that Table 2 prints.
PRINTED_CELL = {("beauty", "sigma"): 66, ("games", "sigma"): 120}
# Another vintage, and the paper's set it stands beside where only time is measured.
PAPER_SET = {"games_2014": "games"}
LENGTHS = {"ml_1m": 200}  # the paper's; 50 elsewhere


@cache
def paper(name: str) -> pd.DataFrame:
    """One of the files in ``experiments/paper/``."""
    return pd.read_csv(PAPER / f"{name}.csv", comment="#")


@cache
def _texts(name: str) -> pd.DataFrame:
    return paper(name).astype(str)


def lookup(name: str, column: str, **where: object) -> float:
    """The one value of a file, NaN where it has none (the last of several)."""
    frame, texts = paper(name), _texts(name)
    if column not in frame:
        return float("nan")
    fits = np.ones(len(frame), dtype=bool)
    for key, value in where.items():
        fits &= (texts[key] == str(value)).to_numpy()
    values = frame[column][fits].dropna()
    return float(values.iloc[-1]) if len(values) else float("nan")


def logged(dataset: str, model: str, metric: str, split: str) -> float:
    """The authors' log of a model as it is called here; NaN of a run at another length."""
    name = LOGGED.get(model, model)
    where = {"dataset": dataset, "model": name, "max_len": LENGTHS.get(dataset, 50)}
    if (dataset, name) in PRINTED_CELL:
        where["notebook_cell"] = PRINTED_CELL[dataset, name]
    return lookup("authors_log", f"{split}_{metric}", **where)
