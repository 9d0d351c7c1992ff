"""The tables around the results: data, users, efficiency, case studies, runs."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.cells import count_cell, marks, number, number_cell, value_cell
from experiments.grid import CONF, asked
from experiments.ledger import COUNTS, METRICS, Ledger, Row, check_protocol
from experiments.lines import vintage_notes
from experiments.paper.values import PAPER_SET, paper
from experiments.render import Cell, Table

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


def datasets(ledger: Ledger) -> list[Table]:
    """Table 1: what the paper says and what the runs found."""
    printed = paper("table1_datasets").set_index("dataset")
    found: dict[tuple[str, int, int, int], Row] = {}
    for row in ledger.rows:
        data = row.content["data"]
        found.setdefault((row.dataset, data["users"], data["items"], data["interactions"]), row)
    names = [*printed.index, *sorted({key[0] for key in found} - set(printed.index))]
    rows = []
    for name in names:
        there = [row for key, row in found.items() if key[0] == name] or [None]
        for row in there:
            data = row.content["data"] if row else {}
            there_is = name in printed.index
            rows.append(
                [
                    Cell(name),
                    *(
                        count_cell(int(printed.loc[name, key]) - 1 if there_is else None)
                        for key in ("users", "items")
                    ),
                    *(count_cell(data.get(key)) for key in ("users", "items", "interactions")),
                    Cell(f"{data['average_length']:.2f}" if data else "–",
                         data.get("average_length")),
                    Cell(f"{data['sparsity']:.2%}" if data else "–", data.get("sparsity")),
                    *(count_cell(data.get(f"{split}_samples")) for split in ("train", "test")),
                ]
            )  # fmt: skip
    absent = [name for name in printed.index if name not in {key[0] for key in found}]
    return [
        Table(
            "table1_datasets", "Table 1: data sets",
            "Counts after filtering. The paper's users and items are less the padding row its "
            "table counts.",
            ["data set", "users, paper", "items, paper", "users", "items", "interactions",
             "per user", "sparsity", "training samples", "test samples"],
            rows, vintage_notes(ledger.rows),
            [f"python train.py -m experiment=table1_datasets dataset={name}" for name in absent],
        )
    ]  # fmt: skip


def not_run(shown: Collection[tuple[str, str]]) -> list[Table]:
    """The paper's experiments of which there is no table yet, each with its command.

    Args:
        shown: experiments and data sets that have one; it lists its own missing runs.
    """
    rows, commands = [], []
    for experiment in PAPERS:
        choices = asked(experiment)
        count = math.prod(len(values) for key, values in choices.items() if key != "dataset")
        for dataset in choices["dataset"]:
            if (experiment, dataset) not in shown:
                rows.append([Cell(experiment), Cell(dataset), count_cell(count)])
                commands.append(f"python train.py -m experiment={experiment} dataset={dataset}")
    told = "Experiments of which there are too few rows for a table."
    columns = ["experiment", "data set", "runs"]
    return [Table("not_run", "Not run yet", told, columns, rows, [], commands)] if rows else []


GROUPS = {"short": (0, 5), "medium": (5, 20), "long": (20, 10**9)}


def group_counts(row: Row, later: int = 0) -> dict[str, int] | None:
    """Test users of each group of the paper; None without ranks.

    Args:
        later: items less in the history: 1 counts validation samples.
    """
    if row.ranks is None:
        return None
    lengths = row.ranks["history_length"] - later
    return {
        name: int(((lengths >= low) & (lengths < high)).sum())
        for name, (low, high) in GROUPS.items()
    }


def user_groups(ledger: Ledger) -> list[Table]:
    """Table 8: users by length of history, of validation and test."""
    printed = paper("table8_user_groups").set_index("dataset")
    rows, notes = [], []
    seen: dict[str, Row] = {}
    # Other filters and splits have other users; the most frequent counts, validation's by its last
    # item but one.
    filters: dict[str, Counter[str]] = defaultdict(Counter)
    for row in ledger.rows:
        if row.ranks is not None and row.protocol.get("dataset.split") == "leave_one_out":
            filters[row.dataset][_filter(row)] += 1
    for row in ledger.rows:
        if row.dataset in filters and _filter(row) == filters[row.dataset].most_common(1)[0][0]:
            seen.setdefault(row.dataset, row)
    for name, found in filters.items():
        if len(found) > 1:
            left_out = sum(found.values()) - found.most_common(1)[0][1]
            notes.append(f"{name}: {left_out} runs of other filters or data are not counted.")
    for name in dict.fromkeys([*printed.index, *sorted(seen)]):
        test = group_counts(seen[name]) if name in seen else None
        valid = group_counts(seen[name], 1) if name in seen else None
        told = printed.loc[name].tolist() if name in printed.index else [None] * 3
        counts = [[(part or {}).get(group) for group in GROUPS] for part in (valid, test)]
        rows.append([Cell(name), *map(count_cell, [*told, *counts[0], *counts[1]])])
    columns = ["data set"]
    columns += [f"{g}, {s}" for s in ("paper", "valid", "test") for g in GROUPS]
    absent = [name for name in printed.index if name not in seen]
    return [
        Table(
            "table8_groups", "Table 8: users by length of history",
            "Short [0, 5), medium [5, 20), long [20, …) items before the target. The paper's Yelp "
            "counts are those of the validation split.",
            columns, rows, [*notes, *vintage_notes(list(seen.values()))],
            [f"python train.py -m experiment=table8_groups dataset={name}" for name in absent],
        )
    ]  # fmt: skip


def _filter(row: Row) -> str:
    keys = ("dataset.user_bounds", "dataset.item_bounds", "dataset.drop_duplicates")
    counts = (f"data.{name}" for name in COUNTS)
    return json.dumps([row.protocol.get(key) for key in (*keys, *counts)])


def tuned(ledger: Ledger) -> list[Table]:
    """The best trial of each model's search, by validation, a table a data set.

    Raises:
        MixedProtocolError: searches of different numbers of trials, or other protocols.
    """
    tables = []
    found: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in ledger.rows:
        if row.trials:
            found[row.dataset][row.model].append(row)
    for dataset, models in sorted(found.items()):
        best = {
            model: max(rows, key=lambda row: row.metric("val", "ndcg@10") or 0.0)
            for model, rows in models.items()
        }
        check_protocol(f"The searches on {dataset}", list(best.values()))
        marked = {
            (split, metric): marks([row.metric(split, metric) for row in best.values()])
            for split in ("val", "test")
            for metric in METRICS
        }
        rows = [
            [
                Cell(model),
                count_cell(len(models[model])),
                count_cell(row.trials),
                *(
                    Cell(number(row.metric(split, metric)), row.metric(split, metric), mark[at])
                    for (split, metric), mark in marked.items()
                ),
                Cell(row.run_id),
            ]
            for at, (model, row) in enumerate(best.items())
        ]
        columns = ["model", "trials with a row", "trials asked"]
        columns += [f"{metric.upper()}, {split}" for split, metric in marked]
        tables.append(
            Table(
                f"tuned_{dataset}", f"Every model searched alike: {dataset}",
                "The trial of the best validation NDCG@10 of each model's search. Trials that were "
                "pruned have no row.",
                [*columns, "run"], rows,
            )
        )  # fmt: skip
    return tables


def context(ledger: Ledger) -> list[Table]:
    """What a longer context brings (MambaRec's question), a table a data set.

    Raises:
        MixedProtocolError: rows that differ in more than the context's length.
    """
    tables = []
    found: dict[str, list[Row]] = defaultdict(list)
    for row in ledger.rows:
        if row.content["config"].get("group") in ("mambarec_context", "mambarec_efficiency"):
            found[row.dataset].append(row)
    for dataset, rows_ in sorted(found.items()):
        results = [row for row in rows_ if row.content["config"]["group"] == "mambarec_context"]
        by_length: dict[Any, list[Row]] = defaultdict(list)
        for row in results:
            by_length[row.protocol["dataset.max_length"]].append(row)
        for length, own in by_length.items():
            check_protocol(f"Context {length} of {dataset}", own)
        cells = [
            [
                Cell(row.model),
                count_cell(row.protocol["dataset.max_length"]),
                count_cell(row.seed),
                *(number_cell(row.metric("test", metric)) for metric in METRICS),
                value_cell(_per_epoch(row), "{:,.1f}"),
                value_cell(_mebibytes(row), "{:,.0f}"),
                Cell("speed alone" if row not in results else ""),
            ]
            for row in sorted(
                rows_, key=lambda r: (r.model, r.protocol["dataset.max_length"], r.seed)
            )
        ]
        tables.append(
            Table(
                f"mambarec_context_{dataset}", f"Length of the context: {dataset}",
                "Test among sampled negatives, as RecMamba's and MambaRec's authors rank; not to "
                "be compared with full rankings.",
                ["model", "context", "seed", *(m.upper() for m in METRICS),
                 "training, seconds an epoch", "peak, MiB", "what"],
                cells,
            )
        )  # fmt: skip
    return tables


def _per_epoch(row: Row) -> float | None:
    seconds = row.content["efficiency"].get("train_seconds")
    return None if seconds is None else float(seconds) / max(1, int(row.content["epochs"]))


def _mebibytes(row: Row) -> float | None:
    peak = row.content["efficiency"].get("peak_memory_bytes")
    return None if peak is None else float(peak) / 2**20


def efficiency(path: Path) -> list[Table]:
    """Tables 3, 5 and 7 from the benchmark's file, if it is there."""
    if not path.is_file():
        return []
    frame = pd.read_csv(path)
    rows = [
        [
            Cell(str(line.table)),
            Cell(str(line.dataset)),
            Cell(str(line.model)),
            value_cell(line.infer_ms, "{:,.0f}"),
            value_cell(line.infer_ms_of_sigma, "{:.2f}"),
            value_cell(line.train_ms, "{:,.0f}"),
            value_cell(line.train_process_mib, "{:,.0f}"),
            value_cell(line.paper_ms, "{:,.0f}"),
            value_cell(line.paper_ms_of_sigma, "{:.2f}"),
            value_cell(line.paper_gpu_gb, "{:.2f}"),
        ]
        for line in frame.itertuples()
    ]
    named = set(frame["dataset"]) | {PAPER_SET.get(name) for name in frame["dataset"]}
    lacking = [name for name in paper("table1_datasets")["dataset"] if name not in named]
    data = " ".join(f"{name}=" for name in [*dict.fromkeys(frame["dataset"]), *lacking])
    command = f"python -m experiments.benchmarks.efficiency --data {data} --out results/benchmarks"
    absent = [f"{command}  # {', '.join(lacking)} are missing"] if lacking else []
    return [
        Table(
            "table3_efficiency", "Tables 3, 5 and 7: efficiency",
            "Milliseconds for a batch (4,096 users ranked; 2,048 samples learned) on this machine "
            "and, the paper's, on an NVIDIA L4: compare the ratios to SIGMA. "
            "games_2014 stands beside the paper's Games, which is that of 2018. "
            f"{', '.join(sorted(set(frame['stamp'])))}.",
            ["table", "data set", "model", "ranking, ms", "of SIGMA's", "training, ms",
             "training, MiB", "paper, ms", "paper, of SIGMA's", "paper, GB"],
            rows, [], absent,
        )
    ]  # fmt: skip


def short_runs(ledger: Ledger) -> list[Table]:
    """Tables 3 and 7 as ``experiment=table3_efficiency`` measures them: runs of three epochs."""
    own = [row for row in ledger.rows if row.content["config"].get("group") == "table3"]
    rows = [
        [
            Cell(row.dataset),
            Cell(row.model),
            value_cell(row.content["efficiency"].get("train_samples_per_second"), "{:,.0f}"),
            value_cell(_per_epoch(row), "{:,.1f}"),
            value_cell(_mebibytes(row), "{:,.0f}"),
            Cell(str(row.content["hardware"].get("gpu") or row.content["hardware"]["cpu"])),
            Cell(row.run_id),
        ]
        for row in sorted(own, key=lambda r: (r.dataset, r.model))
    ]
    columns = ["data set", "model", "training samples/s", "seconds an epoch", "peak, MiB",
               "hardware", "run"]  # fmt: skip
    told = "Whole runs of three epochs, loggers and validation included."
    title = "Tables 3 and 7: short runs"
    return [Table("table3_runs", title, told, columns, rows)] if rows else []


def cases(folder: Path) -> set[str]:
    """Data sets that have a case study."""
    found = folder.glob("**/case_*.json")
    return {str(json.loads(path.read_text(encoding="utf-8"))["dataset"]) for path in found}


def case_study(path: Path) -> Table:
    """Table 6 of one user, from what ``experiments.case.__main__`` wrote.

    Args:
        path: ``case_<user>.json``, its ``.csv`` beside it.
    """
    told = json.loads(path.read_text(encoding="utf-8"))
    frame = pd.read_csv(path.with_suffix(".csv"))
    rows = [
        [
            Cell(str(line["model"])),
            value_cell(line["rank"], "{:,g}"),
            *(number_cell(line[m]) for m in METRICS),
            *(number_cell(line[f"all users {m}"]) for m in METRICS),
        ]
        for line in frame.to_dict("records")
    ]
    names = [metric.upper() for metric in METRICS]
    columns = ["model", "rank of the next item", *names]
    columns += [f"{name} of all users" for name in names]
    name = re.sub(r"[^\w.-]+", "_", f"table6_{told['dataset']}_{told['user']}")
    title = f"Table 6, case study: user {told['user']} of {told['dataset']}"
    return Table(name, title, " ".join(told["caption"]), columns, rows, [told["note"]])


def provenance(ledger: Ledger) -> list[Table]:
    """Every run behind the numbers."""
    rows = []
    for row in ledger.rows:
        c = row.content
        commit = str(c["git"]["commit"] or "–")[:7] + ("+" if c["git"]["dirty"] else "")
        hardware = c["hardware"].get("gpu") or f"{c['hardware']['cpu']}, {c['hardware']['threads']}"
        best = c["best_epoch"]
        rows.append(
            [
                Cell(row.run_id),
                Cell(str(row.seed), row.seed),
                Cell("–" if best is None else f"{best:.0f} of {c['epochs']}", best),
                value_cell(c["efficiency"].get("train_seconds"), "{:,.0f}"),
                Cell(commit),
                Cell(hardware),
                Cell(str(c["versions"].get("torch", "–"))),
                Cell(str(c["finished"])[:10]),
            ]
        )
    return [
        Table(
            "runs", "Every run", "A commit with + had changes that were not committed.",
            ["run", "seed", "best epoch", "training, s", "commit", "hardware, threads", "torch",
             "finished"],
            rows,
        )
    ]  # fmt: skip


def known_datasets(ledger: Ledger) -> list[str]:
    """Data sets with rows, the paper's first; those without a YAML (custom) are left out."""
    order = list(paper("table1_datasets")["dataset"])
    there = {row.dataset for row in ledger.rows if not row.aside}
    named = [name for name in there if (CONF / "dataset" / f"{name}.yaml").is_file()]
    return sorted(named, key=lambda n: (order.index(n) if n in order else len(order), n))
