"""Both rankings side by side: places, what is shown beside accuracy, and tests of differences."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from experiments.report.lines import Line, all_rows, marks, missing, ratio
from experiments.report.page import DASH, Table
from experiments.rows import BEYOND, METRICS, RANKINGS
from experiments.significance import (
    Array,
    holm,
    mean_sd,
    p_value,
    seed_differences,
    user_differences,
)

LEVEL = 0.05  # of significance
NDCG = "ndcg@10"  # orders the lines, and is tested
SPLITS = {"test": "test", "validation": "val"}


def selected(rows: pd.DataFrame, unseen: bool = False) -> pd.DataFrame:
    """Rows whose best epoch was chosen among all items, or among unseen items; a counted model has
    no epochs.
    """
    monitors = rows["evaluation.monitor"]
    return rows[monitors.isna() | (monitors.astype(str).str.contains("unseen/") == unseen)]


def word(ranking: str) -> str:
    """Short, for columns and names of files: ``all`` or ``unseen``."""
    return ranking.partition(" ")[0]


def means(compared: Sequence[Line], metric: str) -> pd.Series:
    return pd.Series([mean_sd(line.rows, metric)[0] for line in compared], dtype=float)


def places(compared: Sequence[Line], split: str) -> dict[str, list[str]]:
    """Each line's place by NDCG@10 under both rankings, as text. Under the second, an arrow says by
    how much it differs from the first, counted among the lines that have both.
    """
    values = {r: means(compared, f"{split}/{prefix}{NDCG}") for r, prefix in RANKINGS.items()}
    both = pd.concat(values, axis=1).dropna().rank(ascending=False, method="min")
    change = (both["all items"] - both["unseen items"]).reindex(range(len(compared)))
    texts = {}
    for ranking, column in values.items():
        place = column.rank(ascending=False, method="min")
        texts[ranking] = [DASH if pd.isna(n) else f"{n:.0f}" for n in place]
    arrows = change.map(lambda n: f" {'↑' if n > 0 else '↓'}{abs(n):.0f}" if n else "").where(
        change.notna(), ""
    )
    texts["unseen items"] = [t + a for t, a in zip(texts["unseen items"], arrows, strict=True)]
    return texts


def side_by_side(compared: Sequence[Line], split: str, name: str, title: str) -> Table:
    """HR, NDCG and MRR under both rankings; a row of before there were both has dashes."""
    prefix = SPLITS[split]
    order = places(compared, prefix)
    columns = {
        f"{metric.upper()}, {word(ranking)}": f"{prefix}/{start}{metric}"
        for ranking, start in RANKINGS.items()
        for metric in METRICS
    }
    records = []
    for index, line in enumerate(compared):
        record: dict[str, Any] = {"model": line.label}
        for ranking, start in RANKINGS.items():
            for metric in METRICS:
                column = f"{metric.upper()}, {word(ranking)}"
                record |= line.spread(column, columns[column])
            record[f"place, {word(ranking)}"] = order[ranking][index]
            seeds = "seeds" if ranking == "all items" else f"seeds, {word(ranking)}"
            record[seeds] = line.seeds_of([f"{prefix}/{start}{NDCG}"])
        records.append(record)
    best = {column: marks(compared, metric) for column, metric in columns.items()}
    more = {"name": f"{name}_rankings_{split}", "marks": best, "notes": repeats(compared, prefix)}
    if split != "test":
        more["caption"] = "As the table of the test."
    return Table.of("rankings", pd.DataFrame(records), f"{title}: {split}", **more)


def repeats(compared: Sequence[Line], prefix: str) -> list[str]:
    """A sentence on targets that are in their own history, if the rows count them."""
    rows = all_rows(compared)
    columns = [f"data.{prefix}_repeats", f"data.{prefix}_samples"]
    counts = rows.reindex(columns=columns).dropna().drop_duplicates().astype(int)
    return [
        f"{number:,} of {total:,} targets are in their own history; they are ranked all the same."
        for number, total in counts.itertuples(index=False)
    ]


def again(words: Sequence[str], key: str, group: Sequence[Line], all_: Sequence[Line]) -> list[str]:
    """The commands for runs that were ranked among all items alone."""
    lacking = []
    for line in group:
        unseen = line.rows.get(f"test/unseen/{NDCG}", pd.Series(index=line.rows.index, dtype=float))
        old = set(line.rows[unseen.isna()]["seed"])
        others = pd.DataFrame({"seed": [seed for seed in line.seeds if seed not in old]})
        lacking.append(replace(line, rows=others))
    return missing(words, key, lacking, all_, "were ranked among all items alone")


def beyond(compared: Sequence[Line], name: str, title: str) -> list[Table]:
    """Coverage, novelty and share of the head of the test's first ten items, by ranking."""
    records = []
    for line in compared:
        record: dict[str, Any] = {"model": line.label}
        for metric in BEYOND:
            for ranking, start in RANKINGS.items():
                column = f"{metric}, {word(ranking)}"
                record |= line.spread(column, f"test/{start}{metric}")
        records.append(record | {"seeds": line.seeds_of([f"test/{BEYOND[0]}"])})
    frame = pd.DataFrame(records)
    if frame.drop(columns=["model", "seeds"]).isna().all(axis=None):
        return []
    return [Table.of("beyond", frame, title, name=f"{name}_beyond")]


def leader(compared: Sequence[Line], ranking: str) -> Line | None:
    """The trained line of the highest test NDCG@10."""
    trained = [line for line in compared if len(line.rows) and not line.rows["counted"].all()]
    values = means(trained, f"test/{RANKINGS[ranking]}{NDCG}")
    return trained[int(values.idxmax())] if values.notna().any() else None


def tests(
    compared: Sequence[Line], references: Sequence[tuple[Line, str]], name: str, title: str
) -> list[Table]:
    """Each reference against every other line under a ranking; Holm's correction is within it."""
    frames = [against(line, compared, ranking) for line, ranking in references]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return []
    return [Table.of("tests", pd.concat(frames), title, name=f"{name}_tests")]


def against(reference: Line, compared: Sequence[Line], ranking: str) -> pd.DataFrame:
    """A line of a test for each other line that shares a seed with the reference."""
    metric = RANKINGS[ranking] + NDCG
    records, differences = [], []
    for line in compared:
        seeds = seed_differences(reference.rows, line.rows, f"test/{metric}")
        if line is reference or not len(seeds):
            continue
        users, number = user_differences(reference.rows, line.rows, metric)
        differences.append((seeds, users))
        records.append(
            {
                "model": reference.label,
                "against": line.label,
                "among": ranking,
                "improvement": ratio(reference, line, f"test/{metric}"),
                "seeds in common": len(seeds),
                "difference per user": users.mean() if len(users) else float("nan"),
                "seeds with ranks": number,
            }
        )
    return pd.concat([pd.DataFrame(records), verdicts(differences)], axis=1)


def verdicts(differences: Sequence[tuple[Array, Array]]) -> pd.DataFrame:
    """What tests say of the first of each pair, by its differences over seeds and over users.

    Columns ``p over seeds`` of being better, ``corrected``, and ``by seeds`` in a word; likewise
    over users.
    """
    columns: dict[str, Any] = {}
    for index, over in enumerate(("seeds", "users")):
        values = [pair[index] for pair in differences]
        p_values = [p_value(v) for v in values]
        better, worse = holm(p_values), holm([p_value(-v) for v in values])
        columns |= {f"p over {over}": p_values, f"p over {over}, corrected": better}
        columns[f"by {over}"] = [verdict(*pair) for pair in zip(better, worse, strict=True)]
    return pd.DataFrame(columns)


def verdict(better: float, worse: float) -> str:
    """What two one-sided tests say of the reference, each corrected."""
    if pd.isna(better):
        return DASH
    return "better" if better < LEVEL else "worse" if worse < LEVEL else "no difference"
