"""Models by their own recipes beside what was published of them, ranked among unseen items."""

import json
from collections.abc import Sequence
from math import isnan
from typing import Any

import pandas as pd

from experiments.grid import choices
from experiments.paper.values import lookup, paper
from experiments.report.lines import Line, lines, missing, notes
from experiments.report.page import DASH, Table
from experiments.report.rankings import SPLITS, again, beyond, leader, selected, side_by_side, tests
from experiments.rows import METRICS, RANKINGS, check_protocol, is_protocol
from sigma.runs.identity import identity

NAME = "strong"  # of the experiment
TITLE = "Strong models"
SELECTION = "evaluation.monitor=val/unseen/ndcg@10"
# Lines that stand beside these, where their best epochs were chosen so.
BESIDE = (
    ("experiment=table2_overall",),
    ("experiment=parts", "variant=whole", "model.shortcut=identity,none"),
)
MISS = 0.03  # below a published number, relative
# Settings of recipes, by column.
RECIPE = {
    "rows up to": ("dataset", "max_length"),
    "batch": ("dataset", "batch_size"),
    "best epoch by": ("evaluation", "monitor"),
}


def strong(rows: pd.DataFrame, dataset: str, *models: str) -> list[Table]:
    """Published and ours, both rankings, tests, and what is beyond accuracy.

    Args:
        models: by default those of the experiment.

    Raises:
        MixedProtocolError: rows that depart from their recipes, not all in the same way.
    """
    results = rows[(rows["dataset"] == dataset) & ~rows["aside"].astype(bool)]
    results = selected(results, unseen=True)
    if not set(models or choices(NAME)["model"]) & set(results["model"]):
        return []
    words = [f"experiment={NAME}", f"dataset={dataset}"]
    words += [f"model={','.join(models)}"] * bool(models)
    recipes = lines(results, *words)
    compared = recipes + beside(results, dataset)
    check_protocol(f"{TITLE}, {dataset},", by_recipe(compared))
    title, name = f"{TITLE}, {dataset}", f"{NAME}_{dataset}"
    test, valid = (published(recipes, dataset, split) for split in SPLITS)
    test.notes.extend(notes(recipes))
    test.missing.extend(missing(words, "model", recipes, recipes))
    test.missing.extend(again(words, "model", recipes, recipes))
    best = leader(compared, "unseen items")
    return [
        test,
        *[valid] * any("published" in column for column in valid.frame),
        *(side_by_side(compared, split, name, title) for split in SPLITS),
        *tests(compared, [(best, r) for r in RANKINGS if best], name, title),
        *beyond(compared, name, title),
    ]


def beside(results: pd.DataFrame, dataset: str) -> list[Line]:
    """Lines of other experiments whose best epochs were chosen among unseen items."""
    trained = results[~results["counted"].astype(bool)]
    return [
        line
        for words in BESIDE
        for line in lines(trained, *words, f"dataset={dataset}", SELECTION)
        if len(line.rows)
    ]


CEILING = "trainer.max_epochs"


def by_recipe(compared: Sequence[Line]) -> pd.DataFrame:
    """All rows; where recipes differ in a setting, a row of its recipe's value says so instead."""
    recipes = [identity(line.job.config) for line in compared]
    keys = {key for recipe in recipes for key in recipe if is_protocol(key)}
    keys = {key for key in keys if len({json.dumps(recipe.get(key)) for recipe in recipes}) > 1}
    frames = []
    for line, recipe in zip(compared, recipes, strict=True):
        rows = line.rows.copy()
        for key in keys & set(rows):
            same = rows[key] == json.dumps(recipe.get(key))
            if key == CEILING:  # which decides nothing where a run stopped below both
                least = pd.to_numeric(rows[key]).clip(upper=recipe[key])
                same |= rows["epochs"] < least
            rows[key] = rows[key].mask(same, "its recipe's")
        frames.append(rows)
    return pd.concat(frames)


def recipe_of(line: Line) -> dict[str, Any]:
    """What a line's runs were set to, or would be."""
    config = line.rows["config"].iloc[0] if len(line.rows) else line.job.config
    return {column: config[part][key] for column, (part, key) in RECIPE.items()}


def published(recipes: Sequence[Line], dataset: str, split: str) -> Table:
    """Each line beside its published numbers of a split; a column without any is left out."""
    records = []
    for line in recipes:
        where = {"dataset": dataset, "model": line.job.model, "split": split}
        record: dict[str, Any] = {"model": line.label} | recipe_of(line)
        misses, known = [], False
        for metric in METRICS:
            name = metric.upper()
            theirs = lookup("published", metric, **where)
            ours = line.spread(name, f"{SPLITS[split]}/unseen/{metric}")
            difference = ours[name] / theirs - 1
            record |= {f"{name}, published": theirs} | ours | {f"{name}, difference": difference}
            known |= not isnan(difference)
            misses += [name] * (difference < -MISS)
        record["misses"] = ", ".join(misses) or ("none" if known else DASH)
        record["seeds"] = line.seeds_of([f"{SPLITS[split]}/unseen/{METRICS[1]}"])
        records.append(record | {"source": source(line.job.model, dataset)})
    frame = pd.DataFrame(records).dropna(axis="columns", how="all")
    return Table.of("strong", frame, f"{dataset}: {split}", name=f"{NAME}_{dataset}_{split}")


def source(model: str, dataset: str) -> str:
    """Whose numbers were published; the file says where."""
    frame = paper("published")
    names = frame[(frame["dataset"] == dataset) & (frame["model"] == model)]["source"]
    return names.iloc[0].replace("_", " ") if len(names) else DASH
