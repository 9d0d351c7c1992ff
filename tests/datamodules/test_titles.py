"""Titles and genres: of each file that MovieLens has, of tables, and those that came with data."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sigma.datamodules.locate import locate
from sigma.datamodules.preprocess import Bounds, Sequences, preprocess
from sigma.datamodules.titles import Title, read_titles, titles_of
from sigma.errors import UserError
from tests.datamodules import raw_files as raw
from tests.datamodules.test_datasets import dataset, real

ROWS = raw.interactions()
FILES: dict[str, Any] = {
    "u.item": (raw.ml_100k, "Café 3 (1995)"),
    "movies.dat": (raw.ml_1m, "Café 3 (1995)"),
    "movies.csv": (raw.ml_csv, "Café, the 3 (1995)"),
    "ml.item": (lambda folder, rows: raw.recbole(folder, "ml", rows), 'The "Café" 3'),
}


def processed(path: Path, *bounds: Bounds) -> Sequences:
    return preprocess(locate(path, path.parent / "unpacked").read(), *bounds)


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_comes_with_the_data(name: str, tmp_path: Path) -> None:
    make, title = FILES[name]
    folder = make(tmp_path / "x", ROWS)
    titles = read_titles(folder / name)
    assert len(titles) == 49
    assert titles["3"] == Title(title, ("Comedy", "Drama"))
    data = processed(folder, (14, None), (None, 20))  # titles follow the dense ids
    assert 0 < data.num_items < 9
    assert titles_of(data) == {str(i): titles[str(i)] for i in data.item_ids}


def test_a_title_named_twice_is_the_first(tmp_path: Path) -> None:
    folder = raw.ml_1m(tmp_path / "x", [raw.Row(1, 7, 0), raw.Row(1, 77, 0)])
    films = (folder / "movies.dat").read_text("latin-1")
    raw.write(folder / "movies.dat", films + films.replace("Café", "Cite"), "latin-1")
    assert {i: t.title for i, t in titles_of(processed(folder)).items()} == {"7": "Café 7 (1995)"}


def test_movies_dat_in_utf8(tmp_path: Path) -> None:
    """ML-10M's; read as Latin-1 the second byte of Å would end the line."""
    text = "1::Ådalen 31 (1969)::Drama\r\n2::Cité::War\r\n"
    titles = read_titles(raw.write(tmp_path / "movies.dat", text))
    assert titles == {"1": Title("Ådalen 31 (1969)", ("Drama",)), "2": Title("Cité", ("War",))}


@pytest.mark.parametrize("name", ["mine.csv", "mine.tsv", "mine.parquet"])
def test_any_table(name: str, tmp_path: Path) -> None:
    names, genres = ["Dr. No, again", "x", "y"], ["Spies; Cars", "(no genres listed)", "Food, Bars"]
    table = pd.DataFrame({"asin": ["007", "8", "9"], "Name": names, "Categories": genres})
    path = tmp_path / name
    if name.endswith("parquet"):
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="," if name.endswith("csv") else "\t")
    want = {"007": (names[0], ("Spies", "Cars")), "8": ("x", ()), "9": ("y", ("Food", "Bars"))}
    assert read_titles(path) == {item: Title(*title) for item, title in want.items()}


def test_a_list_of_genres_and_numbers_as_ids_and_no_genres(tmp_path: Path) -> None:
    columns = {"item_id": [3, 4], "title": ["a", None], "genres": [["War", "Noir"], []]}
    path = tmp_path / "mine.parquet"
    pd.DataFrame(columns).to_parquet(path)
    assert read_titles(path) == {"3": Title("a", ("War", "Noir"))}
    path = raw.write(tmp_path / "mine.csv", "item,title\n1,a\n")
    assert read_titles(path) == {"1": Title("a")}
    assert titles_of(processed(raw.csv_table(tmp_path / "x.csv", ROWS))) == {}


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("a.csv", "item,price\n1,2\n", "looks like the title; it has: item, price"),
        ("a.csv", "title,price\n1,2\n", "no column that looks like the item"),
        ("a.csv", "item,title\n1,2,3,4\n5\n6,7,8,9,10\n", "line 2: not an item's record"),
        ("a.parquet", "no", "is not a readable Parquet file"),
        ("a.item", "item_id:token\n1\n", "has no column of titles"),
        ("news.tsv", "N1\tsports\tgolf\tA hole\tx\ty\t[]\n", "not laid out as a news.tsv is, 8"),
    ],
)
def test_files_that_are_none(name: str, text: str, answer: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=answer):
        read_titles(raw.write(tmp_path / name, text))
    with pytest.raises(UserError, match="is no file"):
        read_titles(tmp_path / "none.csv")


PLAIN = {
    "movies.csv": "movieId,title,genres\n1,Toy Story (1995),Animation|Comedy\n2,Jumanji,\n",
    "films.tsv": "item\ttitle\tgenre\n007\tDr. No, again\tSpies;Cars\n8\t 'x' \tunknown\n",
    "movies.dat": "1::Ådalen 31::Drama\n2::Cité::War|Noir\n",
    "news.tsv": 'N1\tsports\tgolf\tA "hole" in one\tx\ty\t[]\t[]\nN2\tnews\tworld\tPeace\t\t\t\t\n',
    "ml.item": "item_id:token\tmovie_title:token_seq\tclass:token_seq\n1\tToy\tWar Noir\n2\t\t\n",
    "marked.csv": "\ufeffitem,title\n1,a\n2,b\n",
    "empty.csv": "item,title,genres\n,nobody,War\n3,,\n4,d,War\n3,twice,\n",
    "blank.csv": "item,title\n1,a\n\n2,b\n",
    "returns.csv": "item,title\r\n1,a\r\n2,b\r\n",
    "quoted.csv": 'item,title\n1,"a, b"\n2,"c ""d"""\n',
    "last.csv": "item,title\n1,a\n2,b",
    "spaces.csv": "item, title\n 1 , a \n2,\tb\n",
    "short.csv": "item,title,genres\n1,a\n2,b,War\n",
    "long.csv": "item,title\n1,a\n2,b,c\n",
    "null.csv": "item,title\n1,NULL\n2,nan\nNA,c\n",
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_small_plain_table_says_without_the_engine_what_it_says_with_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = raw.write(tmp_path / name, PLAIN[name])
    quick = outcome(path)
    monkeypatch.setattr("sigma.datamodules.titles._SMALL", -1)
    assert quick == outcome(path)


def outcome(path: Path) -> dict[str, Title] | str:
    try:
        return read_titles(path)
    except UserError as error:
        return str(error)


TOY_STORY = Title("Toy Story", ("Animation", "Children's", "Comedy"))
JUMANJI = Title("Jumanji (1995)", ("Adventure", "Children", "Fantasy"))


@pytest.mark.parametrize(
    ("path", "file", "item", "expected"),
    [
        real("ml-100k", "ml-100k.item", "1", TOY_STORY),
        real("ml-latest-small", "movies.csv", "2", JUMANJI),
    ],
)
def test_real_films(path: Path, file: str, item: str, expected: Title, tmp_path: Path) -> None:
    module = dataset("custom", tmp_path, path=str(path), malformed="skip")
    mine, titles = titles_of(module.sequences), read_titles(path / file)
    assert titles[item] == mine[item] == expected
    assert len(mine) == module.num_items  # every film has a title
    assert titles.items() >= mine.items()
    assert sum(bool(t.genres) for t in mine.values()) > 0.99 * len(mine)
