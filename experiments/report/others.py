"""The tables around the results: data, users, one user, searches, efficiency, runs."""

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.grid import choices
from experiments.paper.values import PAPER_SET, paper
from experiments.ranks import full_ranks, ranks_of
from experiments.report.lines import best_marks, lines, model_label, vintage_notes
from experiments.report.page import DASH, Table, count, form, number
from experiments.rows import COUNTS, METRICS, check_protocol
from experiments.significance import gains

# Experiments on trained models; those that only count data have all of it in Tables 1 and 8.
PAPERS = (
    "table2_overall",
    "table4_ablation",
    "table5_layers",
    "figure5_flip_range",
    "table6_case_study",
    "table3_efficiency",
    "released_vs_paper",
)
GROUPS = {"short": (0, 5), "medium": (5, 20), "long": (20, math.inf)}
DATA = [f"data.{name}" for name in COUNTS]
Columns = dict[str, tuple[str, Callable[[float], str] | None]]
# Title -> column of the rows, and how its numbers are shown.
TESTED: Columns = {m.upper(): (f"test/{m}", number) for m in METRICS}
SPEED_SAID = "Whole runs, loggers and validation included."
MEASURED = {
    "table3": ("Tables 3 and 7: short runs", SPEED_SAID),
    "mambarec_efficiency": ("Speed by length of the context", SPEED_SAID),
    "mambarec_context": (
        "Length of the context",
        "Test among sampled negatives, as RecMamba's and MambaRec's authors rank; not to be "
        "compared with full rankings.",
    ),
}  # group of runs -> title and caption


def select(name: str, title: str, caption: str, rows: pd.DataFrame, columns: Columns) -> Table:
    """Columns of rows; one that the rows have not is empty."""
    frame = rows.reindex(columns=[column for column, _ in columns.values()])
    frame.columns = list(columns)
    formats = {name: shows for name, (_, shows) in columns.items() if shows is not None}
    return Table(name, title, caption, frame, formats)


def datasets(rows: pd.DataFrame) -> Table:
    """Table 1: what the paper says and what the runs counted."""
    printed = paper("table1_datasets").set_index("dataset")
    absent = [name for name in printed.index if name not in set(rows["dataset"])]
    frame = pd.concat(
        [rows.drop_duplicates(["dataset", *DATA]), pd.DataFrame({"dataset": absent})],
        ignore_index=True,
    )
    for name in ("users", "items"):  # less the padding row that the paper counts
        frame[f"paper.{name}"] = frame["dataset"].map(printed[name]) - 1
    order = {name: at for at, name in enumerate(printed.index)}
    key = frame["dataset"].map(lambda name: (order.get(name, len(order)), name))
    columns: Columns = {
        "data set": ("dataset", None),
        "users, paper": ("paper.users", count),
        "items, paper": ("paper.items", count),
        **{name: (f"data.{name}", count) for name in COUNTS},
        "per user": ("data.average_length", form("{:.2f}")),
        "sparsity": ("data.sparsity", form("{:.2%}")),
        "training samples": ("data.train_samples", count),
        "test samples": ("data.test_samples", count),
    }
    said = "Counts after filtering. The paper's users and items are less the padding row it counts."
    table = select(
        "table1_datasets",
        "Table 1: data sets",
        said,
        frame.iloc[key.argsort(kind="stable")],
        columns,
    )
    table.notes.extend(vintage_notes(rows))
    table.missing.extend(_counting(absent))
    return table


def _counting(absent: Collection[str]) -> list[str]:
    return [f"python train.py -m experiment=table1_datasets dataset={name}" for name in absent]


def group_counts(row: dict[str, Any], later: int = 0) -> dict[str, int]:
    """Test users of each group of the paper; nothing without ranks.

    Args:
        later: items less in the history: 1 counts validation samples.
    """
    ranks = ranks_of(row["run_id"], row["ranks"]) if isinstance(row["ranks"], Path) else None
    if ranks is None:
        return {}
    lengths = ranks["history_length"] - later
    return {
        name: int(lengths.between(low, high, inclusive="left").sum())
        for name, (low, high) in GROUPS.items()
    }


def user_groups(rows: pd.DataFrame) -> Table:
    """Table 8: users by length of history, of validation and test."""
    printed = paper("table8_user_groups").set_index("dataset")
    # Other filters and splits have other users; the most frequent counts, validation's by its last
    # item but one.
    ranked = rows[rows["ranks"].notna() & (rows["dataset.split"] == '"leave_one_out"')]
    keys = ["dataset.user_bounds", "dataset.item_bounds", "dataset.drop_duplicates", *DATA]
    first: dict[str, dict[str, Any]] = {}
    notes = vintage_notes(ranked)
    for dataset, group in ranked.groupby("dataset"):
        filters = group[keys].astype(str).agg(" ".join, axis=1)
        usual = group[filters == filters.value_counts().index[0]]
        first[str(dataset)] = usual.iloc[0].to_dict()
        if n := len(group) - len(usual):
            notes.append(f"{dataset}: {n} runs of other filters or data are not counted.")
    records = []
    for name in dict.fromkeys([*printed.index, *first]):
        record: dict[str, Any] = {"data set": name}
        values = printed.loc[name].tolist() if name in printed.index else [None] * 3
        record |= {f"{group}, paper": value for group, value in zip(GROUPS, values, strict=True)}
        for split, later in (("valid", 1), ("test", 0)):
            counts = group_counts(first[name], later) if name in first else {}
            record |= {f"{group}, {split}": counts.get(group) for group in GROUPS}
        records.append(record)
    frame = pd.DataFrame(records)
    return Table(
        "table8_groups",
        "Table 8: users by length of history",
        "Short [0, 5), medium [5, 20), long [20, …) items before the target. The paper's Yelp "
        "counts are those of the validation split.",
        frame,
        dict.fromkeys(frame.columns[1:], count),
        notes=notes,
        missing=_counting([name for name in printed.index if name not in first]),
    )


RULE = "chosen by rule, not by outcome: a history of median length, and the lowest id of those"
PICKED = "picked for its outcome, not typical: SIGMA gains most over the best of the others"
CASES = {
    "ml_100k": {"69": RULE, "238": PICKED},
    "ml_latest_small": {"86": RULE, "126": PICKED},
}  # data set -> user and why


def case_studies(rows: pd.DataFrame, dataset: str) -> list[Table]:
    """Table 6: one user under each model, by the ranks of seed 2020."""
    if dataset not in CASES:
        return []
    words = [f"dataset={dataset}", "seed=2020"]
    compared = lines(rows, model_label, "experiment=table6_case_study", *words)
    compared += lines(rows, model_label, "experiment=yardsticks", "model=vmis_knn", *words)
    runs = [row for line in compared for row in line.rows.to_dict("records") if row["seed"] == 2020]
    check_protocol(f"Table 6, {dataset},", pd.DataFrame(runs, columns=rows.columns))
    tables = []
    for user, why in CASES[dataset].items():
        records = []
        for run in runs:
            ranks = full_ranks(run)
            one = pd.DataFrame() if ranks is None else ranks[ranks["user"] == user]
            if len(one) == 1:
                place = one["greater"].iloc[0] + 1 + one["ties"].iloc[0] / 2
                records.append(
                    {"model": run["model"], "rank of the next item": place}
                    | {m.upper(): gains(one, m)[0] for m in METRICS}
                    | {f"{m.upper()} of all users": run[f"test/{m}"] for m in METRICS}
                )
        frame = pd.DataFrame(records)
        shows = {"rank of the next item": form("{:,g}")} | dict.fromkeys(frame.columns[2:], number)
        said = f"User {user}, {why}. Ranks are among all items, expected over the order of ties."
        title = f"Table 6, case study: user {user} of {dataset}"
        if records:
            tables.append(Table(f"table6_{dataset}_{user}", title, said, frame, shows))
    return tables


def tuned(rows: pd.DataFrame) -> list[Table]:
    """The best trial of each model's search, by validation, a table a data set.

    Raises:
        MixedProtocolError: searches of different numbers of trials, or other protocols.
    """
    metrics = {f"{m.upper()}, {s}": f"{s}/{m}" for s in ("val", "test") for m in METRICS}
    columns: Columns = {
        "model": ("model", None),
        "trials with a row": ("trials", count),
        "trials asked": ("tuning trials", count),
        **{name: (metric, number) for name, metric in metrics.items()},
        "run": ("run_id", None),
    }
    tables = []
    for dataset, group in rows[rows["tuning trials"] > 0].groupby("dataset"):
        best = group.sort_values("val/ndcg@10").groupby("model").tail(1).sort_values("model")
        check_protocol(f"The searches on {dataset}", best)
        best = best.assign(trials=best["model"].map(group["model"].value_counts()))
        said = (
            "The trial of the best validation NDCG@10 of each model's search. Trials that were "
            "pruned have no row."
        )
        title = f"Every model searched alike: {dataset}"
        table = select(f"tuned_{dataset}", title, said, best, columns)
        table.marks.update({name: best_marks(table.frame[name]) for name in metrics})
        tables.append(table)
    return tables


def aside(rows: pd.DataFrame) -> list[Table]:
    """Runs for their speed, and what a longer context brings (MambaRec's question).

    Raises:
        MixedProtocolError: rows that differ in more than the context's length.
    """
    columns: Columns = {
        "model": ("model", None),
        "context": ("length", count),
        "seed": ("seed", None),
        "training samples/s": ("efficiency.train_samples_per_second", count),
        "training, seconds an epoch": ("seconds", form("{:,.1f}")),
        "peak, MiB": ("mebibytes", count),
        "hardware": ("device", None),
        "run": ("run_id", None),
    }
    measured = rows.reindex(columns=["efficiency.train_seconds", "efficiency.peak_memory_bytes"])
    rows = rows.assign(
        length=rows["dataset.max_length"].astype(float),
        seconds=measured.iloc[:, 0].astype(float) / rows["epochs"].clip(lower=1),
        mebibytes=measured.iloc[:, 1].astype(float) / 2**20,
    ).sort_values(["model", "length", "seed"])
    tables = []
    for (group, dataset), members in rows[rows["group"].isin(MEASURED)].groupby(
        ["group", "dataset"]
    ):
        title, said = MEASURED[group]
        tested = TESTED if group == "mambarec_context" else {}
        for length, same in members.groupby("length") if tested else ():
            check_protocol(f"Context {length:.0f} of {dataset}", same)
        name = f"{group}_{dataset}"
        tables.append(select(name, f"{title}: {dataset}", said, members, columns | tested))
    return tables


def efficiency(path: Path) -> list[Table]:
    """Tables 3, 5 and 7 from the benchmark's file, if it is there."""
    if not path.is_file():
        return []
    measured = pd.read_csv(path)
    columns: Columns = {
        "table": ("table", None),
        "data set": ("dataset", None),
        "model": ("model", None),
        "ranking, ms": ("infer_ms", count),
        "of SIGMA's": ("infer_ms_of_sigma", form("{:.2f}")),
        "training, ms": ("train_ms", count),
        "training, MiB": ("train_process_mib", count),
        "paper, ms": ("paper_ms", count),
        "paper, of SIGMA's": ("paper_ms_of_sigma", form("{:.2f}")),
        "paper, GB": ("paper_gpu_gb", form("{:.2f}")),
    }
    said = (
        "Milliseconds for a batch (4,096 users ranked; 2,048 samples learned) on this machine and, "
        "the paper's, on an NVIDIA L4: compare the ratios to SIGMA. games_2014 stands beside the "
        f"paper's Games, which is that of 2018. {', '.join(sorted(set(measured['stamp'])))}."
    )
    title = "Tables 3, 5 and 7: efficiency"
    table = select("table3_efficiency", title, said, measured, columns)
    sets = dict.fromkeys(measured["dataset"])
    names = paper("table1_datasets")["dataset"]
    absent = [name for name in names if name not in {*sets, *map(PAPER_SET.get, sets)}]
    if absent:
        data = " ".join(f"{name}=" for name in [*sets, *absent])
        command = f"python -m experiments.benchmarks.efficiency --data {data}"
        table.missing.append(
            f"{command} --out results/benchmarks  # {', '.join(absent)} are missing"
        )
    return [table]


def not_run(present: Collection[tuple[str, str]]) -> list[Table]:
    """The paper's experiments of which there is no table yet, each with its command.

    Args:
        present: experiments and data sets that have one; it lists its own missing runs.
    """
    records, commands = [], []
    for experiment in PAPERS:
        values = choices(experiment)
        runs = math.prod(len(options) for key, options in values.items() if key != "dataset")
        for dataset in values["dataset"]:
            if (experiment, dataset) not in present:
                records.append({"experiment": experiment, "data set": dataset, "runs": runs})
                commands.append(f"python train.py -m experiment={experiment} dataset={dataset}")
    said = "Experiments of which there are too few rows for a table."
    table = Table("not_run", "Not run yet", said, pd.DataFrame(records), missing=commands)
    return [table] if records else []


def runs(rows: pd.DataFrame) -> Table:
    """Every run behind the numbers."""
    best = rows["best_epoch"].map(form("{:.0f}"))
    threads = rows["threads"].map(form(", {:.0f}")).replace(DASH, "")
    commit = rows["commit"].astype(str).str[:7] + rows["dirty"].map({True: "+", False: ""})
    rows = rows.assign(
        best=best.where(best == DASH, best + " of " + rows["epochs"].astype(str)),
        commit=commit.where(rows["commit"].notna(), DASH),
        hardware=rows["device"] + threads,
        day=rows["finished"].astype(str).str[:10],
    )
    columns: Columns = {
        "run": ("run_id", None),
        "seed": ("seed", None),
        "best epoch": ("best", None),
        "training, s": ("efficiency.train_seconds", count),
        "commit": ("commit", None),
        "hardware, threads": ("hardware", None),
        "torch": ("torch", None),
        "finished": ("day", None),
    }
    said = "A commit with + had changes that were not committed."
    return select("runs", "Every run", said, rows, columns)
