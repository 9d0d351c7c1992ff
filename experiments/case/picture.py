"""The picture of a case study: a history before and after the flip, and what models recommend."""

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.canvas import COLOURS as SIX
from experiments.canvas import GREY, picture, save
from experiments.case.study import Case, Found, caption

COLOURS = (*SIX, "#F0E442")  # the palette's seventh; black is for text
OTHER, UNKNOWN = "#A0A0A0", "#FFFFFF"


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
        case, [*case.row, case.target, *(item for f in case.found for item in f.items)]
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
    save(figure, folder / name, f"Case study: user {case.user} of {case.dataset}")
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
