"""Data sets as their publishers pack them, made from one list of interactions."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.datamodules.raw_files import Row, asin, reviewer

PACK: dict[str, Callable[[bytes], bytes]] = {
    **{".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, "": bytes},
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}
Files = dict[str, Any]

# A file, its header, and a line for each interaction.
TABLES: dict[str, tuple[str, str, str]] = {
    "lastfm 1k": (
        *("lastfm-dataset-1K/userid-timestamp-artid-artname-traid-traname.tsv", ""),
        'user_{u:06}\t{iso}Z\t\tThe "Café"\t{i:08}-aa\t"Heroes" ({u} "Live"\n',
    ),
    "gowalla": ("loc-gowalla_totalCheckins.txt.gz", "", "{u}\t{iso}Z\t30.23\t-97.79\t{i}\n"),
    "brightkite": ("loc-brightkite_totalCheckins.txt", "", "{u}\t{iso}Z\t30.2\t-97.7\t{i:08}aa\n"),
    "lfm 1b": ("LFM-1b_LEs.txt", "", "{u}\t1\t2\t{i}\t{t}\n"),
    "lfm 2b": (
        "listening_events.tsv.bz2",
        *("user_id\ttrack_id\talbum_id\ttimestamp\n", "{u}\t{i}\t3\t{day}\n"),
    ),
    "foursquare tsmc": (
        "dataset_tsmc2014/dataset_TSMC2014_NYC.txt",
        *("", "{u}\t{i:024}\t4bf58dd8\tCaf\xe9\t40.7\t-74.0\t-240\t{ctime}\n"),
    ),
    "foursquare tist": (
        "dataset_TIST2015/dataset_TIST2015_Checkins.txt",
        *("", "{u}\t{i:024}\t{ctime}\t240\n"),
    ),
    "retailrocket": (
        "events.csv",
        *("timestamp,visitorid,event,itemid,transactionid\n", "{t}000,{u},view,{i},\n"),
    ),
    "yoochoose": ("yoochoose-clicks.dat", "", "{u},{iso}.000Z,{i},0\n"),
    "userbehavior": ("UserBehavior.csv", "", "{u},{i},7,pv,{t}\n"),
    "rees46": (
        "2019-Oct.csv.gz",
        "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,"
        "user_session\n",
        "{day} UTC,view,{i},2053,electronics.smartphone,,35.79,{u},72d76fde-8bb3\n",
    ),
    "kuairec": (
        "KuaiRec 2.0/data/big_matrix.csv",
        "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n",
        "{u},{i},13838,10867,{day}.0,{date},{t}.0,1.27\n",
    ),
    "mind": ("MINDsmall_train/behaviors.tsv", *("", "{n}\tU{u}\t{us}\t\tN5000-0 N{i}-1 N6000-0\n")),
    "amazon 2014": ("ratings_Beauty.csv", "", "{A},{B},5.0,{t}\n"),
    "amazon 2018": ("Beauty.csv", "", "{B},{A},5.0,{t}\n"),
    "amazon 2023 ratings": (
        "All_Beauty.csv.gz",
        *("user_id,parent_asin,rating,timestamp\n", "{A},{B},5.0,{t}000\n"),
    ),
    "movielens 10m": ("ml-10M100K/ratings.dat", "", "{u}::{i}::3.5::{t}\n"),
    "movielens 20m": (
        *("ml-20m/ratings.csv", "userId,movieId,rating,timestamp\n", "{u},{i},3.5,{t}\n"),
    ),
    "movielens 100k": ("ml-100k/u.data", "", "{u}\t{i}\t3\t{t}\n"),
}
TABLES |= {
    "lastfm 360k": (
        "lastfm-dataset-360K/usersha1-artmbid-artname-plays.tsv",
        *("", '{u:040}\t\t"Weird Al" {i}\t{n}\n'),
    ),
    "diginetica": (
        "train-item-views.csv",
        *("sessionId;userId;itemId;timeframe;eventdate\n", "{u};NA;{i};{second}000;{dash}\n"),
    ),
}
# A file, and a record for each interaction: JSON, or Python's literals.
RECORDS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "yelp": (
        "yelp_dataset/yelp_academic_dataset_review.json",
        lambda r: {"user_id": f"u{r['u']}", "business_id": f"b{r['i']}", "date": r["day"]},
    ),
    "amazon 2014 reviews": (
        "reviews_Beauty_5.json.gz",
        lambda r: {
            **{"reviewerID": r["A"], "asin": r["B"], "helpful": [0, 0], "overall": 5.0},
            **{"unixReviewTime": r["t"], "reviewTime": "09 1, 2016"},
        },
    ),
    "amazon 2018 reviews": (
        "Beauty.json.gz",
        lambda r: {
            **{"overall": 5.0, "reviewTime": "09 1, 2016", "reviewerID": r["A"], "asin": r["B"]},
            **{"style": {"Size:": " L"}, "unixReviewTime": r["t"]},
        },
    ),
    "amazon 2023": (
        "All_Beauty.jsonl.gz",
        lambda r: {
            **{"rating": 5.0, "images": [{"small_image_url": "x"}] * (r["u"] % 3), "asin": "B1"},
            **{"parent_asin": r["B"], "user_id": r["A"], "timestamp": r["t"] * 1000},
        },
    ),
    "steam": (
        "steam_reviews.json.gz",
        lambda r: repr({"username": f"ü{r['u']}", "product_id": f"{r['i']}", "date": r["day"]}),
    ),
}
# Files beside that hold no interactions.
BESIDE: dict[str, Files] = {
    "lastfm 1k": {"lastfm-dataset-1K/userid-profile.tsv": "#id\tgender\nuser_000001\tm\n"},
    "foursquare tist": {"dataset_TIST2015/dataset_TIST2015_POIs.txt": "4f\t40.7\t-74.0\tBar\tUS\n"},
    "retailrocket": {
        "item_properties_part1.csv": "timestamp,itemid,property,value\n1,2,790,n3\n",
        "category_tree.csv": "categoryid,parentid\n1016,213\n",
    },
    "yoochoose": {"dataset-README.txt": "x\n"},
    "kuairec": {
        "KuaiRec 2.0/data/item_categories.csv": "video_id,feat\n0,[8]\n",
        "KuaiRec 2.0/data/user_features.csv": "user_id,user_active_degree\n0,high\n",
        "KuaiRec 2.0/data/small_matrix.csv": "user_id,video_id,timestamp\n1,2,3\n",
    },
    "mind": {
        "MINDsmall_train/news.tsv": "N1\tsports\tgolf\tA title\tIt is\thttps://x\t[]\t[]\n",
        "MINDsmall_train/entity_embedding.vec": "Q41\t0.1\t\n",
    },
    "yelp": {
        f"yelp_dataset/yelp_academic_dataset_{name}.json": '{"business_id": "b1", "name": "x"}\n'
        for name in ("business", "checkin", "tip", "user")
    },
}


def words(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Each interaction in all the ways that publishers write it."""
    for n, (u, i, t) in enumerate(rows):
        moment = datetime.fromtimestamp(t, UTC)
        yield {
            **{"n": n, "u": u, "i": i, "t": t, "A": reviewer(u), "B": asin(i)},
            **{"iso": f"{moment:%Y-%m-%dT%H:%M:%S}", "day": f"{moment:%Y-%m-%d %H:%M:%S}"},
            **{"date": f"{moment:%Y%m%d}", "ctime": f"{moment:%a %b %d %H:%M:%S +0000 %Y}"},
            **{"second": moment.minute * 60 + moment.hour * 3600 + moment.second},
            **{"dash": f"{moment:%Y-%m-%d}"},
            "us": f"{moment:%m/%d/%Y %I:%M:%S %p}",
        }


def histories(rows: Iterable[Row]) -> dict[int, list[tuple[int, int]]]:
    """Items and times of each user."""
    result: dict[int, list[tuple[int, int]]] = {}
    for user, item, time in rows:
        result.setdefault(user, []).append((item, time))
    return result


def _otto(rows: list[Row]) -> str:
    sessions = (
        {"session": u, "events": [{"aid": i, "ts": t * 1000, "type": "clicks"} for i, t in events]}
        for u, events in histories(rows).items()
    )
    return "".join(json.dumps(session) + "\n" for session in sessions)


def _yambda(rows: list[Row]) -> pa.Table:
    users, events = zip(*histories(rows).items(), strict=True)
    columns = {"item_ids": 0, "timestamps": 1}
    lists = {name: [[e[k] for e in each] for each in events] for name, k in columns.items()}
    kinds = pa.list_(pa.uint32())
    return pa.table(
        {"uid": pa.array(users, pa.uint32()), **{n: pa.array(x, kinds) for n, x in lists.items()}}
    )


def _flat(rows: list[Row], names: tuple[str, str, str], kind: str) -> pa.Table:
    arrays = [pa.array(column, kind) for column in zip(*rows, strict=True)]
    return pa.table(dict(zip(names, arrays, strict=True)))


def _library(rows: list[Row]) -> str:
    users = (
        {
            "user_id": f"{u}",
            "items_count": 1,
            "items": [{"item_id": f"{i}", "item_name": "It's"} for i, _ in events],
        }
        for u, events in histories(rows).items()
    )
    return "".join(f"{user}\n" for user in users)


# Interactions come user by user in these.
BY_USER: dict[str, Callable[[list[Row]], Files]] = {
    "otto": lambda rows: {"otto-recsys-train.jsonl": _otto(rows)},
    "steam library": lambda rows: {"australian_users_items.json.gz": _library(rows)},
    "yambda sequential": lambda rows: {"sequential/50m/listens.parquet": _yambda(rows)},
}
OTHERS: dict[str, Callable[[list[Row]], Files]] = {
    **BY_USER,
    "yambda": lambda rows: {
        "flat/50m/listens.parquet": _flat(rows, ("uid", "item_id", "timestamp"), "uint32")
    },
    "amazon 2023 parquet": lambda rows: {
        f"raw_review_All_Beauty/full-0000{n}-of-00002.parquet": pa.table(
            {
                **{"asin": ["B1"] * len(part), "parent_asin": [asin(row.item) for row in part]},
                **{"user_id": [reviewer(row.user) for row in part]},
                **{"timestamp": [row.time * 1000 for row in part]},
            }
        )
        for n, part in enumerate((rows[:40], rows[40:]))
    },
}
TIMELESS = ("lastfm 360k", "steam library")
NAMES = (*TABLES, *RECORDS, *OTHERS)


def files(name: str, rows: list[Row]) -> Files:
    """Path -> content (text or a table) of all files."""
    if name in OTHERS:
        return OTHERS[name](rows)
    if name in TABLES:
        path, head, line = TABLES[name]
        text = head + "".join(line.format_map(each) for each in words(rows))
    else:
        path, record = RECORDS[name]
        made = map(record, words(rows))
        text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in made)
    return {path: text, **BESIDE.get(name, {})}


def write(folder: Path, name: str, rows: list[Row]) -> Path:
    """The folder, with all files in it."""
    for path, content in files(name, rows).items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pa.Table):
            pq.write_table(content, place)
        else:
            pack = PACK[place.suffix if place.suffix in PACK else ""]
            encoding = "latin-1" if "TSMC2014" in path else "utf-8"
            place.write_bytes(pack(content.encode(encoding)))
    return folder
