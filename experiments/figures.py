"""The report's figures: a frame and a path without suffix in, a PNG and an SVG of it out.

Every function returns the PNG's path, or None, and writes nothing, where there is nothing to draw.
Things are drawn in the order they come in the frame (of a categorical column: of its categories).
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.canvas import COLOURS as SIX
from experiments.canvas import GREY, LIGHT, picture, save

# Where the colours come round again, marker, line and hatch differ; they tell things apart in grey,
# too.
COLOURS = (*SIX, "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES = ("-", "--", "-.", ":")
# Hatches of straight lines alone: one of dots is 150 to 300 KB of curves in an SVG.
HATCHES = ("", "///", "|||", "\\\\\\", "xxx", "---", "||", "+++", "--")
LOG_FROM = 20  # times the smallest count, the largest: then counts need a log axis


def _columns(frame: pd.DataFrame, *names: str) -> None:
    lacks = [name for name in names if name not in frame]
    if lacks:
        raise ValueError(f"The figure's frame lacks {', '.join(lacks)}; it has {list(frame)}.")


def ordered(values: pd.Series) -> list[Any]:
    """Distinct values: as the categories are, or as they come."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        there = set(values.dropna())
        return [value for value in values.cat.categories if value in there]
    return list(dict.fromkeys(values.dropna()))


def plain(text: object) -> str:
    """A label as it is: matplotlib would read mathematics between two dollar signs."""
    return str(text).replace("$", r"\$")


def metric_label(name: object) -> str:
    """HR@10 of hr@10, and MRR@10 of mrr@10."""
    return plain(name).upper()


def _grid(panels: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure and the axes of so many panels, row by row."""
    rows = math.ceil(panels / columns)
    figure = picture(width * columns, height * rows)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    axes = [figure.add_subplot(rows, columns, at + 1) for at in range(panels)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.set_axisbelow(True)
    return figure, axes


def _legend(figure: Any, handles: dict[str, Any], title: str | None = None) -> None:
    """One legend under all panels, in as many columns as the figure has room for."""
    longest = max(len(label) for label in handles) + 6
    room = max(1, int(figure.get_figwidth() * 12 / longest))
    rows = math.ceil(len(handles) / room)
    figure.legend(
        list(handles.values()), list(handles), title=title, loc="outside lower center",
        ncols=math.ceil(len(handles) / rows), fontsize=8.5, title_fontsize=8.5, frameon=False,
    )  # fmt: skip


def _panels(frame: pd.DataFrame, keys: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Key and rows of every panel that has any, the first key slowest."""
    if not keys:
        yield (), frame
        return
    for value in ordered(frame[keys[0]]):
        for rest, part in _panels(frame[frame[keys[0]] == value], keys[1:]):
            if len(part):
                yield (value, *rest), part


def _counts(part: pd.DataFrame, key: str, values: Sequence[Any]) -> list[float]:
    """Users of each value; the rows of one value repeat their number."""
    most = part.groupby(key, observed=True)["users"].max()
    return [float(most.get(value, math.nan)) for value in values]


def _at(part: pd.DataFrame, key: str, values: Sequence[Any], column: str) -> list[float]:
    """A column at each value of a key, NaN where there is none.

    Raises:
        ValueError: two rows of one value; the picture would show whichever came last.
    """
    twice = part[key][part[key].duplicated()]
    if len(twice):
        raise ValueError(f"The figure's frame has two rows of one point: {key} {twice.iloc[0]}.")
    found = dict(zip(part[key], part[column].astype(float), strict=True))
    return [found.get(value, math.nan) for value in values]


def _line(axes: Any, x: Sequence[float], mean: Sequence[float], sd: Sequence[float],
          **style: Any) -> Any:  # fmt: skip
    """A line with error bars where there is a deviation; a gap where there is no mean."""
    (line,) = axes.plot(x, mean, linewidth=1.6, markersize=5.5, markeredgewidth=1.3, **style)
    bars = [(a, m, s) for a, m, s in zip(x, mean, sd, strict=True) if m == m and s == s]
    if bars:
        where, means, deviations = zip(*bars, strict=True)
        axes.errorbar(where, means, deviations, fmt="none", ecolor=line.get_color(),
                      elinewidth=1, capsize=2.5, zorder=line.get_zorder())  # fmt: skip
    return line


def _looks(names: Sequence[Hashable], **more: Any) -> dict[Any, dict[str, Any]]:
    """Name -> colour, marker and line of it, the same in every panel."""
    return {
        name: {
            "color": COLOURS[at % len(COLOURS)],
            "marker": MARKERS[at % len(MARKERS)],
            "linestyle": LINES[at // len(COLOURS) % len(LINES)],
            **more,
        }
        for at, name in enumerate(names)
    }


def long_tail(frame: pd.DataFrame, stem: Path) -> Path | None:
    """Figure 1: users of each history length as bars, HR@10 of each model over them as lines.

    Args:
        frame: columns dataset, bin (labels in order), users, model, hr@10 (mean), sd (may be NaN).
        stem: path without suffix.
    """
    _columns(frame, "dataset", "bin", "users", "model", "hr@10", "sd")
    from matplotlib.patches import Patch

    parts = [(k, p) for k, p in _panels(frame, ["dataset"]) if p["hr@10"].notna().any()]
    if not parts:
        return None
    figure, panels = _grid(len(parts), min(2, len(parts)), 5.4, 3.7)
    looks = _looks(ordered(frame["model"]))
    handles: dict[str, Any] = {"users": Patch(facecolor=LIGHT, edgecolor=GREY, linewidth=0.6)}
    for axes, ((dataset,), part) in zip(panels, parts, strict=True):
        bins = ordered(part["bin"])
        counts = _counts(part, "bin", bins)
        axes.bar(range(len(bins)), counts, 0.86, color=LIGHT, edgecolor=GREY, linewidth=0.6)
        some = [count for count in counts if count > 0]
        if some and max(some) > LOG_FROM * min(some):
            axes.set_yscale("log")
            axes.set_ylim(min(some) / 3, max(some) * 2)
        else:
            axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(f"users{' (log scale)' if axes.get_yscale() == 'log' else ''}", color=GREY)
        crowded = sum(len(str(label)) + 1 for label in bins) > 55
        axes.set_xticks(range(len(bins)), map(plain, bins), rotation=45 if crowded else 0)
        axes.set(title=plain(dataset), xlabel="history length (items)")
        right = axes.twinx()
        right.spines["top"].set_visible(False)
        models = ordered(part["model"])
        for at, model in enumerate(models):
            own = part[part["model"] == model]
            # A little apart, so that the error bars are seen.
            aside = 0.06 * (at - (len(models) - 1) / 2) if len(models) < 9 else 0
            handles[plain(model)] = _line(
                right, [i + aside for i in range(len(bins))], _at(own, "bin", bins, "hr@10"),
                _at(own, "bin", bins, "sd"), **looks[model],
            )  # fmt: skip
        right.set_ylim(bottom=0)
        right.set_ylabel("HR@10")
    _legend(figure, handles)
    return save(figure, stem, "Users and HR@10 by history length")


def _grouped(frame: pd.DataFrame, stem: Path, by: str, title: str) -> Path | None:
    """Bars of each group and ``by``, a panel for each dataset (and metric, side by side)."""
    _columns(frame, "dataset", "group", "users", by, "metric", "mean", "sd")
    keys = ["dataset", "metric"]
    parts = [(k, p) for k, p in _panels(frame, keys) if p["mean"].notna().any()]
    if not parts:
        return None
    metrics = ordered(frame["metric"])
    names = ordered(frame[by])
    across = len(metrics) if len(metrics) > 1 else min(2, len(parts))
    groups = frame.groupby("dataset", observed=True)["group"].nunique().max()
    width = max(4.6, 0.19 * len(names) * groups + 1.2)
    # A place for every pair: a panel without numbers must not shift the others into its column.
    if len(metrics) > 1:
        datasets = list(dict.fromkeys(key[0] for key, _ in parts))
        found = dict(parts)
        parts = [((d, m), found.get((d, m))) for d in datasets for m in metrics]
    figure, panels = _grid(len(parts), across, width, 3.4)
    handles: dict[str, Any] = {}
    step = 0.84 / len(names)
    for axes, ((dataset, metric), part) in zip(panels, parts, strict=True):
        if part is None:
            axes.set_axis_off()
            continue
        groups_here = ordered(part["group"])
        for at, name in enumerate(names):
            own = part[part[by] == name]
            mean = _at(own, "group", groups_here, "mean")
            sd = _at(own, "group", groups_here, "sd")
            x = [i + (at - (len(names) - 1) / 2) * step for i in range(len(groups_here))]
            bars = axes.bar(
                x, mean, step * 0.92, color=COLOURS[at % len(COLOURS)],
                hatch=HATCHES[at % len(HATCHES)], edgecolor="white", linewidth=0.4,
            )  # fmt: skip
            handles.setdefault(plain(name), bars)
            there = [(a, m, s) for a, m, s in zip(x, mean, sd, strict=True) if m == m and s == s]
            if there:
                for colour, width, cap in (("white", 2.4, 2.8), ("black", 0.9, 2)):  # on black, too
                    axes.errorbar(*zip(*there, strict=True), fmt="none", ecolor=colour,
                                  elinewidth=width, capthick=width, capsize=cap)  # fmt: skip
            for a, m in zip(x, mean, strict=True):
                if m != m:  # nothing measured must not look like zero
                    axes.annotate("n/a", (a, 0), (0, 3), textcoords="offset points", ha="center",
                                  rotation=90, fontsize=7, color=GREY)  # fmt: skip
        counts = _counts(part, "group", groups_here)
        labels = [
            f"{plain(group)}\n{count:,.0f} users" if count == count else plain(group)
            for group, count in zip(groups_here, counts, strict=True)
        ]
        axes.set_xticks(range(len(groups_here)), labels, fontsize=8.5)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y", alpha=0.3)
        axes.set_ylim(bottom=0)
        axes.set(title=plain(dataset), ylabel=metric_label(metric))
    _legend(figure, handles)
    return save(figure, stem, title)


def groups(frame: pd.DataFrame, stem: Path) -> Path | None:
    """Figures 3 and 7: each model's metric by group of users, with error bars.

    Args:
        frame: columns dataset, group, users, model, metric, mean, sd (may be NaN).
        stem: path without suffix.
    """
    return _grouped(frame, stem, "model", "Models by group of users")


def ablation_groups(frame: pd.DataFrame, stem: Path) -> Path | None:
    """Figure 4: the same of variants of one model.

    Args:
        frame: columns dataset, group, users, variant, metric, mean, sd (may be NaN).
        stem: path without suffix.
    """
    return _grouped(frame, stem, "variant", "Ablation by group of users")


def _whole(value: object) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None


def flip_range(frame: pd.DataFrame, stem: Path) -> Path | None:
    """Figure 5: metrics over the number r of items that the flip leaves in place.

    Args:
        frame: columns dataset, r (a number, or a label such as "N", which comes behind them),
            metric, split (val, test), mean, sd (may be NaN), n (seeds).
        stem: path without suffix.
    """
    _columns(frame, "dataset", "r", "metric", "split", "mean", "sd", "n")
    keys = ["dataset", "metric"]
    parts = [(k, p) for k, p in _panels(frame, keys) if p["mean"].notna().any()]
    if not parts:
        return None
    metrics = list(dict.fromkeys(key[1] for key, _ in parts))
    figure, panels = _grid(len(parts), min(len(metrics), len(parts)), 4.8, 3.4)
    styles: dict[Any, dict[str, Any]] = {
        "val": {"marker": "s", "linestyle": "--", "color": COLOURS[0], "markerfacecolor": "white"},
        "test": {"marker": "o", "linestyle": "-", "color": COLOURS[1]},
    }
    styles |= _looks([s for s in ordered(frame["split"]) if s not in styles])
    words = {"val": "validation"}
    handles: dict[str, Any] = {}
    for axes, ((dataset, metric), part) in zip(panels, parts, strict=True):
        marks = list(dict.fromkeys(str(value) for value in part["r"]))
        marks.sort(key=lambda mark: (_whole(mark) is None, _whole(mark) or 0))
        part = part.assign(r=part["r"].astype(str))
        for at, split in enumerate(ordered(part["split"])):
            own = part[part["split"] == split]
            label = words.get(split, plain(split))
            x = [i + 0.06 * (at - 0.5) for i in range(len(marks))]
            handles[label] = _line(
                axes, x, _at(own, "r", marks, "mean"), _at(own, "r", marks, "sd"), **styles[split]
            )
        axes.set_xticks(range(len(marks)), [plain(mark) for mark in marks])
        axes.grid(alpha=0.3)
        axes.margins(y=0.12)
        axes.set(title=plain(dataset), xlabel="r", ylabel=metric_label(metric))
    seeds = sorted({int(n) for n in frame.loc[frame["mean"].notna(), "n"].dropna()})
    title = None
    if seeds:
        some = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
        title = f"mean ± sd of {some} seed{'' if seeds == [1] else 's'}"
    _legend(figure, handles, title)
    return save(figure, stem, "Metrics over the range r of the flip")


SOURCES = ("paper", "authors' log valid", "authors' log test", "ours valid", "ours test")


def paper_against_ours(frame: pd.DataFrame, stem: Path) -> Path | None:
    """The paper's numbers, its authors' logs and ours as dots, one row for each model.

    Args:
        frame: columns dataset, model, source (those of ``SOURCES`` first), value, and, if there is
            more than one or it shall be named, metric.
        stem: path without suffix.
    """
    _columns(frame, "dataset", "model", "source", "value")
    frame = frame.assign(metric=frame.get("metric", "score"))
    frame = frame[frame["value"].notna()]
    parts = list(_panels(frame, ["dataset", "metric"]))
    if not parts:
        return None
    there = ordered(frame["source"])
    sources = [s for s in SOURCES if s in there] + [s for s in there if s not in SOURCES]
    # The authors' and ours: one colour each, hollow on validation, filled on test.
    blue, orange = COLOURS[0], COLOURS[1]
    styles: dict[Any, dict[str, Any]] = {
        "paper": {"marker": "D", "color": "#000000"},
        "authors' log valid": {"marker": "s", "color": blue, "markerfacecolor": "white"},
        "authors' log test": {"marker": "s", "color": blue},
        "ours valid": {"marker": "o", "color": orange, "markerfacecolor": "white"},
        "ours test": {"marker": "o", "color": orange},
    }
    styles |= _looks([s for s in sources if s not in styles])
    most = max(part["model"].nunique() for _, part in parts)
    metrics = frame["metric"].nunique()
    across = metrics if metrics > 1 else min(2, len(parts))
    figure, panels = _grid(len(parts), across, 5.2, 1.2 + 0.58 * most)
    handles: dict[str, Any] = {}
    for axes, ((dataset, metric), part) in zip(panels, parts, strict=True):
        models = ordered(part["model"])
        for at in range(0, len(models), 2):
            axes.axhspan(at - 0.5, at + 0.5, color="#F2F2F2", linewidth=0, zorder=0)
        for at, source in enumerate(sources):
            own = part[part["source"] == source]
            # Equal numbers are what is looked for: one under the other, not one on the other.
            aside = 0.84 * ((at + 0.5) / len(sources) - 0.5)
            style = styles[source] | {"linestyle": "none"}
            (handles[plain(source)],) = axes.plot(
                own["value"], [models.index(model) + aside for model in own["model"]],
                markersize=5.5, markeredgewidth=1.3, **style,
            )  # fmt: skip
        axes.set_yticks(range(len(models)), [plain(model) for model in models])
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.4)
        axes.set(title=plain(dataset))
        axes.set_xlabel(metric_label(metric) if metric != "score" else metric)
    _legend(figure, handles)
    return save(figure, stem, "The paper's numbers, its authors' logs and ours")
