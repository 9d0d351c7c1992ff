"""Titles and genres: of each file that MovieLens has, of tables, and those that came with data."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sigma.datamodules.locate import locate
from sigma.datamodules.preprocess import preprocess
from sigma.datamodules.readers.movielens import read_movies_dat
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


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_comes_with_the_data(name: str, tmp_path: Path) -> None:
    make, title = FILES[name]
    folder = make(tmp_path, ROWS)
    titles = read_titles(folder / name)
    assert len(titles) == 49
    assert titles["3"] == Title(title, ("Comedy", "Drama"))
    assert read_titles(folder) == titles
    data = preprocess(locate(folder, tmp_path).read())
    assert titles_of(data) == {str(i): titles[str(i)] for i in data.item_ids}


def test_movies_dat_in_utf8(tmp_path: Path) -> None:
    """ML-10M's; read as Latin-1 the second byte of Å would end the line."""
    path = tmp_path / "movies.dat"
    path.write_bytes("1::Ådalen 31 (1969)::Drama\r\n2::Cité::War\r\n".encode())
    found = read_movies_dat(path)
    assert found["title"].tolist() == ["Ådalen 31 (1969)", "Cité"]
    assert found["genres"].tolist() == ["Drama", "War"]


@pytest.mark.parametrize("name", ["mine.csv", "mine.tsv", "mine.parquet"])
def test_any_table(name: str, tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "asin": ["007", "8", "9", "10"],
            "Name": ["Dr. No, again", "x", "y", "z"],
            "Categories": ["Spies; Cars", "(no genres listed)", "Food, Bars", ""],
        }
    )
    path = tmp_path / name
    if name.endswith("parquet"):
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="," if name.endswith("csv") else "\t")
    assert read_titles(path) == {
        "007": Title("Dr. No, again", ("Spies", "Cars")),
        "8": Title("x"),
        "9": Title("y", ("Food", "Bars")),
        "10": Title("z"),
    }


def test_a_list_of_genres_and_numbers_as_ids(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    pd.DataFrame(
        {"item_id": [3, 4], "title": ["a", None], "genres": [["War", "Noir"], []]}
    ).to_parquet(path)
    assert read_titles(path) == {"3": Title("a", ("War", "Noir"))}


def test_a_table_without_genres(tmp_path: Path) -> None:
    path = raw.write(tmp_path / "mine.csv", "item,title\n1,a\n")
    assert read_titles(path) == {"1": Title("a")}


def test_data_without_titles(tmp_path: Path) -> None:
    data = preprocess(locate(raw.csv_table(tmp_path / "x.csv", ROWS), tmp_path).read())
    assert titles_of(data) == {}


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        (
            "mine.csv",
            "item,price\n1,2\n",
            "no column that looks like the title; it has: item, price",
        ),
        ("mine.csv", "title,price\n1,2\n", "no column that looks like the item"),
        ("mine.csv", "item,title\n1,2,3,4\n5\n6,7,8,9,10\n", "is not a table with a header"),
        ("mine.parquet", "no", "is not a table with a header"),
        ("mine.item", "item_id:token\n1\n", "has no column of titles"),
    ],
)
def test_files_that_are_none(name: str, text: str, answer: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=answer):
        read_titles(raw.write(tmp_path / name, text))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_titles(tmp_path / "none.csv")
    with pytest.raises(UserError, match="holds no file of titles"):
        read_titles(tmp_path)


FILMS = {
    "ml_100k": ("ml-100k.item", "1", Title("Toy Story", ("Animation", "Children's", "Comedy"))),
    "ml_latest_small": (
        *("movies.csv", "2"),
        Title("Jumanji (1995)", ("Adventure", "Children", "Fantasy")),
    ),
}


@pytest.mark.parametrize("path", [real("ml-100k"), real("ml-latest-small")])
def test_real_films(path: Path, tmp_path: Path) -> None:
    name = path.name.replace("-", "_")
    file, item, expected = FILMS[name]
    module = dataset(name, tmp_path, path=str(path), malformed="skip")
    mine, titles = titles_of(module.sequences), read_titles(path / file)
    assert titles[item] == mine[item] == expected
    assert len(mine) == module.num_items  # every film has a title
    assert all(titles[i] == title for i, title in mine.items())
    assert sum(bool(t.genres) for t in mine.values()) > 0.99 * len(mine)
