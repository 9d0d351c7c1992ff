"""A search's trials as a table, CSV, and the command line of the best.

    python -m experiments.search search/sasrec-beauty-s2020

Reads ``search.db`` of the sweep folder and writes ``trials.csv`` beside it: number, state
(COMPLETE, PRUNED, FAIL or RUNNING), value (best validation score; of a pruned trial its last),
epochs seen by the pruner, the trial's folder, one column a setting, and the reason of a failure.
While the search runs it shows how far it is.
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from sigma.runs.messages import explained
from sigma.search import load


def trials(study: Any) -> pd.DataFrame:
    """One line a trial, in the order they were drawn."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        rows.append(
            {
                "number": trial.number,
                "state": trial.state.name,
                "value": trial.value,
                "epochs": len(trial.intermediate_values),
                "folder": trial.user_attrs.get("folder"),
                **trial.params,
                "error": trial.user_attrs.get("error"),
            }
        )
    frame = pd.DataFrame(rows)
    return frame[[c for c in frame if c != "error"] + ["error"]] if rows else frame


def best_command(study: Any) -> str | None:
    """The best trial as a single run, or None before any has ended."""
    if not any(t.state.name == "COMPLETE" for t in study.get_trials(deepcopy=False)):
        return None
    return shlex.join(["python", "train.py", *study.best_trial.user_attrs["overrides"]])


def main() -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("folder", type=Path, help="the search's sweep folder")
    folder = made.parse_args().folder
    with explained():
        show(folder)


def show(folder: Path) -> None:
    """Print a search's trials and write them down.

    Raises:
        UserError: the folder holds no search.
    """
    study = load(folder)
    frame = trials(study)
    frame.to_csv(folder / "trials.csv", index=False)
    shown = frame.drop(columns="folder", errors="ignore")
    print(shown.to_string(index=False, na_rep="", float_format="{:.4g}".format))
    best = best_command(study)
    if best is None:
        print("No trial has ended well.")
    else:
        print(f"Best: trial {study.best_trial.number}, {study.best_value:.4f}")
        print(best)
    print(f"Table: {folder / 'trials.csv'}")


if __name__ == "__main__":
    main()
