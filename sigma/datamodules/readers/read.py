"""From sources to interactions: what is missing or malformed is refused, or left out and told."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import duckdb

from sigma.datamodules.database import Database, identifier, literal
from sigma.datamodules.interactions import Interactions, Skipped
from sigma.datamodules.readers import times
from sigma.datamodules.readers.faults import (
    Fault,
    OtherFormError,
    first_fault,
    lines_of,
    row_faults,
    stray_quotes,
)
from sigma.datamodules.readers.moments import check_format, clocked, form_of, warn_of_units
from sigma.datamodules.readers.parquet import check_pages
from sigma.datamodules.readers.roles import choose_columns, say_choice
from sigma.datamodules.readers.sources import FAULT, LINE, Source, delimited, partitioned
from sigma.datamodules.readers.times import TimeForm
from sigma.datamodules.readers.values import id_value, spread
from sigma.errors import UserError, excerpt

ALWAYS = 10  # malformed lines that may be left out of a file however short it is

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


def read(sources: Iterable[Source], database: Database, settings: Reading) -> Interactions:
    """The interactions of all sources, one after the other.

    Raises:
        UserError: columns that are not there, a malformed row, or a file that is damaged.
    """
    sources, form = list(sources), None
    if settings.where is not None and not settings.where.strip():
        settings = replace(settings, where=None)
    if settings.time_format is not None:
        check_format(database, settings.time_format)
    while True:
        reader = _Reader(database, settings, form, several=len(sources) > 1)
        database.run("DROP TABLE IF EXISTS raw")
        try:
            for source in sources:
                reader.add(source)
            return reader.finish()
        except OtherFormError:
            form = times.FRACTION


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
        self.left_out: list[tuple[str, Fault]] = []  # by the file's name
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
        source = spread(source, columns, self.settings.where)
        guarded = False
        if source.quoted and stray_quotes(self.database, source, columns):
            assert source.text is not None
            assert source.layout is not None
            bare = partitioned(delimited(source.text, source.layout, False))
            source, guarded = replace(bare, numbers=source.numbers), True
        try:
            self._take(source, columns, guarded, None)
        except duckdb.InvalidInputException:
            read = [n for n in source.columns if self.settings.where and n in self.settings.where]
            read += [n for n in source.columns if n in columns.values()]
            fault = first_fault(self.database, source, read)
            if fault is None or source.text is None:
                raise
            lost = lines_of(self.database, source, read)[1]
            with self.database.lenient(source.text.small):
                self._take(source, columns, guarded, fault._replace(rows=max(lost, 1)))

    def _take(
        self, source: Source, columns: Mapping[str, str], guarded: bool, fault: Fault | None
    ) -> None:
        """Take what a source has; lines that are no rows are an error, or those of the fault."""
        timed = self.data.timed
        rows, kinds = self._selected(source, columns, guarded)
        if self.form is None and self.data.timed:
            name, time_format = columns["timestamp"], self.settings.time_format
            self.form = form_of(self.database, source, rows, kinds["time"], name, time_format)
        time = (
            self.form.sql.format("time") if self.form else "NULL::BIGINT" if timed else "0::BIGINT"
        )
        clean = (
            f'SELECT {id_value("user", kinds["user"])} AS "user", '
            f"{id_value('item', kinds['item'])} AS item, "
            f"CASE WHEN fault IS NULL THEN {time} END AS time FROM ({rows})"
        )
        make = "INSERT INTO raw" if self.made else "CREATE TABLE raw AS"
        self.database.run(f"{make} {clean}")
        self.made = True
        say_choice(list(source.kinds), columns, self.joined, self.settings.columns, source.path)
        start, self.rows = self.rows, self.database.value("SELECT max(rowid) + 1 FROM raw") or 0
        self.data.ends += (self.rows,)
        lines = source.text.lines if source.text else self.rows - start
        self.lines += lines
        faults = [fault] if fault else []
        bad = f'rowid >= {start} AND ("user" IS NULL OR item IS NULL OR time IS NULL OR time < 0)'
        if self.database.value(f"SELECT count(*) FROM raw WHERE {bad}"):
            faults += row_faults(
                self.database, source, rows, kinds, columns, self.form, self.joined
            )
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
            time, kinds["time"], self.joined = clocked(
                self.database, source, columns, "timestamp" in self.settings.columns
            )
        checks = []
        if source.text is not None and (
            source.layout is None
            or any(f.startswith("[") for row in source.layout.rows for f in row)
        ):
            for role in ("user", "item"):
                listed = f"{parts[role]} >= '[' AND {parts[role]}[1] IN ('[', '{{')"  # few are
                reason = literal(f"the {role} is no text or number, but several")
                checks.append(f"WHEN {listed} AND json_valid({parts[role]}) THEN {reason}")
        if source.layout is not None and source.layout.header:
            header = dict(zip(source.kinds, map(literal, source.layout.header), strict=False))
            again = " AND ".join(
                f"{parts[role]} IN ({header[columns[role]]}, chr(65279) || {header[columns[role]]})"
                for role in ("item", "user")
                if columns[role] in header
            )
            checks.append(f"WHEN {again} THEN 'the header stands here again'")
        for role in ("user", "item") if guarded else ():
            reason = literal(f"a quote stands out of place in the column '{columns[role]}'")
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

    def _judge(self, source: Source, faults: Sequence[Fault], lines: int) -> None:
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
            warn_of_units(self.database, max(second, 1))
        return data
