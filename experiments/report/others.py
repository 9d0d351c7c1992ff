"""The tables around the results: data, users, one user, efficiency, runs."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.grid import choices
from experiments.paper.values import paper
from experiments.ranks import full_ranks
from experiments.report.lines import all_rows, lines, missing, vintage_notes
from experiments.report.page import SPECS, Table
from experiments.report.tables import COMPARISONS
from experiments.rows import COUNTS, METRICS, PROTOCOL, check_protocol
from experiments.significance import gains

# Experiments with tables, but for those of Tables 1 and 8, which list what they lack.
TABLES = (
    *(*COMPARISONS, "strong", "parts", "table6_case_study", "table3_efficiency"),
    *(name for comparison in COMPARISONS.values() for name in comparison.beside),
)
MEASURED = ("table3", "mambarec_efficiency", "mambarec_context")  # groups of runs
GROUPS = {"short": (0, 5), "medium": (5, 20), "long": (20, math.inf)}
DATA = [f"data.{name}" for name in COUNTS]


def datasets(rows: pd.DataFrame) -> Table:
    """Table 1: what the paper says and what the runs counted."""
    printed = paper("table1_datasets").set_index("dataset")
    absent = [name for name in printed.index if name not in set(rows["dataset"])]
    unique = rows.drop_duplicates(["dataset", *DATA])
    frame = pd.concat([unique, pd.DataFrame({"dataset": absent})], ignore_index=True)
    for name in ("users", "items"):  # less the padding row that the paper counts
        frame[f"paper.{name}"] = frame["dataset"].map(printed[name]) - 1
    place = frame["dataset"].map({name: at for at, name in enumerate(printed.index)})
    frame = frame.assign(place=place).sort_values(["place", "dataset"], kind="stable")
    missing = _counting(absent)
    return Table.of("table1_datasets", frame, notes=vintage_notes(rows), missing=missing)


def _counting(absent: Collection[str]) -> list[str]:
    return [f"python train.py -m experiment=table1_datasets dataset={name}" for name in absent]


def group_counts(row: Mapping[Any, Any], later: int) -> dict[str, int]:
    """Users of each group of the paper with ``later`` items less in the history: 0 counts the test,
    1 validation; nothing without ranks.
    """
    ranks = full_ranks(row)
    if ranks is None:
        return {}
    lengths = ranks["history_length"] - later
    return {g: int(lengths.between(low, high - 1).sum()) for g, (low, high) in GROUPS.items()}


def user_groups(rows: pd.DataFrame) -> Table:
    """Table 8: users by length of history, of validation and test."""
    printed = paper("table8_user_groups").set_index("dataset")
    # Other filters and splits have other users; the most frequent counts, validation's by its last
    # item but one.
    ranked = rows[rows["ranks"].notna() & (rows["dataset.split"] == '"leave_one_out"')]
    keys = ["dataset.user_bounds", "dataset.item_bounds", "dataset.duplicates", *DATA]
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
        values = printed.loc[name] if name in printed.index else [None] * len(GROUPS)
        columns = {"paper": dict(zip(GROUPS, values, strict=True))}
        for split, later in (("valid", 1), ("test", 0)):
            columns[split] = group_counts(first[name], later) if name in first else {}
        cells = {f"{g}, {c}": counts.get(g) for c, counts in columns.items() for g in GROUPS}
        records.append({"data set": name} | cells)
    missing = _counting([name for name in printed.index if name not in first])
    return Table.of("table8_groups", pd.DataFrame(records), notes=notes, missing=missing)


def case_studies(rows: pd.DataFrame, dataset: str) -> list[Table]:
    """Table 6: one user under each model, by the ranks of seed 2020."""
    users = SPECS["table6"]["users"].get(dataset)
    if not users:
        return []
    words = [f"dataset={dataset}", "seed=2020"]
    compared = lines(rows, "experiment=table6_case_study", *words)
    compared += lines(rows, "experiment=yardsticks", "model=vmis_knn", *words)
    runs = [row for line in compared for row in line.rows.to_dict("records") if row["seed"] == 2020]
    check_protocol(f"Table 6, {dataset},", pd.DataFrame(runs, columns=rows.columns))
    tables = []
    for user, why in users.items():
        records = []
        for run in runs:
            ranks = full_ranks(run)
            one = pd.DataFrame() if ranks is None else ranks[ranks["user"] == user]
            if len(one) == 1:
                place = one["greater"].iloc[0] + 1 + one["ties"].iloc[0] / 2
                records.append(
                    {"model": run["label"], "rank of the next item": place}
                    | {m.upper(): gains(one, m)[0] for m in METRICS}
                    | {f"{m.upper()} of all users": run[f"test/{m}"] for m in METRICS}
                )
        if records:
            caption = f"User {user}, {why}. Ranks among all items, expected over the order of ties."
            more = {"name": f"table6_{dataset}_{user}", "caption": caption}
            table = Table.of("table6", pd.DataFrame(records), f"{dataset}, user {user}", **more)
            tables.append(table)
    return tables


def aside(rows: pd.DataFrame) -> list[Table]:
    """Runs for their speed, and what a longer context brings (MambaRec's question).

    Raises:
        MixedProtocolError: rows that differ in more than the context's length.
    """
    measured = ["efficiency.train_seconds", "efficiency.peak_memory_bytes"]
    seconds, memory = rows.reindex(columns=measured).astype(float).to_numpy().T
    rows = rows.assign(
        length=rows["dataset.max_length"].astype(float),
        seconds=seconds / rows["epochs"].clip(lower=1),
        mebibytes=memory / 2**20,
    ).sort_values(["model", "length", "seed"])
    tables = []
    groups = rows[rows["group"].isin(MEASURED)].groupby(["group", "dataset"])
    for (group, dataset), members in groups:
        for length, same in members.groupby("length") if group == "mambarec_context" else ():
            check_protocol(f"Context {length:.0f} of {dataset}", same)
        if group.startswith("mambarec"):
            members = _beside(members, rows, group)
        tables.append(Table.of(group, members, dataset))
    return tables


def _beside(members: pd.DataFrame, rows: pd.DataFrame, group: str) -> pd.DataFrame:
    """Runs of a group with columns ``paper.…`` of what MambaRec's readme prints, and ``full.…`` of
    the run among all items that differs in nothing but that.
    """
    ranking = {"evaluation.monitor", "dataset.mask_history"}
    protocol = {*PROTOCOL} & {*rows} - ranking
    keys = ["dataset", "setting", "seed", *DATA, *sorted(protocol)]
    values = [f"test/{name}{metric}" for name in ("", "unseen/") for metric in METRICS]
    runs = rows.reindex(columns=[*keys, *values])
    runs[keys] = runs[keys].astype(object).fillna("")  # a setting that neither has is the same
    full = runs.dropna(subset="test/hr@10").drop_duplicates(keys).set_index(keys)
    of_all = runs.loc[members.index, keys].join(full, on=keys)[values]
    printed = paper(group).set_index(["dataset", "model", "context"]).add_prefix("paper.")
    named = ["dataset", "model", "length"]
    return members.join(of_all.add_prefix("full.")).join(printed, on=named)


def echomamba4rec(rows: pd.DataFrame) -> list[Table]:
    """What is printed of EchoMamba4Rec, a line a data set, and ours; nothing without any of ours.

    Raises:
        MixedProtocolError: rows of one data set that must not stand in one line.
    """
    records, commands, rows_of_ours = [], [], 0
    for dataset, model, metric, value in paper("echomamba4rec").itertuples(index=False):
        words = ["experiment=echomamba4rec", f"dataset={dataset}"]
        record = {"data set": dataset, "metric": metric.upper(), f"{model}, printed": value}
        if dataset in set(rows["dataset"]):  # composing an experiment's runs takes seconds
            compared = lines(rows, *words)
            check_protocol(f"EchoMamba4Rec's benchmark, {dataset},", all_rows(compared))
            for line in compared:
                record |= line.spread(line.label, f"test/{metric}")
                rows_of_ours += len(line.rows)
            commands += missing(words, "model", compared, compared)
        else:
            commands.append(f"python train.py -m {' '.join(words)}")
        records.append(record)
    table = Table.of("echomamba4rec", pd.DataFrame(records), missing=commands)
    return [table] if rows_of_ours else []


def efficiency(path: Path) -> list[Table]:
    """Tables 3, 5 and 7 from the benchmark's file, if it is there."""
    if not path.is_file():
        return []
    measured = pd.read_csv(path)
    notes = [f"{', '.join(sorted(set(measured['stamp'])))}."]
    return [Table.of("table3_efficiency", measured, notes=notes)]


def not_run(present: Collection[tuple[str, str]]) -> list[Table]:
    """Experiments of which there is no table yet, each with its command; one that is
    ``present`` lists its missing runs itself.
    """
    records, commands = [], []
    for experiment in TABLES:
        values = choices(experiment)
        runs = math.prod(len(options) for key, options in values.items() if key != "dataset")
        for dataset in values["dataset"]:
            if (experiment, dataset) not in present:
                records.append({"experiment": experiment, "data set": dataset, "runs": runs})
                commands.append(f"python train.py -m experiment={experiment} dataset={dataset}")
    return [Table.of("not_run", pd.DataFrame(records), missing=commands)] if records else []


def runs(rows: pd.DataFrame) -> Table:
    """Every run behind the numbers."""
    best = rows["best_epoch"].map("{:.0f}".format, na_action="ignore").fillna("–")
    threads = rows["threads"].map(", {:.0f}".format, na_action="ignore").fillna("")
    dirty = rows["dirty"].map({True: "+", False: ""})
    rows = rows.assign(
        best=best + " of " + rows["epochs"].astype(str),
        commit=rows["commit"].str[:7] + dirty,
        hardware=rows["device"] + threads,
        day=rows["finished"].str[:10],
    )
    return Table.of("runs", rows, notes=rows.attrs.get("notes", []))
