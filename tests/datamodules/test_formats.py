"""Random interactions, written in any way there is, are read as they were."""

import csv
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sigma.datamodules.readers.values import MISSING
from tests.datamodules.published import PACK, histories
from tests.datamodules.reading import read

EXAMPLES = int(os.environ.get("SIGMA_EXAMPLES", 40))
profile = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES == 40,
    suppress_health_check=list(HealthCheck),
)
Row = tuple[str, str, int]

SIGNS = "abzAZ019._-é日😀'/:@#[]{}()%&*+=\\$!?~^|;,<> "
LETTERS = st.text(SIGNS, min_size=1, max_size=8).filter(
    lambda text: text.strip() == text and text.lower() not in MISSING and text[0] not in "[{"
)
NUMBERS = st.integers(0, 10**18).map(str) | st.integers(0, 99).map(lambda n: f"{n:03}")
SECONDS = st.integers(946_684_800, 1_900_000_000)
# Name -> how a time is written, and how many of the units read back a second has.
TIMES: dict[str, tuple[Callable[[datetime], Any], int]] = {
    "seconds": (lambda t: int(t.timestamp()), 1),
    "milliseconds": (lambda t: int(t.timestamp()) * 1000, 1000),
    "fractions": (lambda t: f"{int(t.timestamp())}.0", 1),
    "ISO": (lambda t: f"{t:%Y-%m-%dT%H:%M:%SZ}", 1),
    "no zone": (lambda t: f"{t:%Y-%m-%d %H:%M:%S}", 1),
    "a zone": (
        lambda t: f"{t.fromtimestamp(t.timestamp() + 7200, UTC):%Y-%m-%d %H:%M:%S+02:00}",
        1,
    ),
    "a word": (lambda t: f"{t:%Y-%m-%d %H:%M:%S UTC}", 1),
    "slashes": (lambda t: f"{t:%Y/%m/%d %H:%M:%S}", 1),
    "ctime": (lambda t: f"{t:%a %b %d %H:%M:%S %Y}", 1),
    "Twitter": (lambda t: f"{t:%a %b %d %H:%M:%S +0000 %Y}", 1),
    "RFC 2822": (lambda t: f"{t:%a, %d %b %Y %H:%M:%S +0000}", 1),
    "own": (lambda t: f"{t:%d.%m.%y %H-%M-%S}", 1),
}
OWN = "%d.%m.%y %H-%M-%S"


@st.composite
def tables(draw: st.DrawFn, ids: st.SearchStrategy[str] = LETTERS) -> list[Row]:
    """A few users and items, several times each, some at the same time."""
    users = draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    items = draw(st.lists(ids, min_size=1, max_size=6, unique=True))
    row = st.tuples(st.sampled_from(users), st.sampled_from(items), SECONDS)
    return draw(st.lists(row, min_size=1, max_size=12))


def check(path: Path, rows: list[Row], unit: int | None, **options: Any) -> None:
    data = read(path, **options)
    ids = (data.user_ids[data.users], data.item_ids[data.items])
    times = [None] * len(data) if data.timestamps is None else data.timestamps.tolist()
    expected = [(u, i, None if unit is None else t * unit) for u, i, t in rows]
    assert [*zip(*(map(str, x) for x in ids), times, strict=True)] == expected
    assert data.skipped is None


def packed(folder: Path, name: str, text: str | bytes, pack: str) -> Path:
    """A file, compressed or in an archive."""
    data = text if isinstance(text, bytes) else text.encode()
    if pack in PACK:
        (folder / (name + pack)).write_bytes(PACK[pack](data))
        return folder / (name + pack)
    path = folder / f"x{pack}"
    if pack == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"deep/{name}", data)
    else:
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


PACKS = st.sampled_from([*PACK, ".zip", ".tar.gz"])


@st.composite
def delimited(draw: st.DrawFn) -> tuple[list[Row], dict[str, Any]]:
    """Rows, and how they are written."""
    sign = draw(st.sampled_from([",", ";", "\t", "|", "^", "\x01", "::", " "]))
    bare = sign in ("::", " ")  # nothing is quoted there
    ids = LETTERS.filter(lambda text: not set(text) & set(' :"#')) if bare else LETTERS
    return draw(tables(ids | NUMBERS)), {
        "sign": sign,
        "time": draw(st.sampled_from(sorted(TIMES))) if not bare else "seconds",
        "order": draw(st.permutations(["user", "item", "time", "text"])),
        "names": draw(
            st.sampled_from([("user_id", "item_id", "timestamp"), ("who", "what", "at")])
        ),
        "headed": draw(st.booleans()),
        "said": draw(st.booleans()),
        "quoted": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        "ends": draw(st.sampled_from(["\n", "\r\n", "\r"])),
        "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030"])),
        "pack": draw(PACKS),
        "text": draw(st.sampled_from(["plain", "a, b; c|d", "x" * 70])) if not bare else "plain",
        "parts": draw(st.integers(1, 3)),
    }


@given(delimited())
@profile
def test_tables(case: tuple[list[Row], dict[str, Any]]) -> None:
    rows, how = case
    write, unit = TIMES[how["time"]]
    names = dict(zip(("user", "item", "time", "text"), (*how["names"], "note"), strict=True))
    columns = [names[key] for key in how["order"]]
    options: dict[str, Any] = {}
    if how["encoding"] == "gb18030":
        options["encoding"] = "gb18030"
    if how["time"] == "own":
        options["time_format"] = OWN
    if how["said"]:
        options["delimiter"] = how["sign"]
    roles = dict(zip(("user", "item", "timestamp"), how["names"], strict=True))
    if how["names"][0] == "who":
        options["columns"] = roles
    headed = how["headed"] or how["encoding"] == "utf-16"
    if not headed:
        options["names"] = tuple(columns)
    size = -(-len(rows) // how["parts"])
    with TemporaryDirectory() as name:
        folder = Path(name)
        for n in range(0, len(rows), size):
            text = io.StringIO()
            lines = [columns] if headed else []
            for user, item, time in rows[n : n + size]:
                moment = datetime.fromtimestamp(time, UTC)
                values = {"user": user, "item": item, "time": write(moment), "text": how["text"]}
                lines.append([str(values[key]) for key in how["order"]])
            if how["sign"] in ("::", " "):
                text.write("".join(how["sign"].join(line) + how["ends"] for line in lines))
            else:
                csv.writer(
                    text, delimiter=how["sign"], quoting=how["quoted"], lineterminator=how["ends"]
                ).writerows(lines)
            data = text.getvalue().encode(how["encoding"])
            parts = how["parts"] > 1
            pack = how["pack"] if how["pack"] in PACK or not parts else ""
            path = packed(folder, f"part-{n}.csv" if parts else "a.csv", data, pack)
        check(folder if parts else path, rows, unit, **options)


@given(
    tables(
        LETTERS
        | NUMBERS
        | st.text(max_size=5).filter(
            lambda t: (
                t.isprintable()
                and t.strip()
                and t.lower().strip() not in MISSING
                and not t.startswith(("[", "{"))
            )
        )
    ),
    st.sampled_from(sorted(TIMES)),
    st.sampled_from(["json", "literal", "lists", "objects"]),
    st.booleans(),
    PACKS,
)
@profile
def test_records(rows: list[Row], time: str, form: str, escaped: bool, pack: str) -> None:
    write, unit = TIMES[time]
    options = {"time_format": OWN} if time == "own" else {}
    written = [(u, i, write(datetime.fromtimestamp(t, UTC))) for u, i, t in rows]
    if form in ("json", "literal"):
        records: list[Any] = [
            {"n": 1, "timestamp": t, "user_id": u, "tags": ["a"], "item_id": i}
            for u, i, t in written
        ]
    else:
        users: dict[str, list[tuple[str, Any]]] = histories(written)  # type: ignore[arg-type, assignment]
        rows = [(u, *event) for u, events in histories(rows).items() for event in events]  # type: ignore[arg-type, misc, assignment]
        records = [
            {"user_id": u, "item_ids": [i for i, _ in e], "timestamps": [t for _, t in e]}
            if form == "lists"
            else {"user_id": u, "events": [{"item_id": i, "ts": t, "type": "x"} for i, t in e]}
            for u, e in users.items()
        ]
    line = repr if form == "literal" else lambda record: json.dumps(record, ensure_ascii=escaped)
    with TemporaryDirectory() as folder:
        text = "".join(line(record) + "\n" for record in records)
        check(packed(Path(folder), "a.jsonl", text, pack), rows, unit, **options)


KINDS = {
    **{
        f"{unit}{zone and ' '}{zone}": pa.timestamp(unit, zone or None)
        for unit in ("s", "ms", "us", "ns")
        for zone in ("", "UTC", "Asia/Tokyo")
    },
    **{kind: getattr(pa, kind)() for kind in ("int64", "uint32", "float64", "string")},
}


@given(
    tables(LETTERS | NUMBERS),
    st.sampled_from(sorted(KINDS)),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["NONE", "SNAPPY", "ZSTD", "GZIP"]),
    st.integers(1, 3),
    st.integers(0, 999),
)
@profile
def test_parquet(
    rows: list[Row], kind: str, lists: bool, coded: bool, codec: str, parts: int, nano: int
) -> None:
    unit = 1
    written = rows
    if kind.startswith("ns") and nano:  # what only nanoseconds tell
        written, unit = [(u, i, t * 10**9 + nano) for u, i, t in rows], 10**9
        expected = [(u, i, t) for u, i, t in written]
    scale = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}.get(kind.split()[0], 1)
    if unit == 1:
        written, expected = [(u, i, t * scale) for u, i, t in rows], rows
    type_ = KINDS[kind]

    def times(values: list[int]) -> pa.Array:
        return pa.array(list(map(str, values)) if kind == "string" else values, type_)

    with TemporaryDirectory() as name:
        folder = Path(name)
        if lists:
            users = histories(written)  # type: ignore[arg-type]
            expected = [(u, *e) for u, es in histories(expected).items() for e in es]  # type: ignore[arg-type, misc]
            flat = times([t for es in users.values() for _, t in es])
            offsets = pa.array([0, *[len(es) for es in users.values()]]).to_pandas().cumsum()
            table = pa.table(
                {
                    "user_id": pa.array(list(users), pa.string()),
                    "item_ids": [[i for i, _ in es] for es in users.values()],
                    "timestamps": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat),
                }
            )
            parts = 1
        else:
            users_, items, moments = map(list, zip(*written, strict=True))
            ids = [pa.array(x, pa.string()) for x in (users_, items)]
            ids = [x.dictionary_encode() for x in ids] if coded else ids
            table = pa.table([*ids, times(moments)], ["user_id", "item_id", "timestamp"])
        size = -(-len(table) // parts)
        for n in range(0, len(table), size):
            part = table.slice(n, size)
            pq.write_table(part, folder / f"part-{n}.parquet", compression=codec)
        check(folder, expected, 1)


@given(
    tables(LETTERS.filter(lambda t: " " not in t) | NUMBERS),
    st.sampled_from(["lines", "inter", "seq"]),
    PACKS,
)
@profile
def test_text(rows: list[Row], form: str, pack: str) -> None:
    by_user = histories(rows)  # type: ignore[arg-type]
    ordered = [(u, *e) for u, es in by_user.items() for e in es]
    if form == "inter":
        text = "item_id:token\tuser_id:token\ttimestamp:float\n"
        text += "".join(f"{i}\t{u}\t{t}\n" for u, i, t in rows)
        name, expected, unit = "a.inter", rows, 1
    elif form == "seq":
        text = "user_id:token\titem_id_list:token_seq\n"
        text += "".join(f"{u}\t{' '.join(i for i, _ in es)}\n" for u, es in by_user.items())
        name, expected, unit = "a.inter", ordered, None
    else:
        lines = [" ".join([u, *(i for i, _ in es)]) for u, es in by_user.items()]
        # Without numbers it could be a header, with two on each line a table of pairs.
        text = "\n".join(["first 1 2 3", *lines]) + "\n"
        ordered = [*(("first", item, 0) for item in "123"), *ordered]
        name, expected, unit = "a.txt", ordered, None
    with TemporaryDirectory() as folder:
        check(packed(Path(folder), name, text, pack), expected, unit)
