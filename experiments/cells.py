"""Numbers as cells of a table."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.lines import Line
from experiments.render import Cell


def number(value: float | None, digits: int = 4) -> str:
    """``.0737``; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def spread_cell(line: Line, split: str, metric: str, mark: str = "") -> Cell:
    """Mean ± standard deviation, and how many seeds where fewer than asked."""
    mean, deviation, n = line.spread(split, metric)
    if mean is None:
        return Cell("–")
    text = number(mean) + (f" ± {number(deviation)}" if deviation is not None else "")
    there = [row.seed for row in line.rows]
    if not set(there) <= set(line.seeds):
        note = f"seed{'s' if n > 1 else ''} {', '.join(map(str, there))}"
    else:
        note = f"{n} of {len(line.seeds)} seeds" if n < len(line.seeds) else ""
    return Cell(text, mean, mark, note)


def number_cell(value: float | None) -> Cell:
    return Cell(number(value), value)


def minus(text: str) -> str:
    """With the sign that is as wide as a plus."""
    return text.replace("-", "−")


def change_cell(ours: float | None, theirs: float | None) -> Cell:
    """Relative difference in per cent."""
    if ours is None or not theirs:
        return Cell("–")
    change = ours / theirs - 1
    return Cell(minus(f"{change:+.1%}"), change)


def count_cell(value: Any) -> Cell:
    return Cell("–") if value is None else Cell(f"{int(value):,}", float(value))


def value_cell(value: Any, form: str) -> Cell:
    return Cell("–") if pd.isna(value) else Cell(form.format(float(value)), float(value))


def line_marks(found: Sequence[Line], split: str, metric: str) -> list[str]:
    """``marks`` of lines' means; none where they are of unequal numbers of seeds, or below three.

    A counted model has one run, which stands for every seed.
    """
    spreads = [(line, *line.spread(split, metric)) for line in found]
    seeds = {n for line, _, _, n in spreads if n and not line.rows[0].counted}
    there = sum(mean is not None for _, mean, _, _ in spreads)
    if len(seeds) > 1 or there < 3:
        return [""] * len(found)
    return marks([mean for _, mean, _, _ in spreads])


def marks(values: Sequence[float | None]) -> list[str]:
    """Best and second best; equals share a mark."""
    ranked = sorted({v for v in values if v is not None}, reverse=True)
    names = dict(zip(ranked, ("best", "second"), strict=False))
    return [names.get(v, "") if v is not None else "" for v in values]
