"""From sources to interactions: what is missing or malformed is refused, or left out and told."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import duckdb

from sigma.datamodules.database import Database, identifier
from sigma.datamodules.interactions import Interactions, Skipped
from sigma.datamodules.readers import times
from sigma.datamodules.readers.layout import broken_row, line_of
from sigma.datamodules.readers.roles import choose_columns, plain, say_choice
from sigma.datamodules.readers.sources import (
    FAULT,
    LINE,
    REJECTS,
    Source,
    check_pages,
    delimited,
    partitioned,
)
from sigma.datamodules.readers.times import CLOCK, TimeForm
from sigma.errors import UserError, excerpt

MISSING = ("", "na", "n/a", "none", "<na>", "\\n", "nan", "nat", "null", "<null>", "nil", "-")
"""Words for no value, in any case."""

_DAY = 86_400_000  # milliseconds
_CLOCKS = "time eventtime hourmin hhmm hhmmss timeofday"
ALWAYS = 10  # malformed lines that may be left out of a file however short it is
_TEXT = "save the file as UTF-8, or name its encoding with dataset.encoding=, such as latin-1"
_MEND = "mend or remove the line"
_FILL = "fill it in or remove the row"
_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_WORDS = f"({', '.join(map(times.text, MISSING))})"
_FORGET = "DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """Settings of a data module that say how its files are read; see there."""

    columns: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    delimiter: str | None = None
    encoding: str | None = None
    time_format: str | None = None
    where: str | None = None
    malformed: Literal["error", "skip"] = "error"
    missing: Literal["error", "drop"] = "error"
    max_malformed: float = 0.01


class _Fault(NamedTuple):
    """What is wrong with some rows: with the first of them, and how many there are."""

    line: int
    reason: str
    advice: str
    rows: int
    missing: bool = False


class _OtherForm(Exception):  # noqa: N818 (no error: a reason to begin again)
    """Times have fractions, which was not seen at the beginning."""


def read(sources: Iterable[Source], database: Database, settings: Reading) -> Interactions:
    """The interactions of all sources, one after the other.

    Raises:
        UserError: columns that are not there, a malformed row, or a file that is damaged.
    """
    sources, form = list(sources), None
    if settings.where is not None and not settings.where.strip():
        settings = replace(settings, where=None)
    if settings.time_format is not None:
        try:
            database.run("SELECT try_strptime('', $format)", format=settings.time_format)
        except duckdb.Error as error:
            raise UserError(
                f"dataset.time_format={excerpt(settings.time_format)} has a sign that stands for "
                "nothing; write it like 'dataset.time_format=\"%d.%m.%Y %H:%M\"'."
            ) from error
    while True:
        reader = _Reader(database, settings, form, several=len(sources) > 1)
        database.run("DROP TABLE IF EXISTS raw")
        try:
            for source in sources:
                reader.add(source)
            return reader.finish()
        except _OtherForm:
            form = times.FRACTION


def missing(column: str, kind: str) -> str:
    """The condition that a value of this type is none."""
    if kind == "VARCHAR":
        return f"({column} IS NULL OR lower(trim({column})) IN {_WORDS})"
    if kind in ("FLOAT", "DOUBLE"):
        # By the text: DuckDB trusts Parquet's statistics, which leave NaN out, for the number.
        return f"({column} IS NULL OR NOT isfinite({column}) AND {column}::VARCHAR = 'nan')"
    return f"{column} IS NULL"


class _Reader:
    def __init__(
        self, database: Database, settings: Reading, form: TimeForm | None, several: bool
    ) -> None:
        self.database, self.settings, self.form = database, settings, form
        self.several = several
        self.made = False  # whether there is ``raw``
        self.data = Interactions(database)
        self.rows = 0  # of ``raw``, those that were left out among them
        self.lines = 0
        self.left_out: list[tuple[str, _Fault]] = []  # by the file's name
        self.joined: str | None = None  # column that is a part of the time, too

    def add(self, source: Source) -> None:
        try:
            self._add(source)
        except duckdb.Error as error:
            reason = excerpt(" ".join(str(error).split()), 160)
            where = self.settings.where
            if where and not isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException):
                raise UserError(
                    f"{source.path}: dataset.where={excerpt(where)} is no condition on its columns "
                    f"({reason})."
                ) from error
            raise UserError(
                f"{source.path} cannot be read ({reason}); check that it is whole and of the "
                "format that its name says."
            ) from error

    def _add(self, source: Source) -> None:
        source = partitioned(source)
        columns = choose_columns(source.kinds, self.settings.columns, source.path)
        if source.unit == "row":
            moment = columns.get("timestamp", "")
            rounded = moment if source.kinds.get(moment) == "TIMESTAMP" else ""
            check_pages(source.files, list(columns.values()), rounded)
        timed = "timestamp" in columns
        if self.made and timed != self.data.timed:
            raise UserError(
                f"{source.path} has {'' if timed else 'no '}times, other than the files before it; "
                "name their columns alike, or leave it out of dataset.path."
            )
        self.data.timed = timed
        source = _spread(source, columns, self.settings.where)
        guarded = False
        if source.quoted and self._stray_quotes(source, columns):
            assert source.text is not None
            assert source.layout is not None
            bare = partitioned(delimited(source.text, source.layout, False))
            source, guarded = replace(bare, numbers=source.numbers), True
        rows, kinds = self._selected(source, columns, guarded)
        say_choice(list(source.kinds), columns, self.joined, self.settings.columns, source.path)
        if self.form is None and self.data.timed:
            self.form = self._form(source, rows, kinds["time"], columns["timestamp"])
        time = (
            self.form.sql.format("time") if self.form else "NULL::BIGINT" if timed else "0::BIGINT"
        )
        clean = (
            f'SELECT {_id("user", kinds["user"])} AS "user", {_id("item", kinds["item"])} AS item, '
            f"CASE WHEN fault IS NULL THEN {time} END AS time FROM ({rows})"
        )
        make = "INSERT INTO raw" if self.made else "CREATE TABLE raw AS"
        self.made = True
        self.database.run(_FORGET)
        self.database.run(f"{make} {clean}")
        start, self.rows = self.rows, self.database.value("SELECT max(rowid) + 1 FROM raw") or 0
        self.data.ends += (self.rows,)
        lines = source.text.lines if source.text else self.rows - start
        self.lines += lines
        faults = self._rejected(source)
        bad = f'rowid >= {start} AND ("user" IS NULL OR item IS NULL OR time IS NULL OR time < 0)'
        if self.database.value(f"SELECT count(*) FROM raw WHERE {bad}"):
            faults += self._faults(source, rows, kinds, columns)
            self.database.run(f"DELETE FROM raw WHERE {bad}")
        if faults:
            self._judge(source, faults, lines)

    def _selected(
        self, source: Source, columns: Mapping[str, str], guarded: bool
    ) -> tuple[str, dict[str, str]]:
        """A query of ``user``, ``item``, ``time``, ``line`` and ``fault``, and its types."""
        parts = {role: identifier(name) for role, name in columns.items()}
        kinds = {role: source.kinds[name] for role, name in columns.items()}
        time, kinds["time"] = parts.get("timestamp", "0"), kinds.pop("timestamp", "INTEGER")
        if self.data.timed:
            time, kinds["time"], self.joined = self._clocked(source, columns, kinds["time"])
        checks = []
        if source.text is not None and (
            source.layout is None
            or any(f.startswith("[") for row in source.layout.rows for f in row)
        ):
            for role in ("user", "item"):
                listed = f"starts_with({parts[role]}, '[') OR starts_with({parts[role]}, '{{')"
                reason = times.text(f"the {role} is no text or number, but several")
                checks.append(f"WHEN ({listed}) AND json_valid({parts[role]}) THEN {reason}")
        if source.layout is not None and source.layout.header:
            header = dict(zip(source.kinds, map(times.text, source.layout.header), strict=False))
            again = " AND ".join(
                f"{parts[role]} IN ({header[columns[role]]}, chr(65279) || {header[columns[role]]})"
                for role in ("item", "user")
                if columns[role] in header
            )
            checks.append(f"WHEN {again} THEN 'the header stands here again'")
        for role in ("user", "item") if guarded else ():
            reason = times.text(f"a quote stands out of place in the column '{columns[role]}'")
            checks.append(f"WHEN contains({parts[role]}, '\"') THEN {reason}")
        fault = f"CASE {' '.join(checks)} ELSE {FAULT} END" if checks else FAULT
        base = f"({source.query})"
        picked = (
            f'{parts["user"]} AS "#user", {parts["item"]} AS "#item", {time} AS "#time", '
            f'{LINE} AS "#at", {fault} AS "#wrong"'
        )
        condition = ""
        if self.settings.where:
            casts = ", ".join(
                f"TRY_CAST({identifier(name)} AS {kind}) AS {identifier(name)}"
                for name, kind in source.numbers.items()
                if source.kinds[name] == "VARCHAR"
            )
            picked += f", * REPLACE ({casts})" if casts else ", *"
            condition = f' WHERE ({self.settings.where}\n) OR "#wrong" IS NOT NULL'
        query = (
            f'SELECT "#user" AS "user", "#item" AS item, "#time" AS time, "#at" AS line, '
            f'"#wrong" AS fault FROM (SELECT {picked} FROM {base}){condition}'
        )
        if self.settings.where and len(self.database.connection.extract_statements(query)) != 1:
            raise duckdb.ParserException("several statements")
        for role in ("user", "item"):
            self._check_kind(source, columns[role], kinds[role])
        return query, kinds

    def _check_kind(self, source: Source, name: str, kind: str) -> None:
        if kind.startswith(("DATE", "TIME", "STRUCT", "MAP", "BOOLEAN", "INTERVAL")) or "[" in kind:
            raise UserError(
                f"{source.path}: the column '{excerpt(name)}' is of type {excerpt(kind)}; use "
                "whole numbers or text as ids, or name another column with dataset.columns."
            )

    def _clocked(
        self, source: Source, columns: Mapping[str, str], kind: str
    ) -> tuple[str, str, str | None]:
        """The expression of times, of a date and a time of day where they stand apart.

        Returns:
            It, its type, and the column that was joined.
        """
        column = columns["timestamp"]
        name, by_name = identifier(column), {plain(other): other for other in source.kinds}

        def sample(other: str) -> list[str]:
            rows = f"SELECT {identifier(other)} AS time FROM ({source.query})"
            return self._sample(rows, source.kinds[other])

        def beside(names: str) -> list[str]:
            others = (by_name[word] for word in names.split() if word in by_name)
            return [o for o in others if o not in columns.values() and "[" not in source.kinds[o]]

        values = sample(column)
        clock = bool(values) and all(map(CLOCK.fullmatch, values))
        small = plain(column) in _CLOCKS.split() and all(
            v.isdigit() and int(v) < _DAY for v in values
        )
        if values and (clock or small):
            for date in beside("date day eventdate"):
                if all(map(times.DAY.fullmatch, sample(date))):
                    digits = 4 if clock else times.clock_digits(values)
                    if digits:
                        joined = times.joined_clock(identifier(date), name, digits)
                        return joined, "VARCHAR", date
                    clock = "timestamp" not in self.settings.columns
        if clock:
            raise UserError(
                f"{source.path}: the column '{excerpt(column)}' holds times of day without a date "
                f"(such as {excerpt(values[0])}); name the column of whole times with "
                "dataset.columns.timestamp=."
            )
        if values and all(map(times.DAY.fullmatch, values)):
            for other in beside(_CLOCKS):
                hours = sample(other)
                digits = 4 if all(map(CLOCK.fullmatch, hours)) else times.clock_digits(hours)
                if digits:
                    return times.joined_clock(name, identifier(other), digits), "VARCHAR", other
            if hour := beside("hour"):
                parts = [*hour, *beside("minute"), *beside("second")]
                padded = [f"lpad({identifier(part)}::VARCHAR, 2, '0')" for part in parts]
                text = " || ':' || ".join([*padded, "'00'"][: max(len(padded), 2)])
                return times.joined_clock(name, f"({text})"), "VARCHAR", hour[0]
            for offset in beside("timeframe"):  # DIGINETICA's
                return times.later(name, identifier(offset)), "VARCHAR", offset
        return name, kind, None

    def _sample(self, rows: str, kind: str) -> list[str]:
        """Some times as text."""
        query = f"SELECT time::VARCHAR FROM ({rows}) WHERE NOT {missing('time', kind)} LIMIT 1000"
        return [value for (value,) in self.database.run(query)]

    def _form(self, source: Source, rows: str, kind: str, column: str) -> TimeForm | None:
        """The form that most of the first times have; None where there are none."""
        sample = self._sample(rows, kind)
        forms = times.forms(kind, self.settings.time_format, sample)
        if not forms:
            raise UserError(
                f"{source.path}: the time in the column '{excerpt(column)}' is of type "
                f"{excerpt(kind)}; {times.ADVICE}."
            )
        if kind != "VARCHAR" or len(forms) == 1:
            return forms[0]
        if not sample:
            return None
        good = ", ".join(f"count({form.sql.format('x')})" for form in forms)
        (counts,) = self.database.run(f"SELECT {good} FROM (SELECT unnest($x) AS x)", x=sample)
        (first,) = self.database.run(f"SELECT {good} FROM (SELECT unnest($x) AS x)", x=sample[:1])
        if not any(counts):
            return times.neither(forms[0])
        # Where two have as many, that of the file's beginning.
        best = max(range(len(forms)), key=lambda k: (counts[k], first[k], -k))
        return forms[0] if forms[best] is times.FRACTION and counts[0] else forms[best]

    def _stray_quotes(self, source: Source, columns: Mapping[str, str]) -> bool:
        """Whether fewer rows are lost when quotes are taken for what they are.

        Raises:
            UserError: none are lost either way, and the rows are others.
        """
        text, layout = source.text, source.layout
        assert text is not None
        assert layout is not None
        rows, quoted = self._counts(source.query)
        over = text.lines - layout.above - rows - quoted  # lines of rows over several, or blank
        if not quoted and over <= 0:
            return False
        parts = [identifier(columns[role]) for role in ("user", "item")]
        odd = " OR ".join(f"contains({part}, '\"')" for part in parts)
        bare = f"SELECT * FROM ({partitioned(delimited(text, layout, False)).query})"
        # What is malformed costs much memory where it is noted line by line.
        counted = bare.replace("store_rejects = True", "ignore_errors = True")
        counted = re.sub(r"rejects_limit = \d+, ", "", counted)
        good = self.database.value(f"SELECT count(*) FROM ({counted})")
        if text.lines - layout.above - good > REJECTS // 10:
            return False
        every, rejected = self._counts(bare)
        bare_lost = rejected + every - self._counts(f"{bare} WHERE ({odd}) IS NOT TRUE")[0]
        texts = ", ".join(map(identifier, source.kinds))
        broken = f"{source.query} WHERE contains(concat_ws('', {texts}), chr(10))"
        if bare_lost == quoted and every > rows and self._counts(broken)[0]:
            line = broken_row(text, layout)
            raise UserError(
                f"{source.path}, line {line}: a quoted field goes on below, where each line looks "
                "like a row of its own; take out the quote, or the ends of lines within the field."
            )
        return bare_lost < quoted or (bare_lost == quoted and over > 0)

    def _counts(self, query: str) -> tuple[int, int]:
        """Rows of a query of text, and lines that are none."""
        self.database.run(_FORGET)
        rows = self.database.value(f"SELECT count(*) FROM ({query})")
        lines = self.database.value(
            "SELECT coalesce(sum(n), 0)::BIGINT FROM (SELECT any_value(1 + length(csv_line) - "
            "length(replace(csv_line, chr(10), ''))) AS n FROM reject_errors GROUP BY line)"
        )
        return rows, lines

    def _rejected(self, source: Source) -> list[_Fault]:
        """Lines that are no rows."""
        if source.text is None:
            return []
        rows = self.database.value("SELECT count(DISTINCT line) FROM reject_errors")
        if not rows:
            return []
        errors = self.database.run(
            "SELECT line, error_type::VARCHAR, error_message, csv_line FROM reject_errors "
            "WHERE line = (SELECT min(line) FROM reject_errors)"
        )
        kinds = {kind for _, kind, *_ in errors}
        line, _, message, shown = errors[0]
        line = self._line(source, line, shown)
        counts = [re.search(r"Columns: (\d+) Found: (\d+)", text) for _, _, text, _ in errors]
        found = [(int(c[1]), int(c[2])) for c in counts if c]
        if "INVALID ENCODING" in kinds:
            return [_Fault(line, "the bytes are not UTF-8 text", _TEXT, rows)]
        if "UNQUOTED VALUE" in kinds:
            reason = "a quote stands out of place"
        elif found and source.layout is not None:
            expected, got = min(found)
            sign = source.layout.sign
            reason = f"expected {expected} fields separated by '{sign}', got {got}"
        else:
            reason = excerpt(message, 80)
        return [_Fault(line, reason, _MEND, rows)]

    def _line(self, source: Source, line: int, shown: str) -> int:
        """The number of a line that DuckDB knows by its rows, of which some go over several."""
        assert source.text is not None
        first = shown.lstrip("\n").split("\n")[0]
        start = re.split("[?\ufffd]", first)[0]
        for number, text in source.text.numbered() if source.quoted else ():
            if number >= line and (
                text.rstrip("\n") == first or (first != start != "" and text.startswith(start))
            ):
                return number
        return line

    def _faults(
        self, source: Source, rows: str, kinds: Mapping[str, str], columns: Mapping[str, str]
    ) -> list[_Fault]:
        """What is wrong with rows that have something wrong, by kinds of it."""
        form = self.form
        time = form.sql.format("time") if form else "0"
        absent = {role: missing(f'"{role}"', kinds[role]) for role in kinds}
        query = f"""
            SELECT kind, count(*), min(line), arg_min(u, line), arg_min(i, line), arg_min(t, line),
                   arg_min(fault, line)
            FROM (SELECT line, fault, "user"::VARCHAR AS u, item::VARCHAR AS i, time::VARCHAR AS t,
                  CASE WHEN fault IS NOT NULL THEN 'fault' WHEN {absent["user"]} THEN 'user'
                       WHEN {absent["item"]} THEN 'item' WHEN {absent["time"]} THEN 'timestamp'
                       WHEN {_id('"user"', kinds["user"])} IS NULL THEN 'odd user'
                       WHEN {_id("item", kinds["item"])} IS NULL THEN 'odd item'
                       WHEN {time} IS NULL THEN 'time' WHEN {time} < 0 THEN 'early' END AS kind
                  FROM ({rows}))
            WHERE kind IS NOT NULL GROUP BY kind"""
        faults = []
        if form is times.WHOLE:
            other = times.FRACTION.sql.format("time")
            found = self.database.value(
                f"SELECT count(*) FROM ({rows}) WHERE {time} IS NULL AND {other} IS NOT NULL"
            )
            if found:
                raise _OtherForm
        for kind, number, line, user, item, moment, fault in self.database.run(query):
            if source.layout is not None and source.text is not None:
                names = list(source.kinds)
                sought = {columns["user"]: user, columns["item"]: item}
                if self.form is not None and self.joined is None:
                    sought[columns["timestamp"]] = moment
                at = {names.index(name): value for name, value in sought.items()}
                line = line_of(source.text, source.layout, source.quoted, at)
            if kind in columns:
                name = excerpt(columns[kind])
                reason = f"the column '{name}' has no value"
                if kind == "timestamp":
                    reason = f"the time in the column '{name}' is missing"
                faults.append(_Fault(line, reason, _FILL, number, True))
            elif kind == "fault":
                faults.append(_Fault(line, excerpt(fault, 120), _MEND, number))
            elif kind.startswith("odd "):
                role = kind[4:]
                value = user if role == "user" else item
                reason = (
                    f"the id {excerpt(value)} in the column '{excerpt(columns[role])}' is "
                    f"no text or whole number that the type {excerpt(kinds[role])} holds exactly"
                )
                faults.append(_Fault(line, reason, "use whole numbers or text as ids", number))
            else:
                assert form is not None
                what = "is before 1970" if kind == "early" else form.what
                reason = (
                    f"the time '{excerpt(moment)}' in the column "
                    f"'{excerpt(columns['timestamp'])}' {what}"
                )
                faults.append(_Fault(line, reason, times.ADVICE, number))
        return faults

    def _judge(self, source: Source, faults: Sequence[_Fault], lines: int) -> None:
        """Refuse the file, or note what was left out of it."""
        settings = self.settings
        dropped = [f for f in faults if f.missing and settings.missing == "drop"]
        skipped = [f for f in faults if f not in dropped]
        first = min(skipped, default=None)
        if first is not None and settings.malformed != "skip":
            ways = "dataset.missing=drop" if first.missing else "dataset.malformed=skip"
            raise UserError(
                f"{source.path}, {source.unit} {first.line}: {first.reason}; {first.advice}, or "
                f"leave such {source.unit}s out with {ways}."
            )
        limit = max(ALWAYS, int(lines * settings.max_malformed))
        number = sum(f.rows for f in skipped)
        if first is not None and number > limit:
            raise UserError(
                f"{source.path}: more than {limit:,} of its {lines:,} {source.unit}s are malformed "
                f"({number:,}), too many to be accidents (the first is {source.unit} {first.line}: "
                f"{first.reason}); mend the file, check that its name and dataset.columns say what "
                "it holds, or raise dataset.max_malformed."
            )
        self.left_out += [(source.path.name, fault) for fault in faults]

    def finish(self) -> Interactions:
        """All that was read."""
        data = self.data
        if self.left_out:
            file, first = self.left_out[0]
            file, first = min(
                (pair for pair in self.left_out if pair[0] == file), key=lambda pair: pair[1]
            )
            number = sum(fault.rows for _, fault in self.left_out)
            name = excerpt(file) if self.several else ""
            data.skipped = Skipped(number, self.lines, first.line, first.reason, name)
        second = self.form.second if self.form else 0
        if second and not self.database.value(
            f"SELECT count(*) FROM (SELECT 1 FROM raw WHERE time % {second} <> 0 LIMIT 1)"
        ):
            data.unit = second
        if self.form in (times.WHOLE, times.FRACTION):
            self._warn_of_units(max(second, 1))
        return data

    def _warn_of_units(self, second: int) -> None:
        """Tell of times of which some count seconds, and others parts of it."""
        low, high = self.database.run("SELECT min(time), max(time) FROM raw")[0]
        if low is None or high < 5 * max(low, 1):
            return
        least, most = self.database.run("SELECT min(time), max(time) FROM raw")[0]
        if least is None or most < 10 * least:
            return
        powers = {"seconds": 0, "milliseconds": 3, "microseconds": 6, "nanoseconds": 9}
        places = (
            f"time BETWEEN 1e{8 + p} * {second} AND 2e{10 + p} * {second}" for p in powers.values()
        )
        counts = self.database.run(
            f"SELECT {', '.join(f'count(*) FILTER ({place})' for place in places)} FROM raw"
        )[0]
        units = [f"{n:,} look like {unit}" for unit, n in zip(powers, counts, strict=True) if n]
        if len(units) > 1:
            log.warning(
                "The times are of several units, %s; their order is not that of time: write them "
                "in one.",
                " and ".join(units),
            )


def _id(column: str, kind: str) -> str:
    """The expression of an id, NULL where it is missing or none."""
    column = column if column.startswith('"') else f'"{column}"'
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


def _spread(source: Source, columns: Mapping[str, str], where: str | None) -> Source:
    """With a row for each item of lists; a faulty one stays a row."""
    item = columns["item"]
    asked = [name for name in source.kinds if where and name in where]
    lists = [n for n in {*columns.values(), *asked} if source.kinds[n].endswith("[]")]
    if item not in lists:
        return source
    others = [name for name in lists if name != item]
    lengths = "".join(
        f" WHEN len({identifier(item)}) <> len({identifier(name)}) THEN len({identifier(item)}) "
        f"|| ' items, but ' || len({identifier(name)}) || ' in ' || {times.text(name)}"
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
