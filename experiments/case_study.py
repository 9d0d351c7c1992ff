"""One user's history before and after SIGMA's partial flip, and what trained models recommend.

    python -m experiments.case_study --runs runs/sigma runs/sasrec --user 5050 --out results/case

Figure 6 and Table 6 of SIGMA's paper, for any user of any data set. The runs are folders that
``train.py`` wrote, all on the same data. The flip shown is that of the first run whose model has
one. Titles and genres are those that came with the data, or of ``--titles`` (``u.item``,
``movies.dat``, ``movies.csv``, a ``.item`` file or a table); without any, ids are shown.

Without ``--user`` the user is chosen by a rule: of the test users whose history is of median length
(the lower one of two), the one of the lowest id. ``--pick flip`` instead takes the user for whom
the run with the flip gains most over the best of the others, in 1 / rank of the target, and the
caption says so, with how often it gains and loses among all test users.

Into ``--out``: ``case_<user>.png`` and ``.svg``, ``case_<user>.csv`` (the metrics),
``…_history.csv`` and ``…_recommendations.csv``, and all of it as ``case_<user>.md``.
"""

import argparse
import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sigma.environment  # noqa: F401  isort: skip

import numpy as np
import pandas as pd
import torch

from experiments.measure import picture
from sigma.cli import explained
from sigma.datamodules.titles import Title, read_titles, titles_of
from sigma.errors import UserError
from sigma.metrics import RankingMetrics
from sigma.models.sigma import partial_flip
from sigma.recommend import TrainedRun, load, recommend

PAPER = Path(__file__).parent / "paper" / "table6_case_study.csv"
METRICS = ("hr@10", "ndcg@10", "mrr@10")
# Okabe and Ito's palette, told apart by colour-blind readers; black is for text.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
OTHER, UNKNOWN, GREY = "#A0A0A0", "#FFFFFF", "#555555"


class Found(NamedTuple):
    """What one model has for the user; ``whole`` holds the metrics of the whole test set."""

    label: str
    greater: int
    ties: int
    items: list[str]
    scores: list[float]
    whole: dict[str, float]

    @property
    def rank(self) -> float:
        return self.greater + 1 + self.ties / 2

    def metrics(self) -> dict[str, float]:
        """HR, NDCG and MRR@10 of this one target."""
        metric = RankingMetrics(ks=(10,), alone=True)
        one = (torch.tensor([n]) for n in (self.greater, self.ties, 0))
        metric.update(*one)
        return {name: float(value) for name, value in metric.compute().items()}


class Case(NamedTuple):
    """Everything the picture and the tables show; items are raw ids.

    Attributes:
        dataset: name.
        num_items: of the ranking.
        user: raw id.
        why: sentence on how the user was chosen.
        length: of the whole history.
        row: the history as the model with the flip reads it, oldest first.
        order: position of the row, from 0, that each position of the flipped one reads, n and more
            where it reads padding; None without such a model.
        flip: sentence on that flip.
        kept: items at the row's end that stay.
        target: the true next item.
        found: by model.
        titles: of items, as far as known.
    """

    dataset: str
    num_items: int
    user: str
    why: str
    length: int
    row: list[str]
    order: list[int] | None
    flip: str
    kept: int
    target: str
    found: list[Found]
    titles: dict[str, Title]

    @property
    def flipped(self) -> list[str | None] | None:
        """The row as the flipped direction reads it, None for padding."""
        if self.order is None:
            return None
        return [self.row[i] if i < len(self.row) else None for i in self.order]

    def title(self, item: str) -> str:
        return self.titles[item].title if item in self.titles else item

    def genre(self, item: str) -> str | None:
        """The main genre: the first that the data names."""
        return next(iter(self.titles[item].genres), None) if item in self.titles else None


def flip_of(run: TrainedRun, length: int) -> tuple[list[int], int] | None:
    """Where each position of the flipped row reads from (at least ``length`` is padding), and how
    many items at the end stay; None for a model without a flip.
    """
    model, width = run.config.model, run.data.max_length
    until = model.get("flip_until")
    if "flip_until" in model and until is not None:  # as released: whatever the row's length
        head = min(int(until), width)
        index = [*range(head - 1, -1, -1), *range(head, width)][:length]
        return (index, max(length - head, 0)) if head > 1 else None
    if not model.get("partial_flip", "flip_until" in model):
        return None
    keep = int(model.r)
    index = partial_flip(torch.tensor([length]), length, keep)[0].tolist()
    return index, min(keep, length)


def same_data(runs: Sequence[TrainedRun]) -> None:
    """All runs must hold the same sequences.

    Raises:
        UserError: names the first that does not.
    """
    first = runs[0].sequences
    for run in runs[1:]:
        for name in ("items", "offsets", "user_ids", "item_ids"):
            if not np.array_equal(getattr(first, name), getattr(run.sequences, name)):
                raise UserError(
                    f"{run.folder} was trained on other data than {runs[0].folder}; compare runs "
                    "on one data set with the same filter."
                )


def labels(runs: Sequence[TrainedRun]) -> list[str]:
    """Names of the models; runs of one model carry their seed, else their folder, else a number."""
    names = [str(run.config.model.get("name")) for run in runs]
    marks = (
        [f"seed {run.config.seed}" for run in runs],
        [run.folder.resolve().name for run in runs],
        [str(i) for i in range(1, len(runs) + 1)],
    )
    found = []
    for name, *its in zip(names, *marks, strict=True):
        same = [i for i, other in enumerate(names) if other == name]
        told = (m for m, all_of in zip(its, marks, strict=True)
                if len({all_of[i] for i in same}) == len(same))  # fmt: skip
        found.append(name if len(same) == 1 else f"{name}, {next(told)}")
    return found


def lowest(users: Iterable[str]) -> str:
    """The lowest id, by number where it is one."""
    return min(users, key=lambda u: (not u.isdecimal(), int(u) if u.isdecimal() else 0, u))


def median_user(run: TrainedRun) -> tuple[str, str]:
    """The user of median history length with the lowest id, and the sentence that says so."""
    assert run.data.split is not None
    sequences, last = run.sequences, run.data.split.test
    users = np.searchsorted(sequences.offsets, last, side="right") - 1
    lengths = pd.Series(last - sequences.offsets[users]).groupby(users).max()
    median = int(np.sort(lengths)[(len(lengths) - 1) // 2])
    fits = [str(sequences.user_ids[u]) for u in lengths.index[lengths == median]]
    return lowest(fits), (
        f"Chosen by rule, not by its outcome: of the {len(fits)} test users with a history of "
        f"median length ({median}), the one of the lowest id."
    )


def flip_user(runs: Sequence[TrainedRun], flips: TrainedRun) -> tuple[str, str]:
    """The user for whom ``flips`` gains most over the others, and the sentence that says so.

    Raises:
        UserError: there is no other run.
    """
    if len(runs) < 2:
        raise UserError("--pick flip compares a run with others; name more than one with --runs.")
    mine: pd.Series = pd.Series(dtype=float)
    others = []
    for run in runs:
        ranks = recommend(run, k=1).groupby("user")["rank"].last()
        if run is flips:
            mine = 1 / ranks
        else:
            others.append(1 / ranks)
    best = pd.concat(others, axis=1).max(axis=1)
    gain = mine - best[mine.index]
    user = lowest(gain.index[gain == gain.max()])
    name = flips.config.model.get("name")
    return user, (
        f"Picked for its outcome (--pick flip), not typical: of all {len(gain):,} test users the "
        f"one for whom {name} gains most over the best of the others, {gain.max():+.3f} in 1 / "
        f"rank. Of all of them, {name} is ahead of every other model for {(gain > 0).mean():.1%} "
        f"and behind the best of them for {(gain < 0).mean():.1%}."
    )


def study(
    runs: Sequence[TrainedRun],
    user: str | None = None,
    pick: str = "median",
    titles: dict[str, Title] | None = None,
    top: int = 5,
) -> Case:
    """Gather what the picture and the tables show.

    Args:
        runs: loaded, at least one, all on the same data.
        user: raw id; None chooses one.
        pick: ``median`` or ``flip``, see above.
        titles: of items; None is those that came with the data.
        top: recommendations of each model.

    Raises:
        UserError: other data, no such user, or nothing to pick by.
    """
    same_data(runs)
    flips = next((run for run in runs if flip_of(run, 2)), None)
    why = "Chosen by its id."
    if user is None and pick == "flip":
        if flips is None:
            raise UserError("--pick flip needs a run of a model that flips, such as model=sigma.")
        user, why = flip_user(runs, flips)
    elif user is None:
        user, why = median_user(runs[0])
    found, length, target = [], 0, ""
    for label, run in zip(labels(runs), runs, strict=True):
        part = recommend(run, [user], k=top)
        part = part[part["history_length"] == part["history_length"].max()]  # the last, of several
        first = part.iloc[0]
        if found and (first["history_length"], first["target"]) != (length, target):
            raise UserError(f"{run.folder} tests user {user} on another item; use one split.")
        length, target = int(first["history_length"]), str(first["target"])
        row = run.folder / "row.json"
        told = json.loads(row.read_text())["metrics"]["test"] if row.is_file() else {}
        found.append(
            Found(
                label, int(first["greater"]), int(first["ties"]), part["item"].tolist(),
                part["score"].tolist(), {name: told[name] for name in METRICS if name in told},
            )
        )  # fmt: skip
    reader = flips or runs[0]
    sequences = reader.sequences
    index = [str(raw) for raw in sequences.user_ids].index(user)
    start = sequences.offsets[index]
    history = sequences.items[start : start + length][-reader.data.max_length :]
    row_items = [str(sequences.item_ids[i - 1]) for i in history]
    order, kept, sentence = None, 0, "None of the models flips the row."
    if flips is not None:
        found_flip = flip_of(flips, len(row_items))
        assert found_flip is not None
        order, kept = found_flip
        name, n = flips.config.model.get("name"), len(row_items)
        if flips.config.model.get("flip_until") is not None:
            sentence = (
                f"{name} reverses columns 1 to {flips.config.model.flip_until} whatever the row's "
                "length; where padding comes to stand, no item is read."
            )
        else:
            sentence = (
                f"{name} reverses the first {n - kept} of the {n} items it reads; the last "
                f"r = {kept} stay."
            )
    known = titles_of(sequences) if titles is None else titles
    return Case(
        str(reader.data.name), sequences.num_items, user, why, length, row_items, order,
        sentence, kept, target, found, known,
    )  # fmt: skip


def caption(case: Case) -> list[str]:
    """Sentences under the picture."""
    read = "" if len(case.row) == case.length else f", of which the last {len(case.row)} are read"
    said = [
        f"User {case.user} of {case.dataset}, {case.length} items of history{read}. {case.why}",
        f"{case.flip} A dot's colour is the item's first genre.",
        f"Ranks are the true next item's among all {case.num_items:,} items, expected over the "
        "order of ties.",
    ]
    missing = sum(item not in case.titles for item in {*case.row, case.target})
    if missing:
        said.append(f"{missing} items have no known title; their ids are shown.")
    return said


def note() -> str:
    """What the metrics of one user can be, and what the paper's are."""
    paper = pd.read_csv(PAPER, comment="#")
    numbers = "; ".join(
        f"{row.model} " + " / ".join(f"{v:.4f}" for v in (row[m] for m in METRICS))
        for _, row in paper.iterrows()
    )
    return (
        "One user has one next item: HR@10 is 0 or 1 (between them only where ties reach over the "
        "10th place), and NDCG and MRR follow from the one rank. So they tell nothing of a model "
        "that the rank does not; compare models by the whole test set. The paper's Table 6 gives "
        f"for user 5050 of ML-1M (HR / NDCG / MRR@10): {numbers}. Those cannot be metrics of one "
        "user's next item, also not as a mean over five seeds; they are of the size of its whole "
        "test set's (Table 2), without being equal to them."
    )


def metrics_table(case: Case) -> pd.DataFrame:
    """A line a model: rank and metrics of this user, metrics of the whole test set."""
    return pd.DataFrame(
        [
            {"model": f.label, "rank": f.rank, **f.metrics()}
            | {f"all users {name}": f.whole.get(name, float("nan")) for name in METRICS}
            for f in case.found
        ]
    )


def history_table(case: Case) -> pd.DataFrame:
    """A line a position of the row, before and after the flip; padding is empty."""
    columns: dict[str, list[Any]] = {"position": list(range(1, len(case.row) + 1))}
    sides: dict[str, Sequence[str | None]] = {"": case.row}
    if case.flipped is not None:
        sides["flipped "] = case.flipped
    for side, items in sides.items():
        known = [None if i is None else case.titles.get(i) for i in items]
        columns[f"{side}item"] = list(items)
        columns[f"{side}title"] = [t and t.title for t in known]
        columns[f"{side}genres"] = [t and "|".join(t.genres) for t in known]
    return pd.DataFrame(columns)


def recommendations_table(case: Case) -> pd.DataFrame:
    """A line a model and place."""
    return pd.DataFrame(
        [
            {
                "model": f.label, "place": place, "item": item, "score": score,
                "title": case.title(item), "hit": item == case.target,
                "genres": "|".join(case.titles.get(item, Title("")).genres),
            }
            for f in case.found
            for place, (item, score) in enumerate(zip(f.items, f.scores, strict=True), start=1)
        ]
    )  # fmt: skip


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown; floats to four places, what is missing as a dash."""

    def cell(value: Any) -> str:
        if value is None or value != value:
            return "–"
        if isinstance(value, float):
            return f"{value:.4f}" if value % 1 else f"{value:g}"
        return str(value).replace("|", r"\|")

    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy(object).tolist()]
    return "\n".join("| " + " | ".join(map(cell, row)) + " |" for row in rows)


def palette(case: Case, shown: Iterable[str]) -> dict[str, str]:
    """Colours of the most frequent main genres among the items shown; the rest is ``other``."""
    counts = Counter(genre for genre in map(case.genre, shown) if genre is not None)
    ordered = sorted(counts, key=lambda genre: (-counts[genre], genre))
    return dict(zip(ordered, COLOURS, strict=False))


# Of the picture, in inches.
ROW, MARGIN, TITLE, GAP, BLOCK, STRIP = 0.27, 0.3, 2.35, 1.0, 3.35, 0.95
SIZE = 8.5  # points of a title


def draw(case: Case, folder: Path, name: str, last: int = 20) -> Any:
    """The picture as PNG and SVG; returns the figure.

    Left the whole row as strips, where more is read than shown, then its last items before and
    after the flip; right each model's first recommendations.

    Args:
        case: what to show.
        folder: to write into.
        name: of the files, without ending.
        last: items of the history to show.
    """
    n, rows = len(case.row), min(last, len(case.row))
    first = n - rows
    before, after = case.row[first:], None if case.flipped is None else case.flipped[first:]
    colours = palette(
        case,
        [*case.row, case.target, *(item for f in case.found for item in f.items)],
    )
    strips = STRIP if first else 0.0
    lists = 0.3 + TITLE + (GAP + TITLE if after is not None else 0.2)
    tall = max(len(f.items) for f in case.found) + 2  # rows of a model's block
    height_rows = max(rows + 3, tall + 1)
    columns = -(-len(case.found) // max(1, height_rows // tall))
    per_column = -(-len(case.found) // columns)
    height_rows = max(height_rows, per_column * tall)
    width = max(2 * MARGIN + strips + lists + 0.35 + columns * BLOCK, 9.0)
    lines = [line for s in caption(case) for line in textwrap.wrap(s, int(width * 14.5))]
    foot = 0.55 + 0.2 * len(lines)
    top = 0.6  # headings
    height = top + height_rows * ROW + foot
    figure = picture(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    measure = _measure(figure)

    def write(x: float, y: float, text: str, **more: Any) -> None:
        style = {"fontsize": SIZE, "va": "center", "parse_math": False} | more
        axes.text(x, y, text, **style)

    def fitted(text: str, room: float, bold: bool = False) -> str:
        """The text, cut to ``room`` inches with an ellipsis."""
        if measure(text, bold) <= room:
            return text
        while text and measure(text.rstrip() + "…", bold) > room:
            text = text[:-1]
        return text.rstrip(" ,(") + "…"

    def colour(item: str) -> str:
        genre = case.genre(item)
        return UNKNOWN if genre is None else colours.get(genre, OTHER)

    def dot(x: float, y: float, item: str, ring: bool = False) -> None:
        if ring:
            axes.scatter([x], [y], s=150, facecolor="none", edgecolor="black", linewidth=1.4)
        axes.scatter([x], [y], s=62, color=colour(item), edgecolor=GREY, linewidth=0.6, zorder=3)

    def at(row: float) -> float:
        return top + (row + 0.5) * ROW

    left = MARGIN
    if first:
        _strips(axes, case, left, top, rows, colour, write)
        left += strips
    x_before = left + 0.3 + TITLE
    x_after = x_before + GAP
    write(x_before, top - 0.22, "before the flip" if after is not None else "history",
          ha="right", fontweight="bold", fontsize=9.5)  # fmt: skip
    if after is not None:
        write(x_after, top - 0.22, "after the flip", fontweight="bold", fontsize=9.5)
        stay = min(case.kept, rows)
        if stay:
            axes.axhspan(
                top + (rows - stay) * ROW, top + rows * ROW,
                xmin=left / width, xmax=(x_after + 0.15 + TITLE) / width,
                color="#EEEEEE", zorder=0,
            )  # fmt: skip
    for i, item in enumerate(before):
        write(left, at(i), str(first + i + 1), color=GREY, fontsize=7)
        dot(x_before, at(i), item)
        write(x_before - 0.15, at(i), fitted(case.title(item), TITLE - 0.2), ha="right")
    if after is not None:
        for i, (item, source) in enumerate(zip(after, (case.order or [])[first:], strict=True)):
            if item is None:
                write(x_after + 0.15, at(i), "padding", color=GREY, style="italic")
                continue
            if source >= first:
                axes.plot([x_before, x_after], [at(source - first), at(i)],
                          color=colour(item) if colour(item) != UNKNOWN else OTHER,
                          linewidth=1.1, alpha=0.75, zorder=1)  # fmt: skip
            dot(x_after, at(i), item)
            write(x_after + 0.15, at(i), fitted(case.title(item), TITLE - 0.15))
    y = at(rows + 0.8)
    dot(x_before, y, case.target, ring=True)
    write(x_before - 0.2, y, fitted(case.title(case.target), TITLE - 0.2, True), ha="right",
          fontweight="bold")  # fmt: skip
    write(x_before + 0.2, y, "the true next item", style="italic")
    x_models = left + lists + 0.35
    for j, found in enumerate(case.found):
        x = x_models + (j // per_column) * BLOCK
        _block(case, found, x, at, j % per_column * tall, write, fitted, dot)
    _legend(figure, case, colours, (0.5, (foot - 0.12) / height))
    for i, line in enumerate(lines):
        write(MARGIN, height - foot + 0.55 + 0.2 * i, line, fontsize=8.5, color="#222222")
    folder.mkdir(parents=True, exist_ok=True)
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": name}):  # the same case is the same file
        for ending, metadata in (("png", {}), ("svg", {"Date": None})):
            figure.savefig(folder / f"{name}.{ending}", metadata=metadata)
    return figure


def _measure(figure: Any) -> Callable[[str, bool], float]:
    """Width of a title in inches."""
    from matplotlib.font_manager import FontProperties

    renderer = figure.canvas.get_renderer()
    fonts = {bold: FontProperties(size=SIZE, weight="bold" if bold else "normal")
             for bold in (False, True)}  # fmt: skip

    def width(text: str, bold: bool) -> float:
        return renderer.get_text_width_height_descent(text, fonts[bold], False)[0] / figure.dpi

    return width


def _strips(
    axes: Any,
    case: Case,
    left: float,
    top: float,
    rows: int,
    colour: Callable[[str], str],
    write: Callable[..., None],
) -> None:
    """The whole row as thin strips, before and after, the part that is shown framed."""
    from matplotlib.patches import Rectangle

    n, tall, wide = len(case.row), rows * ROW, 0.2
    cell = tall / n
    sides: list[Sequence[str | None]] = [case.row]
    if case.flipped is not None:
        sides.append(case.flipped)
    for side, items in enumerate(sides):
        x = left + side * 0.3
        for i, item in enumerate(items):
            face = "#FFFFFF" if item is None else colour(item)
            box = (x, top + i * cell)
            axes.add_patch(Rectangle(box, wide, cell, facecolor=face, edgecolor="white",
                                     linewidth=min(0.5, 8 * cell)))  # fmt: skip
        axes.add_patch(Rectangle((x, top), wide, tall, fill=False, edgecolor=GREY, linewidth=0.6))
    frame = top + (n - rows) * cell
    wide += 0.3 * (len(sides) - 1)
    axes.add_patch(Rectangle((left - 0.04, frame), wide + 0.08, rows * cell, fill=False,
                             edgecolor="black", linewidth=1.3, zorder=4))  # fmt: skip
    write(left + wide / 2, top - 0.22, f"all {n}", ha="center", fontweight="bold", fontsize=9.5)
    write(left + wide / 2, top + tall + 0.14, "frame: listed", ha="center", fontsize=7, color=GREY)


def _block(
    case: Case,
    found: Found,
    x: float,
    at: Callable[[float], float],
    row: int,
    write: Callable[..., None],
    fitted: Callable[..., str],
    dot: Callable[..., None],
) -> None:
    """One model's name, the target's rank, and its first recommendations from ``row`` on."""
    rank = f"rank {found.rank:,g}"
    write(x, at(row) - 0.06, fitted(found.label, BLOCK - 1.3, True), fontweight="bold")
    write(x + BLOCK - 0.35, at(row) - 0.06, rank, ha="right", color=GREY, fontsize=8)
    for i, item in enumerate(found.items):
        y, hit = at(row + 1 + i), item == case.target
        write(x + 0.12, y, str(i + 1), color=GREY, ha="right", fontsize=7.5)
        dot(x + 0.3, y, item, ring=hit)
        text = fitted(case.title(item), BLOCK - (1.1 if hit else 0.7), hit)
        weight = "bold" if hit else "normal"
        write(x + 0.48, y, text + ("  hit" if hit else ""), fontweight=weight)


def _legend(figure: Any, case: Case, colours: dict[str, str], place: tuple[float, float]) -> None:
    from matplotlib.lines import Line2D

    shown = [*case.row, case.target, *(item for f in case.found for item in f.items)]
    genres = [case.genre(item) for item in shown]
    entries = list(colours.items())
    if any(g is not None and g not in colours for g in genres):
        entries.append(("other", OTHER))
    if None in genres:
        entries.append(("genre not known", UNKNOWN))
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=7.5, markerfacecolor=face,
               markeredgecolor=GREY, markeredgewidth=0.6, label=label)
        for label, face in entries
    ]  # fmt: skip
    handles.append(
        Line2D([], [], marker="o", linestyle="", markersize=10, markerfacecolor="none",
               markeredgecolor="black", markeredgewidth=1.4, label="true next item")
    )  # fmt: skip
    if case.flipped is not None and case.kept:
        handles.append(
            Line2D([], [], marker="s", linestyle="", markersize=9, markerfacecolor="#EEEEEE",
                   markeredgecolor=GREY, markeredgewidth=0.4, label="kept in place")
        )  # fmt: skip
    figure.legend(
        handles=handles, loc="upper center", bbox_to_anchor=place, ncols=len(handles),
        frameon=False, fontsize=8.5, handletextpad=0.2, columnspacing=1.2,
    )  # fmt: skip


def report(case: Case, name: str) -> str:
    """All of it as Markdown."""
    parts = [
        f"# User {case.user} of {case.dataset}",
        f"![history before and after the flip, and recommendations]({name}.png)",
        *caption(case),
        "## Metrics of this one user",
        markdown(metrics_table(case)),
        note(),
        f"## History; the true next item is {case.title(case.target)} ({case.target})",
        markdown(history_table(case)),
        "## Recommendations",
        markdown(recommendations_table(case)),
    ]
    return "\n\n".join(parts) + "\n"


def keep(case: Case, out: Path, last: int = 20) -> str:
    """Write picture and tables; returns the files' name without ending."""
    name = "case_" + re.sub(r"[^\w.-]+", "_", case.user)
    draw(case, out, name, last)
    metrics_table(case).assign(user=case.user).to_csv(out / f"{name}.csv", index=False)
    history_table(case).to_csv(out / f"{name}_history.csv", index=False)
    recommendations_table(case).to_csv(out / f"{name}_recommendations.csv", index=False)
    (out / f"{name}.md").write_text(report(case, name), encoding="utf-8")
    return name


def main(arguments: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of runs")
    made.add_argument("--user", help="raw id")
    made.add_argument("--pick", choices=["median", "flip"], default="median", help="without --user")
    made.add_argument("--titles", type=Path, help="file of titles and genres")
    made.add_argument("--last", type=int, default=20, help="items of the history to show")
    made.add_argument("--top", type=int, default=5, help="recommendations of each model")
    made.add_argument("--path", help="raw data, where it has moved since the runs")
    made.add_argument("--out", type=Path, required=True, help="folder to write into")
    options = made.parse_args(arguments)
    with explained():
        if min(options.last, options.top) < 1:
            raise UserError("--last and --top must be at least 1.")
        titles = None if options.titles is None else read_titles(options.titles)
        runs = [load(run, options.path) for run in options.runs]
        case = study(runs, options.user, options.pick, titles, options.top)
        name = keep(case, options.out, options.last)
        for sentence in caption(case):
            print(sentence)
        print(metrics_table(case).round(4).to_string(index=False))
        print(note())
        print(f"Picture and tables: {options.out / name}.png, .svg, .md, .csv")


if __name__ == "__main__":
    main()
