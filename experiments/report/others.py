"""The tables around the results: data, users, one user, searches, efficiency, runs."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.grid import choices
from experiments.paper.values import PAPER_SET, lookup, paper
from experiments.report.lines import lines, model_label, vintage_notes
from experiments.report.page import DASH, Table, count, form, number
from experiments.rows import COUNTS, METRICS, check_protocol, full_ranks, ranks_of
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


def datasets(rows: pd.DataFrame) -> Table:
    """Table 1: what the paper says and what the runs counted."""
    printed = paper("table1_datasets").set_index("dataset")
    counted = {
        "data set": "dataset",
        "users": "data.users",
        "items": "data.items",
        "interactions": "data.interactions",
        "per user": "data.average_length",
        "sparsity": "data.sparsity",
        "training samples": "data.train_samples",
        "test samples": "data.test_samples",
    }
    ours = rows.drop_duplicates(["dataset", *DATA]).reindex(columns=list(counted.values()))
    ours.columns = list(counted)
    absent = [name for name in printed.index if name not in set(ours["data set"])]
    frame = pd.concat([ours, pd.DataFrame({"data set": absent})], ignore_index=True)
    for name in ("items", "users"):
        frame.insert(1, f"{name}, paper", frame["data set"].map(printed[name]) - 1)
    order = {name: at for at, name in enumerate(printed.index)}
    key = frame["data set"].map(lambda name: (order.get(name, len(order)), name))
    frame = frame.iloc[key.argsort(kind="stable")]
    return Table(
        "table1_datasets",
        "Table 1: data sets",
        "Counts after filtering. The paper's users and items are less the padding row its table "
        "counts.",
        frame,
        dict.fromkeys(frame.columns[1:], count)
        | {"per user": form("{:.2f}"), "sparsity": form("{:.2%}")},
        {},
        vintage_notes(rows),
        [f"python train.py -m experiment=table1_datasets dataset={name}" for name in absent],
    )


def group_counts(row: dict[str, Any], later: int = 0) -> dict[str, int] | None:
    """Test users of each group of the paper; None without ranks.

    Args:
        later: items less in the history: 1 counts validation samples.
    """
    ranks = ranks_of(row["run_id"], row["ranks"]) if isinstance(row["ranks"], Path) else None
    if ranks is None:
        return None
    lengths = ranks["history_length"] - later
    return {
        name: int(((lengths >= low) & (lengths < high)).sum())
        for name, (low, high) in GROUPS.items()
    }


def user_groups(rows: pd.DataFrame) -> Table:
    """Table 8: users by length of history, of validation and test."""
    printed = paper("table8_user_groups").set_index("dataset")
    # Other filters and splits have other users; the most frequent counts, validation's by its last
    # item but one.
    ranked = rows[rows["ranks"].notna() & (rows["dataset.split"] == '"leave_one_out"')]
    keys = ["dataset.user_bounds", "dataset.item_bounds", "dataset.drop_duplicates", *DATA]
    first, notes = {}, []
    for dataset, group in ranked.groupby("dataset"):
        filters = group[keys].astype(str).agg(" ".join, axis=1)
        usual = group[filters == filters.value_counts().index[0]]
        first[dataset] = usual.iloc[0].to_dict()
        if len(usual) < len(group):
            left_out = len(group) - len(usual)
            notes.append(f"{dataset}: {left_out} runs of other filters or data are not counted.")
    records = []
    for name in dict.fromkeys([*printed.index, *sorted(first)]):
        told = printed.loc[name].tolist() if name in printed.index else [None] * 3
        record = {"data set": name} | dict(zip((f"{g}, paper" for g in GROUPS), told, strict=True))
        for split, later in (("valid", 1), ("test", 0)):
            counts = (group_counts(first[name], later) if name in first else None) or {}
            record |= {f"{group}, {split}": counts.get(group) for group in GROUPS}
        records.append(record)
    frame = pd.DataFrame(records)
    absent = [name for name in printed.index if name not in first]
    return Table(
        "table8_groups",
        "Table 8: users by length of history",
        "Short [0, 5), medium [5, 20), long [20, …) items before the target. The paper's Yelp "
        "counts are those of the validation split.",
        frame,
        dict.fromkeys(frame.columns[1:], count),
        {},
        [*notes, *vintage_notes(pd.DataFrame(first.values(), columns=rows.columns))],
        [f"python train.py -m experiment=table1_datasets dataset={name}" for name in absent],
    )


def case_studies(rows: pd.DataFrame, dataset: str) -> list[Table]:
    """Table 6: one user under each model, by the ranks of one seed; two users, each by a rule."""
    words = [f"dataset={dataset}", "seed=2020"]
    compared = [
        line
        for experiment in ("table6_case_study", "yardsticks model=vmis_knn")
        for line in lines(rows, model_label, *f"experiment={experiment}".split(), *words)
    ]
    ranks, means = {}, {}
    for line in compared:
        for row in line.rows[line.rows["seed"] == 2020].to_dict("records"):
            table = full_ranks(row)
            if table is not None:
                ranks[line.label] = table.set_index("user")
                means[line.label] = row
    if "sigma" not in ranks or len(ranks) < 3:
        return []
    check_protocol(f"Table 6, {dataset},", pd.DataFrame(means.values()))
    rank = pd.DataFrame({m: t["greater"] + 1 + t["ties"] / 2 for m, t in ranks.items()})
    gain = pd.DataFrame({m: gains(t, "mrr@1000000") for m, t in ranks.items()}, index=rank.index)
    ahead = gain["sigma"] - gain.drop(columns="sigma").max(axis=1)
    length = ranks["sigma"]["history_length"]
    median = length.sort_values().iloc[(len(length) - 1) // 2]
    typical = length.index[length == median]
    users = {
        min(
            typical, key=lambda user: (not user.isdigit(), int(user) if user.isdigit() else user)
        ): (
            f"chosen by rule, not by outcome: of the {len(typical)} test users with a history of "
            f"median length ({median}), the one of the lowest id"
        ),
        ahead.idxmax(): (
            f"picked for its outcome, not typical: of all {len(length):,} test users the one for "
            f"whom SIGMA gains most over the best of the others, {ahead.max():+.3f} in 1 / rank. Of "
            f"all of them, SIGMA is ahead of every other model for {(ahead > 0).mean():.1%} and "
            f"behind the best of them for {(ahead < 0).mean():.1%}"
        ),
    }
    tables = []
    for user, why in users.items():
        records: list[dict[str, Any]] = []
        for model, table in ranks.items():
            own = {m.upper(): float(gains(table.loc[[user]], m)[0]) for m in METRICS}
            every = {f"{m.upper()} of all users": means[model][f"test/{m}"] for m in METRICS}
            place = rank.loc[user, model]
            records.append({"model": model, "rank of the next item": place, **own, **every})
        frame = pd.DataFrame(records)
        tables.append(
            Table(
                f"table6_{dataset}_{user}",
                f"Table 6, case study: user {user} of {dataset}",
                f"User {user}, {why}. Ranks are the true next item's among all items, expected "
                "over the order of ties; seed 2020.",
                frame,
                {"rank of the next item": form("{:,g}")} | dict.fromkeys(frame.columns[2:], number),
            )
        )
    return tables


def tuned(rows: pd.DataFrame) -> list[Table]:
    """The best trial of each model's search, by validation, a table a data set.

    Raises:
        MixedProtocolError: searches of different numbers of trials, or other protocols.
    """
    tables = []
    trials = rows[rows["tuning trials"] > 0]
    for dataset, group in trials.groupby("dataset"):
        best = group.sort_values("val/ndcg@10").groupby("model").tail(1).sort_values("model")
        check_protocol(f"The searches on {dataset}", best)
        columns = {f"{m.upper()}, {s}": f"{s}/{m}" for s in ("val", "test") for m in METRICS}
        frame = pd.DataFrame(
            {
                "model": best["model"],
                "trials with a row": best["model"].map(group["model"].value_counts()),
                "trials asked": best["tuning trials"],
                **{name: best[metric] for name, metric in columns.items()},
                "run": best["run_id"],
            }
        )
        places = frame[list(columns)].rank(ascending=False, method="dense")
        names = {1.0: "best", 2.0: "second"}
        tables.append(
            Table(
                f"tuned_{dataset}",
                f"Every model searched alike: {dataset}",
                "The trial of the best validation NDCG@10 of each model's search. Trials that were "
                "pruned have no row.",
                frame,
                dict.fromkeys(columns, number),
                {name: places[name].map(names).fillna("").tolist() for name in columns},
            )
        )
    return tables


def _speed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with ``seconds`` an epoch and ``mebibytes`` at the peak, and all efficiency columns."""
    measured = ("train_seconds", "train_samples_per_second", "peak_memory_bytes")
    names = {f"efficiency.{name}": name for name in measured}
    rows = rows.reindex(columns=list(dict.fromkeys([*rows.columns, *names]))).rename(columns=names)
    return rows.assign(
        seconds=rows["train_seconds"].astype(float) / rows["epochs"].astype(float).clip(lower=1),
        mebibytes=rows["peak_memory_bytes"].astype(float) / 2**20,
    )


def context(rows: pd.DataFrame) -> list[Table]:
    """What a longer context brings (MambaRec's question), a table a data set.

    Raises:
        MixedProtocolError: rows that differ in more than the context's length.
    """
    tables = []
    for dataset, group in rows[rows["group"].isin(ASIDE_LENGTHS)].groupby("dataset"):
        group = _speed(group).assign(length=group["dataset.max_length"].astype(int))
        for length, same in group[group["group"] == "mambarec_context"].groupby("length"):
            check_protocol(f"Context {length} of {dataset}", same)
        group = group.sort_values(["model", "length", "seed"])
        alone = group["group"] == "mambarec_efficiency"
        frame = pd.DataFrame(
            {
                "model": group["model"],
                "context": group["length"],
                "seed": group["seed"],
                **{m.upper(): group.get(f"test/{m}") for m in METRICS},
                "training, seconds an epoch": group["seconds"],
                "peak, MiB": group["mebibytes"],
                "what": alone.map({True: "speed alone", False: ""}),
            }
        )
        tables.append(
            Table(
                f"mambarec_context_{dataset}",
                f"Length of the context: {dataset}",
                "Test among sampled negatives, as RecMamba's and MambaRec's authors rank; not to "
                "be compared with full rankings.",
                frame,
                dict.fromkeys((m.upper() for m in METRICS), number)
                | {
                    "context": count,
                    "training, seconds an epoch": form("{:,.1f}"),
                    "peak, MiB": count,
                },
            )
        )
    return tables


ASIDE_LENGTHS = ("mambarec_context", "mambarec_efficiency")


def efficiency(path: Path) -> list[Table]:
    """Tables 3, 5 and 7 from the benchmark's file, if it is there."""
    if not path.is_file():
        return []
    measured = pd.read_csv(path)
    names = {
        "table": "table",
        "dataset": "data set",
        "model": "model",
        "infer_ms": "ranking, ms",
        "infer_ms_of_sigma": "of SIGMA's",
        "train_ms": "training, ms",
        "train_process_mib": "training, MiB",
        "paper_ms": "paper, ms",
        "paper_ms_of_sigma": "paper, of SIGMA's",
        "paper_gpu_gb": "paper, GB",
    }
    frame = measured[list(names)].rename(columns=names)
    two = dict.fromkeys(("of SIGMA's", "paper, of SIGMA's", "paper, GB"), form("{:.2f}"))
    sets = dict.fromkeys(measured["dataset"])
    absent = [
        name
        for name in paper("table1_datasets")["dataset"]
        if name not in {*sets, *map(PAPER_SET.get, sets)}
    ]
    data = " ".join(f"{name}=" for name in [*sets, *absent])
    command = f"python -m experiments.benchmarks.efficiency --data {data} --out results/benchmarks"
    return [
        Table(
            "table3_efficiency",
            "Tables 3, 5 and 7: efficiency",
            "Milliseconds for a batch (4,096 users ranked; 2,048 samples learned) on this machine "
            "and, the paper's, on an NVIDIA L4: compare the ratios to SIGMA. "
            "games_2014 stands beside the paper's Games, which is that of 2018. "
            f"{', '.join(sorted(set(measured['stamp'])))}.",
            frame,
            dict.fromkeys(list(frame)[3:], count) | two,
            missing=[f"{command}  # {', '.join(absent)} are missing"] * bool(absent),
        )
    ]


def short_runs(rows: pd.DataFrame) -> list[Table]:
    """Tables 3 and 7 as ``experiment=table3_efficiency`` measures them: runs of three epochs."""
    group = _speed(rows[rows["group"] == "table3"]).sort_values(["dataset", "model"])
    names = {
        "dataset": "data set",
        "model": "model",
        "train_samples_per_second": "training samples/s",
        "seconds": "seconds an epoch",
        "mebibytes": "peak, MiB",
        "device": "hardware",
        "run_id": "run",
    }
    frame = group[list(names)].rename(columns=names)
    told = "Whole runs of three epochs, loggers and validation included."
    formats = {"training samples/s": count, "seconds an epoch": form("{:,.1f}"), "peak, MiB": count}
    return [Table("table3_runs", "Tables 3 and 7: short runs", told, frame, formats)] * bool(
        len(frame)
    )


def not_run(present: Collection[tuple[str, str]]) -> list[Table]:
    """The paper's experiments of which there is no table yet, each with its command.

    Args:
        present: experiments and data sets that have one; it lists its own missing runs.
    """
    records = []
    for experiment in PAPERS:
        values = choices(experiment)
        runs = math.prod(len(options) for key, options in values.items() if key != "dataset")
        records += [
            {"experiment": experiment, "data set": dataset, "runs": runs}
            for dataset in values["dataset"]
            if (experiment, dataset) not in present
        ]
    commands = [
        f"python train.py -m experiment={r['experiment']} dataset={r['data set']}" for r in records
    ]
    told = "Experiments of which there are too few rows for a table."
    table = Table("not_run", "Not run yet", told, pd.DataFrame(records), {}, {}, [], commands)
    return [table] if records else []


def runs(rows: pd.DataFrame) -> Table:
    """Every run behind the numbers."""
    best = rows["best_epoch"].map(form("{:.0f}"))
    commit = rows["commit"].astype(str).str[:7] + rows["dirty"].map({True: "+", False: ""})
    frame = pd.DataFrame(
        {
            "run": rows["run_id"],
            "seed": rows["seed"],
            "best epoch": best.where(best == DASH, best + " of " + rows["epochs"].astype(str)),
            "training, s": _speed(rows)["train_seconds"],
            "commit": commit.where(rows["commit"].notna(), DASH),
            "hardware, threads": rows["device"]
            + rows["threads"].map(form(", {:.0f}")).replace(DASH, ""),
            "torch": rows["torch"],
            "finished": rows["finished"].astype(str).str[:10],
        }
    )
    told = "A commit with + had changes that were not committed."
    return Table("runs", "Every run", told, frame, {"training, s": count})
