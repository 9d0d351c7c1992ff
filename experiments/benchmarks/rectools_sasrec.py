"""Recommendations of RecTools' SASRec: run by ``recommend --peer`` in RecTools' environment.

    python rectools_sasrec.py HISTORIES BASE K DEVICE

HISTORIES is CSV with the columns user, item and timestamp, whole numbers. The model learns of the
first BASE users in one step of 8, which costs little memory and tells it all items; then it
recommends K items to all users. Prints one line of JSON.
"""

import json
import resource
import sys
import time
import warnings
from typing import Any

import pandas as pd
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

SIZES: dict[str, Any] = {"n_factors": 64, "n_blocks": 2, "n_heads": 8, "session_max_len": 50}


def one_step() -> Trainer:
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(max_steps=1, enable_checkpointing=False, accelerator="cpu", **silent)


def main() -> None:
    path, base, k, device = sys.argv[1:]
    warnings.simplefilter("ignore")
    names = {"user": Columns.User, "item": Columns.Item, "timestamp": Columns.Datetime}
    frame = pd.read_csv(path).rename(columns=names)
    frame[Columns.Weight] = 1.0
    frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="s")
    dataset, users = Dataset.construct(frame), frame[Columns.User].unique()
    model = SASRecModel(**SIZES, batch_size=8, get_trainer_func=one_step)
    model.recommend_torch_device = device
    model.fit(Dataset.construct(frame[frame[Columns.User] < int(base)]))
    model.recommend(users[:100], dataset, k=int(k), filter_viewed=True)
    start = time.perf_counter()
    lines = model.recommend(users, dataset, k=int(k), filter_viewed=True)
    seconds = time.perf_counter() - start
    assert len(lines) == len(users) * int(k)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_mib": peak / 1024}))


if __name__ == "__main__":
    main()
