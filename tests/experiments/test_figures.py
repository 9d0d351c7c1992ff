"""The report's figures: what they draw of a frame, and that nothing lies on anything else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from experiments import figures

Draw = Callable[[pd.DataFrame, Path], Path | None]
NAN = float("nan")
MODELS = ["SIGMA", "$ECHO$", "Mamba4Rec", "SASRec", "BERT4Rec", "GRU4Rec", "LinRec", "FEARec", "x"]
GROUPS = [("short [0, 5)", 9300), ("medium [5, 20)", 11800), ("long [20, …)", 1263)]
BINS = ["3–4", "5–6", "7–9", "10–14", "15–19", "20–29", "30–49", "50+"]
METRICS = ["hr@10", "ndcg@10"]


def long_tail(datasets: int = 2, models: int = 3) -> pd.DataFrame:
    return pd.DataFrame(
        {"dataset": f"d{d}", "bin": name, "users": 9000 // 3**i, "model": MODELS[m],
         "hr@10": 0.05 + 0.01 * i + 0.005 * m, "sd": NAN if m == 1 else 0.002}
        for d in range(datasets) for m in range(models) for i, name in enumerate(BINS)
    )  # fmt: skip


def groups(datasets: int = 2, models: int = 9, by: str = "model") -> pd.DataFrame:
    return pd.DataFrame(
        {"dataset": f"d{d}", "group": name, "users": users, by: MODELS[m], "metric": metric,
         "mean": NAN if (m, i) == (1, 2) else 0.05 + 0.03 * i, "sd": NAN if m == 0 else 0.002}
        for d in range(datasets) for metric in METRICS for m in range(models)
        for i, (name, users) in enumerate(GROUPS)
    )  # fmt: skip


def variants() -> pd.DataFrame:
    return groups(1, 5, "variant")


def flips() -> pd.DataFrame:
    return pd.DataFrame(
        {"dataset": "d0", "r": r, "metric": metric, "split": split, "mean": 0.07 + 0.01 * i,
         "sd": 0.001 if r != 20 else NAN, "n": 5 if r != 20 else 1}
        for metric in METRICS for split in ("val", "test") for i, r in enumerate([20, "N", 5, 1])
    )  # fmt: skip


def scores() -> pd.DataFrame:
    return pd.DataFrame(
        {"dataset": f"d{d}", "model": MODELS[m], "source": source, "value": 0.08, "metric": "hr@10"}
        for d in range(2) for m in range(9) for source in reversed(figures.SOURCES)
    )  # fmt: skip


ALL: list[tuple[Draw, Callable[[], pd.DataFrame], str]] = [
    (figures.long_tail, long_tail, "hr@10"),
    (figures.groups, groups, "mean"),
    (figures.ablation_groups, variants, "mean"),
    (figures.flip_range, flips, "mean"),
    (figures.paper_against_ours, scores, "value"),
]
each = pytest.mark.parametrize(("draw", "frame", "column"), ALL, ids=[a[0].__name__ for a in ALL])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures drawn, as they are when they are saved."""
    made: list[Any] = []
    save = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, *a: made.append(figure) or save(figure, *a))
    return made


def panels(figure: Any) -> list[Any]:
    """Axes with a title: without the second axes of a panel."""
    return [axes for axes in figure.axes if axes.get_title()]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def ticks(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_xticklabels()]


@pytest.mark.filterwarnings("error::UserWarning")
@each
def test_png_and_svg(draw: Draw, frame: Any, column: str, tmp_path: Path, drawn: list[Any]) -> None:
    png = draw(frame(), tmp_path / "new" / "figure.1")
    assert png == tmp_path / "new" / "figure.1.png"
    pixels = matplotlib.image.imread(png)
    inches = drawn[0].get_size_inches()
    assert pixels.shape[:2] == pytest.approx(inches[::-1] * 150, abs=1)
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 50  # something is drawn
    svg = png.with_suffix(".svg")
    titles = ElementTree.parse(svg).iter("{http://purl.org/dc/elements/1.1/}title")
    assert len(str(next(titles).text)) > 10
    assert {path.name for path in png.parent.iterdir()} == {png.name, svg.name}
    before = svg.read_bytes(), png.read_bytes()
    draw(frame(), tmp_path / "new" / "figure.1")
    assert (svg.read_bytes(), png.read_bytes()) == before


@each
def test_nothing_to_draw(draw: Draw, frame: Any, column: str, tmp_path: Path) -> None:
    for nothing in (frame()[:0], frame().assign(**{column: NAN})):
        assert draw(nothing, tmp_path / "x") is None
    with pytest.raises(ValueError, match=f"lacks {column}"):
        draw(frame().drop(columns=column), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("draw", "frame", "column"), ALL[:4])
def test_two_rows_of_one_point(draw: Draw, frame: Any, column: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two rows of one point"):
        draw(pd.concat([frame(), frame()]), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@each
def test_no_text_lies_on_another(
    draw: Draw, frame: Any, column: str, tmp_path: Path, drawn: list[Any]
) -> None:
    draw(frame(), tmp_path / "x")
    figure = drawn[0]
    figure.canvas.draw()
    texts = [figure.legends[0]]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
            texts += [t.label2 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    boxes = [text.get_window_extent() for text in texts
             if text.get_visible() and getattr(text, "get_text", lambda: "legend")()]  # fmt: skip
    width, height = figure.bbox.width, figure.bbox.height
    for at, box in enumerate(boxes):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
        for other in boxes[at + 1 :]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            down = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert across <= 1 or down <= 1


def test_long_tail(tmp_path: Path, drawn: list[Any]) -> None:
    frame = long_tail()
    frame.loc[(frame["model"] == "SIGMA") & (frame["bin"] == "5–6"), "hr@10"] = NAN
    figures.long_tail(frame, tmp_path / "x")
    left = panels(drawn[0])[0]
    right = next(axes for axes in drawn[0].axes if axes.get_ylabel() == "HR@10")
    assert legend(drawn[0]) == ["users", "SIGMA", r"\$ECHO\$", "Mamba4Rec"]
    assert ticks(left) == BINS
    assert [bar.get_height() for bar in left.patches] == [9000 // 3**i for i in range(8)]
    assert left.get_yscale() == "log"
    assert right.get_ylim()[0] == 0
    sigma = right.lines[0].get_ydata()
    assert np.isnan(sigma[1])  # a gap, not a line across
    assert sigma[2] == pytest.approx(0.07)
    looks = {(line.get_color(), line.get_marker()) for line in right.lines if len(line.get_xdata())}
    assert len(looks) >= 3
    figures.long_tail(frame.assign(users=[100 + i % 8 for i in range(len(frame))]), tmp_path / "y")
    assert drawn[1].axes[0].get_yscale() == "linear"


def test_bins_keep_the_order_of_their_categories(tmp_path: Path, drawn: list[Any]) -> None:
    frame = long_tail(1, 1)
    frame = frame.assign(bin=pd.Categorical(frame["bin"], ["none", *BINS]))
    figures.long_tail(frame.sample(frac=1, random_state=0), tmp_path / "x")
    assert ticks(drawn[0].axes[0]) == BINS
    assert [bar.get_height() for bar in drawn[0].axes[0].patches][:2] == [9000, 3000]


def test_groups(tmp_path: Path, drawn: list[Any]) -> None:
    figures.groups(groups(), tmp_path / "x")
    found = panels(drawn[0])
    seen = [(axes.get_title(), axes.get_ylabel()) for axes in found]
    assert seen == [("d0", "HR@10"), ("d0", "NDCG@10"), ("d1", "HR@10"), ("d1", "NDCG@10")]
    assert ticks(found[0]) == [f"{name}\n{users:,} users" for name, users in GROUPS]
    heights = [[bar.get_height() for bar in bars] for bars in found[0].containers
               if hasattr(bars[0], "get_height")]  # fmt: skip
    assert heights[0] == pytest.approx([0.05, 0.08, 0.11])
    assert [text.get_text() for text in found[0].texts] == ["n/a"]  # measured nothing, not zero
    assert len(legend(drawn[0])) == 9
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bar in found[0].patches}
    assert len(looks) == 9


def test_one_metric_has_a_panel_for_each_dataset(tmp_path: Path, drawn: list[Any]) -> None:
    frame = groups(3, 2)
    frame = frame[(frame["metric"] == "hr@10") & (frame["dataset"] != "d1")]
    figures.groups(frame, tmp_path / "x")
    assert [axes.get_title() for axes in panels(drawn[0])] == ["d0", "d2"]


def test_a_metric_without_numbers_leaves_its_place_empty(tmp_path: Path, drawn: list[Any]) -> None:
    frame = groups(2, 2)
    frame.loc[(frame["dataset"] == "d0") & (frame["metric"] == "hr@10"), "mean"] = NAN
    figures.groups(frame, tmp_path / "x")
    seen = [(axes.get_title(), axes.get_ylabel()) for axes in panels(drawn[0])]
    assert seen == [("d0", "NDCG@10"), ("d1", "HR@10"), ("d1", "NDCG@10")]
    columns = [round(axes.get_position().x0, 1) for axes in panels(drawn[0])]
    assert columns[0] == columns[2] > columns[1]


def test_ablation_groups(tmp_path: Path, drawn: list[Any]) -> None:
    figures.ablation_groups(variants(), tmp_path / "x")
    assert legend(drawn[0])[0] == "SIGMA"
    assert len(legend(drawn[0])) == 5


def test_flip_range(tmp_path: Path, drawn: list[Any]) -> None:
    figures.flip_range(flips(), tmp_path / "x")
    first, second = panels(drawn[0])
    assert (first.get_ylabel(), second.get_ylabel()) == ("HR@10", "NDCG@10")
    assert ticks(first) == ["1", "5", "20", "N"]
    val = first.lines[0]
    assert val.get_ydata() == pytest.approx([0.10, 0.09, 0.07, 0.08])
    assert legend(drawn[0]) == ["validation", "test"]
    assert drawn[0].legends[0].get_title().get_text() == "mean ± sd of 1 to 5 seeds"
    bars = [segments for c in first.containers for segments in c.lines[2][0].get_segments()]
    assert len(bars) == 2 * 3  # none of the single seed


def test_paper_against_ours(tmp_path: Path, drawn: list[Any]) -> None:
    frame = scores()
    frame = frame[(frame["model"] != "x") | (frame["source"] != "paper")]
    figures.paper_against_ours(frame, tmp_path / "x")
    first = panels(drawn[0])[0]
    assert legend(drawn[0]) == list(figures.SOURCES)
    assert next(label.get_text() for label in first.get_yticklabels()) == "SIGMA"
    assert first.get_ylim()[0] > first.get_ylim()[1]  # the first model on top
    assert first.get_xlabel() == "HR@10"
    assert len(first.lines[0].get_xdata()) == 8
    heights = [round(line.get_ydata()[0], 3) for line in first.lines]
    assert len(set(heights)) == 5  # equal numbers, one below the other
    assert all(abs(height) < 0.5 for height in heights)
    figures.paper_against_ours(frame.drop(columns="metric"), tmp_path / "y")
    assert panels(drawn[1])[0].get_xlabel() == "score"
