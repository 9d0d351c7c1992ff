"""Small raw files in the exact official formats, made from one list of interactions."""

import gzip
import json
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GENRES = 19


class Row(NamedTuple):
    """One interaction: users and items are numbered from 1, ``time`` is in seconds."""

    user: int
    item: int
    time: int


def interactions(users: int = 12, items: int = 9, n: int = 150, seed: int = 1) -> list[Row]:
    """Random rows in no order of time, with ties and repeated pairs."""
    rng = np.random.default_rng(seed)
    columns = (rng.integers(1, users + 1, n), rng.integers(1, items + 1, n), rng.integers(0, 60, n))
    return [Row(int(u), int(i), 964_982_703 + int(t)) for u, i, t in zip(*columns, strict=True)]


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    """Write text, gzipped where the name says so, or bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode(encoding)
        content = gzip.compress(content) if path.suffix == ".gz" else content
    path.write_bytes(content)
    return path


def ml_1m(folder: Path, rows: list[Row]) -> Path:
    write(folder / "ratings.dat", "".join(f"{u}::{i}::4::{t}\n" for u, i, t in rows))
    films = "".join(f"{i}::Café {i} (1995)::Comedy|Drama\n" for i in range(1, 50))
    write(folder / "movies.dat", films, "latin-1")
    return write(folder / "users.dat", "1::F::1::10::48067\n").parent


def ml_100k(folder: Path, rows: list[Row]) -> Path:
    write(folder / "u.data", "".join(f"{u}\t{i}\t3\t{t}\n" for u, i, t in rows))
    flags = "|".join("1" if g in (5, 8) else "0" for g in range(GENRES))  # Comedy, Drama
    film = "{0}|Café {0} (1995)|01-Jan-1995||http://us.imdb.com/{0}|" + flags + "\n"
    write(folder / "u.item", "".join(film.format(i) for i in range(1, 50)), "latin-1")
    return folder


def ml_csv(folder: Path, rows: list[Row]) -> Path:
    head = "userId,movieId,rating,timestamp\n"
    write(folder / "ratings.csv", head + "".join(f"{u},{i},4.0,{t}\n" for u, i, t in rows))
    films = "".join(f'{i},"Café, the {i} (1995)",Comedy|Drama\n' for i in range(1, 50))
    write(folder / "movies.csv", "movieId,title,genres\n" + films)
    write(folder / "links.csv", "movieId,imdbId,tmdbId\n1,0114709,862\n")
    return write(folder / "tags.csv", "userId,movieId,tag,timestamp\n2,60756,funny,14\n").parent


def asin(item: int) -> str:
    return f"B{item:09d}"


def reviewer(user: int) -> str:
    return f"A{user:012d}"


def amazon_2014(path: Path, rows: list[Row]) -> Path:
    return write(path, "".join(f"{reviewer(u)},{asin(i)},5.0,{t}\n" for u, i, t in rows))


def amazon_2018(path: Path, rows: list[Row]) -> Path:
    return write(path, "".join(f"{asin(i)},{reviewer(u)},5.0,{t}\n" for u, i, t in rows))


def amazon_reviews(path: Path, rows: list[Row]) -> Path:
    text = ""
    for u, i, t in rows:
        record = {"reviewerID": reviewer(u), "asin": asin(i), "helpful": [2, 3], "overall": 5.0}
        record |= {"reviewText": 'Fine.\n"Really"…', "unixReviewTime": t}
        text += json.dumps(record) + "\n"
    return write(path, text)


def amazon_meta(path: Path) -> Path:
    """Product records as of 2014: Python literals, not JSON."""
    lines = (f"{{'asin': '{asin(i)}', 'title': 'Thing {i}'}}\n" for i in range(50))
    return write(path, "".join(lines))


def yelp(folder: Path, rows: list[Row]) -> Path:
    reviews, businesses = [], []
    for u, i, t in rows:
        date = datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S")
        reviews.append({"user_id": f"u{u}", "business_id": f"b{i}", "text": "Hm.", "date": date})
    for i in range(1, 50):
        record = {"business_id": f"b{i}", "name": f"Café {i}", "categories": "Food, Bars"}
        businesses.append({**record, "attributes": {"WiFi": "no"}})
    for name, records in (("business", businesses), ("review", reviews)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        write(folder / f"yelp_academic_dataset_{name}.json", text)
    return folder


def netflix(folder: Path, rows: list[Row]) -> Path:
    """Two files of films in turn; a rating a day, so that the times are days since 1970."""
    films: dict[int, list[str]] = {}
    for u, i, t in rows:
        day = datetime.fromtimestamp(t % 60 * 86_400, UTC).date()
        films.setdefault(i, [f"{i}:\n"]).append(f"{u},4,{day}\n")
    for n in (0, 1):
        text = "".join("".join(lines) for i, lines in films.items() if i % 2 == n)
        write(folder / f"combined_data_{n + 1}.txt", text)
    return write(folder / "movie_titles.csv", "1,2003,Café\n", "latin-1").parent


def lfm_1b(path: Path, rows: list[Row]) -> Path:
    return write(path, "".join(f"{u}\t{i % 3}\t{i % 5}\t{i}\t{t}\n" for u, i, t in rows))


def tmall(path: Path, rows: list[Row]) -> Path:
    """The day as mmdd, seconds of ``Row`` taken for days from the 11th of May on."""
    head = "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type\n"
    days = (date(2014, 5, 11) + timedelta(t % 60) for _, _, t in rows)
    lines = (f"{u},{i},1,2,,{d:%m%d},0\n" for (u, i, _), d in zip(rows, days, strict=True))
    return write(path, head + "".join(lines))


def kuairand(folder: Path, size: str, rows: list[Row]) -> Path:
    """The logs of a release: two of the standard recommendation, and that of random videos."""
    head = "user_id,video_id,date,hourmin,time_ms,is_click,tab\n"
    half = len(rows) // 2
    for name, part in {
        f"log_standard_4_08_to_4_21_{size}": rows[:half],
        f"log_standard_4_22_to_5_08_{size}": rows[half:],
        f"log_random_4_22_to_5_08_{size}": rows[:9],
    }.items():
        lines = "".join(f"{u},{i},20220409,1004,{t}000,1,0\n" for u, i, t in part)
        write(folder / "data" / f"{name}.csv", head + lines)
    write(folder / "data" / f"video_features_basic_{size}.csv", "video_id,author_id\n4,1\n")
    return folder


def recbole(folder: Path, name: str, rows: list[Row]) -> Path:
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    lines = "".join(f"{u}\t{i}\t3\t{t}.0\n" for u, i, t in rows)
    write(folder / f"{name}.inter", head + lines)
    head = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    lines = "".join(f'{i}\tThe "Café" {i}\t1995\tComedy Drama\n' for i in range(1, 50))
    return write(folder / f"{name}.item", head + lines).parent


def sequence_text(path: Path, rows: list[Row]) -> Path:
    lines: dict[int, list[int]] = {}
    for user, item, _ in sorted(rows, key=lambda row: row.time):
        lines.setdefault(user, [user]).append(item)
    return write(path, "".join(" ".join(map(str, line)) + "\n" for line in lines.values()))


def csv_table(path: Path, rows: list[Row], header: str = "user_id,item_id,timestamp") -> Path:
    return write(path, header + "\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))


def parquet(path: Path, rows: list[Row], **columns: pa.Array) -> Path:
    users, items, times = zip(*rows, strict=True)
    table = {"user_id": users, "item_id": items, "timestamp": times, **columns}
    pq.write_table(pa.table({k: v for k, v in table.items() if v is not None}), path)
    return path


def zipped(folder: Path, kind: str = "zip") -> Path:
    """The folder as its publisher packs it: everything below one folder of the same name."""
    return Path(shutil.make_archive(str(folder), kind, folder.parent, folder.name))
