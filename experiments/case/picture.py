"""The picture of a case study: a history before and after the flip, and what models recommend."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from experiments.case.study import Case

# Okabe and Ito's colours: told apart by colour-blind readers, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
OTHER, UNKNOWN, FIXED, GREY = "#A0A0A0", "#FFFFFF", "#EEEEEE", "#555555"
ROW, MARGIN, TOP = 0.27, 0.3, 0.6  # inches: a line's height, the sides, and the headings
TITLE, GAP, BLOCK = 2.4, 1.0, 3.4  # widths of a title, between the two sides, and of a model
LONGEST = 32  # characters of a title


def genre(item: pd.Series) -> str:
    """The first genre of an item, the main one; empty where it is not known."""
    return item["genres"].split("|")[0] if isinstance(item["genres"], str) else ""


def palette(case: Case) -> dict[str, str]:
    """Colours of the most frequent main genres in the picture; the others have none."""
    items = pd.concat([case.history, case.recommendations, case.target.to_frame().T])
    genres = items.apply(genre, axis=1)
    counts = genres[genres != ""].value_counts().sort_index()
    names = counts.sort_values(ascending=False, kind="stable").index
    return dict(zip(names, COLOURS, strict=False))


class Page:
    """A figure measured in inches from its upper left corner, with items as dots and titles."""

    def __init__(self, width: float, height: float, colours: dict[str, str]) -> None:
        self.figure = Figure(figsize=(width, height), dpi=150)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")
        self.colours = colours

    def write(self, x: float, y: float, text: str, **style: Any) -> None:
        self.axes.text(x, y, text, **{"fontsize": 8.5, "va": "center", "parse_math": False} | style)

    def colour(self, item: pd.Series) -> str:
        return self.colours.get(genre(item), OTHER) if genre(item) else UNKNOWN

    def dot(self, x: Any, y: Any, face: str, **style: Any) -> None:
        style = {"s": 62, "facecolor": face, "edgecolor": GREY, "linewidth": 0.8} | style
        self.axes.scatter(x, y, zorder=3, **style)

    def item(self, x: float, y: float, item: pd.Series, side: int = 1, hit: bool = False) -> None:
        """A dot with the title on its right, or for ``side`` -1 on its left; a hit has a ring."""
        if hit:
            self.dot(x, y, "none", s=150, edgecolor="black", linewidth=1.4)
        self.dot(x, y, self.colour(item))
        title = item["title"] if isinstance(item["title"], str) else item["item"]
        text = title if len(title) <= LONGEST else title[: LONGEST - 1].rstrip(" ,(") + "…"
        align, weight = "left" if side > 0 else "right", "bold" if hit else "normal"
        self.write(x + 0.17 * side, y, text, ha=align, fontweight=weight)


def draw_history(page: Page, case: Case, last: int) -> None:
    """The last items of the history, their places after the flip, and the true next item."""
    history = case.history.tail(last)
    before, bold = MARGIN + 0.3 + TITLE, {"fontweight": "bold", "fontsize": 9.5}
    after, first = before + GAP, history.index[0]

    def at(position: float) -> float:
        return TOP + (position - first + 0.5) * ROW

    flips = "flipped item" in history
    page.write(before, TOP - 0.22, "before the flip" if flips else "history", ha="right", **bold)
    for i, line in history.iterrows():
        page.write(MARGIN, at(i), str(line["position"]), color=GREY, fontsize=7)
        page.item(before, at(i), line, side=-1)
    if flips:
        page.write(after, TOP - 0.22, "after the flip", **bold)
        end = TOP + len(history) * ROW
        start, right = max(end - case.fixed * ROW, TOP), after + 0.15 + TITLE
        page.axes.fill_between([MARGIN, right], start, end, color=FIXED, zorder=0)
        names = {f"flipped {name}": name for name in ("position", "item", "title", "genres")}
        for i, line in history[[*names]].rename(columns=names).iterrows():
            if pd.isna(line["item"]):
                page.write(after + 0.17, at(i), "padding", color=GREY, style="italic")
                continue
            page.item(after, at(i), line)
            if line["position"] > first:
                style = {"color": page.colour(line).replace(UNKNOWN, OTHER), "zorder": 1}
                page.axes.plot([before, after], [at(line["position"] - 1), at(i)], **style)
    y = at(history.index[-1] + 1.8)
    page.item(before, y, case.target, side=-1, hit=True)
    page.write(before + 0.2, y, "the true next item", style="italic")


def draw_model(page: Page, x: float, y: float, name: str, lines: pd.DataFrame) -> None:
    """A model's name, the target's rank, and its first recommendations."""
    page.write(x, y, textwrap.shorten(name, 30, placeholder="…"), fontweight="bold")
    rank = f"rank {lines['rank'].iloc[0]:,g}"
    page.write(x + BLOCK - 0.35, y, rank, ha="right", color=GREY, fontsize=8)
    for _, line in lines.iterrows():
        y += ROW
        page.write(x + 0.12, y, str(line["place"]), color=GREY, ha="right", fontsize=7.5)
        page.item(x + 0.3, y, line, hit=line["hit"])


def draw_legend(page: Page, case: Case, y: float) -> None:
    """What colours and rings mean, below ``y`` of the figure's height."""
    for label, face in (page.colours | {"other": OTHER, "genre not known": UNKNOWN}).items():
        page.dot([], [], face, label=label)
    page.dot([], [], "none", s=120, edgecolor="black", label="true next item")
    if case.fixed:
        page.dot([], [], FIXED, marker="s", label="stays in place")
    style = {"frameon": False, "fontsize": 8.5, "columnspacing": 1.2, "ncols": 6}
    page.figure.legend(loc="upper center", bbox_to_anchor=(0.5, y), **style)


def draw(case: Case, last: int = 20) -> Figure:
    """The picture: left the history's last items, right each model's first recommendations."""
    lists = dict(list(case.recommendations.groupby("model", sort=False)))
    rows = min(last, len(case.history)) + 3
    tall = max(len(lines) for lines in lists.values()) + 2  # rows of a model's block
    column_length = max(rows // tall, 1)
    columns = -(-len(lists) // column_length)
    left = MARGIN + 0.3 + TITLE + (GAP + TITLE if "flipped item" in case.history else 0.2) + 0.35
    width = max(left + columns * BLOCK + MARGIN, 9.0)
    caption = [line for text in case.caption for line in textwrap.wrap(text, int(width * 14))]
    bottom = TOP + max(rows, tall) * ROW
    height = bottom + 0.75 + 0.2 * len(caption)
    page = Page(width, height, palette(case))
    draw_history(page, case, last)
    for i, (name, lines) in enumerate(lists.items()):
        x, y = left + i // column_length * BLOCK, TOP + (i % column_length * tall + 0.3) * ROW
        draw_model(page, x, y, str(name), lines)
    draw_legend(page, case, 1 - bottom / height)
    for i, line in enumerate(caption):
        page.write(MARGIN, bottom + 0.7 + 0.2 * i, line, color="#222222")
    return page.figure


def save(figure: Figure, stem: Path, title: str) -> None:
    """PNG and SVG, the same bytes for the same figure; the title is in both for the blind."""
    # Paths, not fonts: the reader may lack them. The salt makes the SVG's ids repeat.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "sigma"}):
        figure.savefig(f"{stem}.png", metadata={"Title": title})
        figure.savefig(f"{stem}.svg", metadata={"Title": title, "Date": None})
