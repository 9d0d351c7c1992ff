"""Filtering and ordering by DuckDB, of interactions that need not fit into memory."""

from collections.abc import Callable, Mapping

import numpy as np

from sigma.datamodules.database import Database
from sigma.datamodules.interactions import Bounds, Duplicates, Interactions, Ordered


def ordered(
    data: Interactions,
    bounds: Mapping[str, Bounds],
    duplicates: Duplicates,
    float32_times: bool,
    check: Callable[[int], None],
) -> Ordered:
    """What ``in_memory.ordered`` gives."""
    data.in_database()
    database, total = data.database, len(data)
    anything: Bounds = (None, None)
    _code(data, bounds if duplicates == "keep" else dict.fromkeys(bounds, anything))
    if duplicates != "keep":
        _drop_duplicates(database, duplicates)
    whole = duplicates == "keep" and database.value("SELECT count(*) FROM coded") == total
    if not whole:
        _filter(database, bounds)
    rows = database.value("SELECT count(*) FROM coded")
    check(rows)
    twins: dict[str, tuple[str, str, int]] = {}
    for side in bounds:
        used = f"SELECT id, code, code AS dense, n FROM {side}s"
        if not whole:  # numbers have gaps
            used = (
                "SELECT id, code, (row_number() OVER (ORDER BY code))::INTEGER AS dense, c.n FROM "
                f'{side}s JOIN (SELECT "{side}" AS code, count(*) AS n FROM coded GROUP BY code) c '
                "USING (code)"
            )
        database.run(f"CREATE OR REPLACE TABLE {side}_codes AS {used}")
        twins |= _twins(database, side)
    ids = {side: database.column(f"SELECT id FROM {side}_codes ORDER BY code") for side in bounds}
    counts = database.column("SELECT n FROM user_codes ORDER BY code").astype(np.int64)
    time = "time::FLOAT::BIGINT" if float32_times else "time"
    arrays = _arrays(data, time, rows, whole)
    return Ordered(*arrays, counts, ids["user"], ids["item"], twins)


def _code(data: Interactions, bounds: Mapping[str, Bounds]) -> None:
    """``raw`` -> ``coded``: numbers by the first appearance in place of ids, of those in bounds."""
    database, order = data.database, "id" if data.numbered else "first"
    for side in bounds:
        database.run(
            f"CREATE OR REPLACE TABLE {side}s AS SELECT id, n, "
            f"(row_number() OVER (ORDER BY {order}))::INTEGER AS code FROM "
            f'(SELECT "{side}" AS id, min(rowid) AS first, count(*) AS n FROM raw GROUP BY id)'
        )
    within = " AND ".join(_within(f"{side}s.n", bounds[side]) for side in bounds)
    database.run(
        f"CREATE OR REPLACE TABLE coded AS SELECT users.code AS user, items.code AS item, "
        f"time // {data.unit} AS time, raw.rowid AS line FROM raw "
        f'JOIN users ON raw."user" = users.id JOIN items ON raw.item = items.id WHERE {within}'
    )
    database.run("DROP TABLE raw")


def _filter(database: Database, bounds: Mapping[str, Bounds]) -> None:
    """Drop users and items out of bounds until nothing changes."""
    while True:
        conditions = []
        for side, (lower, upper) in bounds.items():
            if lower is None and upper is None:
                continue
            database.run(
                f'CREATE OR REPLACE TABLE {side}_out AS SELECT "{side}" AS code FROM coded '
                f"GROUP BY code HAVING NOT ({_within('count(*)', (lower, upper))})"
            )
            if database.value(f"SELECT count(*) FROM {side}_out"):
                conditions.append(f'"{side}" IN (FROM {side}_out)')
        if not conditions:
            return
        database.run(f"DELETE FROM coded WHERE {' OR '.join(conditions)}")


def _drop_duplicates(database: Database, duplicates: Duplicates) -> None:
    if duplicates == "consecutive":
        order = 'PARTITION BY "user" ORDER BY time, line'
        again = f"item = lag(item) OVER ({order})"
    else:
        same = ", time" if duplicates == "identical" else ""
        order = f'PARTITION BY "user", item{same} ORDER BY time, line'
        again = f"row_number() OVER ({order}) > 1"
    database.run(
        f"CREATE OR REPLACE TABLE coded AS FROM coded QUALIFY NOT coalesce({again}, false)"
    )


def _arrays(
    data: Interactions, time: str, rows: int, whole: bool
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Items (from 1), times and parts, user by user, oldest first; on the disk if they are many."""
    database = data.database
    columns: dict[str, type] = {"item": np.int32}
    columns |= {"time": np.int64} if data.timed else {}
    columns |= {"part": np.int8} if data.ends else {}
    arrays = dict(zip(columns, database.arrays(rows, columns.values()), strict=True))
    part = " + ".join(f"(line >= {end})::TINYINT" for end in data.ends[:-1]) or "0"
    dense = "item" if whole else "dense"
    join = "" if whole else "JOIN item_codes AS codes ON coded.item = codes.code"
    query = (
        f"SELECT {dense} AS item, {time if data.timed else 0} AS time, {part} AS part FROM coded "
        f'{join} ORDER BY coded."user", part, 2, line'
    )
    start = 0
    for batch in database.batches(query):
        for name, array in arrays.items():
            array[start : start + len(batch)] = batch.column(name).to_numpy()
        start += len(batch)
    database.run("DROP TABLE coded")
    return arrays["item"], arrays.get("time"), arrays.get("part")


def _within(count: str, bounds: Bounds) -> str:
    lower, upper = bounds
    return f"{count} >= {lower or 0}" + ("" if upper is None else f" AND {count} < {upper}")


def _twins(database: Database, side: str) -> dict[str, tuple[str, str, int]]:
    kinds = {name: str(kind) for name, kind, *_ in database.run(f"DESCRIBE {side}s")}
    if kinds["id"] != "VARCHAR":
        return {}
    bare = "regexp_replace(trim(id), '\\.0+$', '')"
    twins = database.run(
        f"SELECT min(id), max(id), count(*) OVER () FROM {side}s WHERE {bare} IN "
        f"(SELECT {bare} FROM {side}s WHERE {bare} <> id) GROUP BY {bare} HAVING count(*) > 1 "
        "LIMIT 1"
    )
    return {side: twins[0]} if twins else {}
