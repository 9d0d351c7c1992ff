"""The case study: whom it picks, the flip it shows, its tables, and a picture that can be read."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor

from experiments.case import __main__ as command
from experiments.case import picture, study
from experiments.case.study import Case
from sigma.datamodules.titles import Title
from sigma.errors import UserError
from sigma.ops import rows_of
from sigma.trained import TrainedRun, load
from tests.in_process import call
from tests.runs.front_door import Capture, Patch

SHOP = [
    *("dataset=simulated", "dataset.shop.num_users=150", "dataset.shop.num_items=60"),
    *("dataset.shop.num_categories=12", "dataset.shop.longest=30", "dataset.max_length=12"),
    *("trainer.max_epochs=1", "logger=none"),
]
pytestmark = pytest.mark.slow  # of the runs that most tests read
Folders, Runs = dict[str, Path], dict[str, TrainedRun]
SMALL = ["model.hidden_size=8", "model.mamba.state_size=4"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    place = tmp_path_factory.mktemp("runs")
    models: dict[str, list[str]] = {
        "sigma": ["model.r=3", *SMALL],
        "sigma_released": ["model.flip_until=9", *SMALL],
        "popularity": [],
        "markov": [],
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, overrides in models.items():
            typed = [*SHOP, f"model={name}", *overrides, f"hydra.run.dir={place / name}"]
            assert call(patch, *typed) == 0
    return {name: place / name for name in models}


@pytest.fixture(scope="module")
def runs(folders: Folders) -> Runs:
    return {name: load(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("length", [1, 2, 4, 5, 11, 12])
def test_the_flip_is_the_models(runs: Runs, length: int) -> None:
    """Each model's own layer flips a row that holds its positions."""
    layer: Any = runs["sigma"].task.model.layers[0]
    rows = rows_of(torch.tensor([4, length, 7]), 12)
    places = torch.arange(rows.offsets[-1]).double()[:, None].expand(-1, layer.mixed.in_features)
    read: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(layer, "direction", lambda states, *_: read.append(states) or states)
        layer.both_directions(places, rows, None)
    assert torch.equal(read[0], places)
    positions = (read[1][:, 0].long() - 4).tolist()
    assert study.flip_of(runs["sigma"], length) == (positions[4 : 4 + length], min(3, length))
    layer = runs["sigma_released"].task.model.layers[0]
    columns = torch.arange(12.0).reshape(1, 12, 1)
    order = layer.flipped(columns, torch.tensor([length]))[0, :length, 0].long().tolist()
    assert study.flip_of(runs["sigma_released"], length) == (order, max(length - 9, 0))
    assert study.flip_of(runs["popularity"], length) is None


def test_a_flip_that_is_switched_off_is_none(runs: Runs) -> None:
    def flip(name: str, **settings: Any) -> Any:
        config = runs[name].config.copy()
        config.model.update(settings)
        return study.flip_of(runs[name]._replace(config=config), 9)

    assert flip("sigma", partial_flip=False) is None
    assert flip("sigma_released", flip_until=0) is None
    assert flip("sigma_released", flip_until=None, r=3) == flip("sigma")


def test_a_case_is_what_the_runs_know(runs: Runs, folders: Folders) -> None:
    names = ["popularity", "sigma", "markov"]
    sequences = runs["sigma"].sequences
    longest = int(np.diff(sequences.offsets).argmax())
    user = str(sequences.user_ids[longest])
    case = study.study([runs[name] for name in names], user)
    items = sequences.items[sequences.offsets[longest] : sequences.offsets[longest + 1]]
    raw = [str(sequences.item_ids[i - 1]) for i in items]
    assert (case.history["item"].tolist(), case.target["item"]) == (raw[-13:-1], raw[-1])
    assert case.history["flipped item"].tolist() == [*raw[-13:-4][::-1], *raw[-4:-1]]
    assert case.fixed == 3
    assert case.recommendations["model"].unique().tolist() == names
    assert case.recommendations["model"].value_counts().tolist() == [5, 5, 5]
    for line in case.recommendations.to_dict("records"):
        ranks = pd.read_parquet(folders[line["model"]] / "ranks.parquet").set_index("user")
        assert line["rank"] == ranks.loc[user, "greater"] + 1 + ranks.loc[user, "ties"] / 2
    assert sequences.item_info is not None
    genres = dict(zip(map(str, sequences.item_ids), sequences.item_info["genres"], strict=True))
    assert case.history["genres"].tolist() == [genres[item] for item in case.history["item"]]


def test_the_user_of_median_length(runs: Runs, folders: Folders) -> None:
    user, why = study.median_user(runs["markov"])
    ranks = pd.read_parquet(folders["markov"] / "ranks.parquet")
    median = sorted(ranks["history_length"])[(len(ranks) - 1) // 2]
    fits = ranks.loc[ranks["history_length"] == median, "user"]
    assert user == min(fits, key=int)
    assert f"({median})" in why
    assert str(len(fits)) in why


def test_runs_on_other_data_have_no_case(runs: Runs, tmp_path: Path, monkeypatch: Patch) -> None:
    overrides = [*SHOP, "model=popularity", "dataset.shop.seed=1", f"hydra.run.dir={tmp_path}"]
    assert call(monkeypatch, *overrides) == 0
    with pytest.raises(UserError, match="trained on other data"):
        study.study([runs["sigma"], load(tmp_path)])
    with pytest.raises(UserError, match="no user 5050"):
        study.study([runs["markov"]], "5050")


def awkward(length: int, models: int, stay: int = 5) -> Case:
    """Long and strange titles, many genres, a target that some models find, padding read."""
    words = ["$9.99 and $5 (2008)", "A long title " * 4, "Pipe | and _under_ ^sharp^", "Ça ira"]
    genres = ["Action", "Drama", "Comedy", "Horror", "War", "Crime", "Musical", "Western", "Noir"]
    items = [f"i{i}" for i in range(length)]
    known = [i for i in range(length) if i % 7 != 6]
    titles = {f"i{i}": Title(words[i % 4], tuple(genres[i % 9 : i % 9 + 2])) for i in known}
    history = study.described(items, titles)
    history.insert(0, "position", range(1, length + 1))
    order = [*range(length - stay - 1, -1, -1), *range(max(length - stay, 0), length)]
    order[0] = length  # padding
    history = history.join(history.reindex(order).reset_index(drop=True).add_prefix("flipped "))
    names = [f"a_model_with_a_long_name, {j}" for j in range(models)]
    others = [item for item in items if item != "i1"]
    parts = []
    for j, name in enumerate(names):
        part = study.described([*others[:j], "i1", *others[j:]][:5], titles)
        hit = part["item"] == "i1"
        columns = {"model": name, "rank": j + 1.0, "place": range(1, len(part) + 1), "hit": hit}
        parts.append(part.assign(**columns, score=0.5))
    target = study.described(["i1"], titles).iloc[0]
    caption, advice = ["Chosen by its id. " * 9], pd.concat(parts)
    return Case("data", "u/1", target, history, min(stay, length), advice, caption)


@pytest.mark.parametrize(
    ("length", "models", "last"), [(50, 5, 20), (3, 1, 20), (12, 9, 30), (200, 2, 10), (1, 1, 1)]
)
def test_no_text_lies_over_another_or_leaves_the_picture(
    length: int, models: int, last: int
) -> None:
    figure = picture.draw(awkward(length, models), last)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [*figure.axes[0].texts, *figure.legends[0].get_texts()]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text()]
    assert len(boxes) > min(length, last) * 2
    width, height = canvas.get_width_height()
    for text, box in boxes:
        assert 0 <= box.x0 <= box.x1 <= width, text
        assert 0 <= box.y0 <= box.y1 <= height, text
    for (text, one), (other, two) in itertools.combinations(boxes, 2):
        apart = one.x1 <= two.x0 or two.x1 <= one.x0 or one.y1 <= two.y0 + 2 or two.y1 <= one.y0 + 2
        assert apart, (text, other)


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    case = awkward(8, 2)
    (one, _), (two, _) = (command.keep(case, tmp_path / folder) for folder in ("a", "b"))
    assert one.name == "case_u_1"
    for ending in (".png", ".svg", "_history.csv", "_recommendations.csv"):
        assert Path(f"{one}{ending}").read_bytes() == Path(f"{two}{ending}").read_bytes()
    lines = pd.read_csv(f"{one}_recommendations.csv")
    assert lines.loc[lines["hit"], "item"].tolist() == ["i1", "i1"]


def test_the_command(folders: Folders, tmp_path: Path, capsys: Capture) -> None:
    films = tmp_path / "films.csv"
    films.write_text("item,title,genres\n1,The First,Drama|War\n")
    runs = [str(folders["sigma_released"]), str(folders["markov"])]
    out = ["--out", str(tmp_path / "out")]
    command.main(["--runs", *runs, "--titles", str(films), "--top", "3", *out])
    text = capsys.readouterr().out
    assert "sigma_released reads it flipped" in text
    assert "no known title" in text
    lines = pd.read_csv(next((tmp_path / "out").glob("*_recommendations.csv")))
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("slip", "answer"), [("last=0", "at least 1"), ("titles=none.csv", "none.csv")]
)
def test_a_slip_ends_in_one_sentence(
    slip: str, answer: str, folders: Folders, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["--runs", str(folders["markov"]), f"--{slip}", "--out", "none"])
    assert end.value.code == 1
    assert answer in capsys.readouterr().err


def test_labels_of_runs_of_one_model(runs: Runs) -> None:
    run, config = runs["sigma"], runs["sigma"].config.copy()
    config.seed = 7
    labels = study.labels([run, runs["markov"], run._replace(config=config)])
    assert labels == ["sigma, seed 2020", "markov", "sigma, seed 7"]
    assert len(set(study.labels([run, run]))) == 2
