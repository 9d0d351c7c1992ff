"""Filtering and ordering in memory, of few interactions: no engine is as quick."""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sigma.datamodules.interactions import Bounds, Duplicates, Interactions, Ordered

ROWS = 1 << 21
"""Interactions that are few."""


def ordered(
    data: Interactions,
    bounds: Mapping[str, Bounds],
    duplicates: Duplicates,
    float32_times: bool,
    check: Callable[[int], None],
) -> Ordered:
    """Filter, order and index interactions; see ``preprocess``.

    Args:
        bounds: of ``user`` and ``item``.
        check: called with the number of interactions that are left.
    """
    table = data.in_memory()
    columns, ids = {}, {}
    for side in bounds:
        columns[side], ids[side] = _coded(table[side], data.numbered)
    twins = {side: pair for side, some in ids.items() if (pair := _twins(some))}
    if data.timed:
        columns["time"] = table["time"].to_numpy() // data.unit
    if data.ends:
        parts = np.searchsorted(data.ends[:-1], table["line"].to_numpy(), "right")
        columns["part"] = parts.astype(np.int8)
    if duplicates != "keep":
        columns = _chosen(columns, _first_ones(columns, duplicates))
    while True:
        inside = [_inside(columns[side], bounds[side]) for side in bounds]
        if (keep := np.logical_and.reduce(inside)).all():
            break
        columns = _chosen(columns, keep)
    check(len(keep))
    for side in bounds:
        columns[side], used = _dense(columns[side])
        ids[side] = ids[side][used]
    counts = np.bincount(columns["user"]).astype(np.int64)
    if float32_times and data.timed:
        columns["time"] = columns["time"].astype(np.float32).astype(np.int64)
    columns = _chosen(columns, _order(columns, "user", "part", "time"))
    return Ordered(
        items=columns["item"] + np.int32(1),
        times=columns.get("time"),
        parts=columns.get("part"),
        counts=counts,
        user_ids=ids["user"],
        item_ids=ids["item"],
        twins=twins,
    )


def _coded(column: pa.ChunkedArray, numbered: bool) -> tuple[np.ndarray, np.ndarray]:
    """Numbers from 0 by first appearance (of the ids themselves if ``numbered``), and ids."""
    values = column.combine_chunks()
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    codes, ids = values.indices.to_numpy(), values.dictionary.to_numpy(zero_copy_only=False)
    if numbered:
        order = np.argsort(ids)
        codes, ids = np.argsort(order).astype(np.int32)[codes], ids[order]
    return codes, ids


def _chosen(columns: Mapping[str, np.ndarray], keep: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[keep] for name, column in columns.items()}


def _order(columns: Mapping[str, np.ndarray], *names: str) -> np.ndarray:
    """Places (n,) in order of those of the columns that there are, the first of them first."""
    keys = [columns[name] for name in names if name in columns]
    return np.argsort(keys[0], kind="stable") if len(keys) == 1 else np.lexsort(keys[::-1])


def _first_ones(columns: Mapping[str, np.ndarray], duplicates: Duplicates) -> np.ndarray:
    """Mask (n,) of those that are no duplicates."""
    same = {
        "consecutive": ("user", "item"),
        "identical": ("user", "item", "time"),
        "first": ("user", "item"),
    }[duplicates]
    names = ("user", "time") if duplicates == "consecutive" else ("user", "item", "time")
    order = _order(columns, *names)
    sides = [columns[name][order] for name in same if name in columns]
    again = np.logical_and.reduce([side[1:] == side[:-1] for side in sides])
    keep = np.ones(len(order), bool)
    keep[order[1:][again]] = False
    return keep


def _inside(codes: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Mask (n,) of the interactions whose user (or item) has a number of them within bounds."""
    counts, (lower, upper) = np.bincount(codes), bounds
    good = counts >= (lower or 0)
    if upper is not None:
        good &= counts < upper
    return good[codes]


def _dense(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes without gaps, their order kept, and the old one of each."""
    used = np.bincount(codes) > 0
    return (np.cumsum(used, dtype=np.int32) - np.int32(1))[codes], np.flatnonzero(used)


def _twins(ids: np.ndarray) -> tuple[str, str, int] | None:
    """Two ids that differ in blanks or in ``.0`` alone, and the number of such groups."""
    if ids.dtype != object:
        return None
    texts = pa.array(ids)
    bare = pc.replace_substring_regex(pc.utf8_trim(texts, " "), r"\.0+$", "")
    odd = bare.filter(pc.not_equal(bare, texts))
    if not len(odd):
        return None
    some = pa.table({"bare": bare, "id": texts}).filter(pc.is_in(bare, odd))
    groups = some.group_by("bare").aggregate([("id", "count"), ("id", "min_max")])
    groups = groups.filter(pc.greater(groups["id_count"], 1))
    if not len(groups):
        return None
    pair = groups["id_min_max"][0].as_py()
    return pair["min"], pair["max"], len(groups)
