"""Values of columns as SQL: what is missing, what is an id, and lists as rows."""

from collections.abc import Mapping
from dataclasses import replace

from sigma.datamodules.database import identifier, literal
from sigma.datamodules.readers.sources import FAULT, LINE, Source

MISSING = ("", "na", "n/a", "none", "<na>", "\\n", "nan", "nat", "null", "<null>", "nil", "-")
"""Words for no value, in any case."""

_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_WORDS = f"({', '.join(map(literal, MISSING))})"


def missing(column: str, kind: str) -> str:
    """The condition that a value of this type is none."""
    if kind == "VARCHAR":
        number = f"{column} >= '0' AND {column} < ':'"  # most ids start so, which is seen at once
        return f"({column} IS NULL OR (NOT ({number}) AND lower(trim({column})) IN {_WORDS}))"
    if kind in ("FLOAT", "DOUBLE"):
        # By the text: DuckDB trusts Parquet's statistics, which leave NaN out, for the number.
        return f"({column} IS NULL OR NOT isfinite({column}) AND {column}::VARCHAR = 'nan')"
    return f"{column} IS NULL"


def id_value(column: str, kind: str) -> str:
    """The expression of an id in a column of this name, NULL where it is missing or none."""
    column = identifier(column)
    if kind == "VARCHAR":
        value = column
    elif kind in _WHOLE:
        value = f"{column}::BIGINT"
    elif kind in ("UBIGINT", "HUGEINT", "UHUGEINT"):
        value = f"{column}::VARCHAR"
    elif kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL"):
        exact = {
            "FLOAT": f" AND abs({column}) < {1 << 24}",
            "DOUBLE": f" AND abs({column}) < {1 << 53}",
        }
        whole = f"{column} = floor({column}){exact.get(kind, '')}"
        value = f"CASE WHEN {whole} THEN TRY_CAST({column} AS BIGINT) END"
    elif kind == "BLOB":
        value = f"TRY(decode({column}))"
    else:
        value = f"{column}::VARCHAR"
    return f"CASE WHEN fault IS NOT NULL OR {missing(column, kind)} THEN NULL ELSE {value} END"


def spread(source: Source, columns: Mapping[str, str], where: str | None) -> Source:
    """With a row for each item of lists; a faulty one stays a row."""
    item = columns["item"]
    asked = [name for name in source.kinds if where and name in where]
    lists = [n for n in {*columns.values(), *asked} if source.kinds[n].endswith("[]")]
    if item not in lists:
        return source
    others = [name for name in lists if name != item]
    lengths = "".join(
        f" WHEN len({identifier(item)}) <> len({identifier(name)}) THEN len({identifier(item)}) "
        f"|| ' items, but ' || len({identifier(name)}) || ' in ' || {literal(name)}"
        for name in others
    )
    fault = f"CASE WHEN {FAULT} IS NOT NULL THEN {FAULT}{lengths} END"
    parts = {name: identifier(name) for name in (source.kinds if where else columns.values())}
    for name in lists:
        column = parts[name]
        value = f"CASE WHEN {FAULT} IS NULL AND {column} IS NOT NULL THEN {column} ELSE [NULL] END"
        parts[name] = f"unnest({value}) AS {column}"
    query = (
        f"SELECT {', '.join(parts.values())}, {LINE}, {FAULT} FROM "
        f"(SELECT * REPLACE ({fault} AS {FAULT}) FROM ({source.query}))"
    )
    kinds = {n: kind[:-2] if n in lists else kind for n, kind in source.kinds.items()}
    return replace(source, query=query, kinds=kinds)
