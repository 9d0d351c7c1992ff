"""What the paper prints, its authors' logs say and others measured."""

from functools import cache
from pathlib import Path

import pandas as pd

PAPER = Path(__file__).parent / "paper"


@cache
def paper(name: str) -> pd.DataFrame:
    """One of the files in ``experiments/paper/``."""
    return pd.read_csv(PAPER / f"{name}.csv", comment="#")


def lookup(frame: pd.DataFrame, column: str, **where: object) -> float | None:
    """The one value of a paper's file, None where it has none (the last of several)."""
    for key, value in where.items():
        frame = frame[frame[key] == value]
    values = frame[column].dropna()
    return float(values.iloc[-1]) if len(values) else None


def logged(dataset: str, model: str, metric: str, split: str) -> float | None:
    """The authors' log; its Mamba4Rec has one layer, its SIGMA is the released code."""
    name = {"linrec": "linrec (printed as sasrec in table 2)"}.get(model, model)
    frame = paper("authors_log")
    if (dataset, model) == ("beauty", "sigma"):
        frame = frame[frame["notebook_cell"] == 66]  # the run Table 2 prints
    return lookup(frame, f"{split}_{metric}", dataset=dataset, model=name)
