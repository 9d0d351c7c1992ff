"""How the fields of a table in text are laid out, told from its first lines."""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from sigma.datamodules.readers.roles import USUAL, usual_column
from sigma.datamodules.readers.text import Text
from sigma.errors import UserError, listed

BLANKS = " "
"""The delimiter of fields with any number of blanks between them."""

_DELIMITERS = ("::", "\t", ",", ";", "|", "\x01", "^", BLANKS)
_WIDEST = 10_000
_COMMENT = re.compile(r'#|//|"?sep=(.)"?$', re.IGNORECASE)
_DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})([T ]|$)|.*\d:\d\d"
)


@dataclass(frozen=True)
class Layout:
    """Fields of each line.

    Attributes:
        delimiter: between them; ``BLANKS`` for any number of blanks.
        names: of the fields; None where there is no header.
        above: lines above the first row.
        rows: the fields of the first lines, the header left out.
        header: its fields, as they are written.
    """

    delimiter: str
    names: tuple[str, ...] | None
    above: int
    rows: list[list[str]]
    header: tuple[str, ...] = ()

    @cached_property
    def width(self) -> int:
        """The usual number of fields."""
        widths = Counter(map(len, self.rows))
        return len(self.names) if self.names else widths.most_common(1)[0][0]

    @property
    def sign(self) -> str:
        """The delimiter, for messages."""
        shown = {"\t": "tab", BLANKS: "blanks", "\x01": "^A"}
        return shown.get(self.delimiter, self.delimiter)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_value(text: str) -> bool:
    """Whether no column is called so: a number, a date, or nothing."""
    return not text.strip() or is_number(text) or _DATE.match(text.strip()) is not None


def split(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """The fields of each line; quotes wrap some of them, but not line ends."""
    if delimiter == BLANKS:
        return [line.split() for line in lines]
    if len(delimiter) > 1:
        return [line.split(delimiter) for line in lines]
    rows: list[list[str]] = []
    for line in lines:
        if '"' not in line:
            rows.append(line.split(delimiter))
            continue
        try:
            rows.append(next(csv.reader([line], delimiter=delimiter)))
        except (csv.Error, StopIteration):  # a field without end
            rows.append(line.split(delimiter))
    return rows


def layout_of(
    text: Text, delimiter: str | None = None, names: Sequence[str] | None = None
) -> Layout:
    """The layout of a table.

    Args:
        delimiter: what is known of it; None finds it.
        names: of its columns where it has no header; None looks for one.

    Raises:
        UserError: fewer or more names than columns.
    """
    head, comments = list(text.head), []
    while head and (match := _COMMENT.match(head[0][1])) and len(head) > 1:
        delimiter = delimiter or match[1]
        comments.append(head.pop(0))
    lines = [line for _, line in head]
    if "\ufffd" in lines[0] or "\0" in lines[0]:
        raise UserError(
            f"{text.path}, line {head[0][0]}: the bytes are not UTF-8 text; name the encoding with "
            "dataset.encoding=, such as latin-1, or check that the file's name ends as its format "
            "needs (.csv, .csv.gz, .parquet, .zip)."
        )
    if delimiter is None:
        delimiter = _delimiter(lines, len(names or ()))
    if names is not None and comments and len(split([comments[-1][1]], delimiter)[0]) == len(names):
        head = [*comments, *head]  # of a user such as '#1'
        lines = [line for _, line in head]
    rows = split(lines, delimiter)
    above = head[0][0] - 1
    if names is not None:
        found = Layout(delimiter, None, above, rows)
        if found.width != len(names):
            raise UserError(
                f"{text.path} has {found.width} columns separated by '{found.sign}' (its first "
                f"line: {listed(rows[0])}), but dataset.columns.names gives {len(names)}; name "
                "each, in order."
            )
        # A header that says the same is one.
        headed = [field.strip() for field in rows[0]] == list(names)
        return Layout(delimiter, tuple(names), above + headed, rows[headed:], tuple(names))
    if not _headed(rows):
        return Layout(delimiter, None, above, rows)
    header = tuple(rows[0])
    if len(header) > _WIDEST:
        raise UserError(
            f"{text.path}, line {above + 1} names {len(header):,} columns, and no table of "
            f"interactions has more than {_WIDEST:,}; check that the file is whole, or name the "
            "columns with dataset.columns.names if this line is no header."
        )
    return Layout(delimiter, tuple(map(str.strip, header)), above + 1, rows[1:], header)


def _delimiter(lines: Sequence[str], fields: int) -> str:
    """What parts most lines into as many fields, several at least.

    Args:
        fields: how many there are, if that is known, else 0.
    """
    fits: dict[str, tuple[bool, bool, float, int]] = {}
    for place, sign in enumerate(_DELIMITERS):
        header = len(split(lines[:1], sign)[0])
        if header > 1:
            widths = Counter(map(len, split(lines, sign)))
            width, count = max(widths.items(), key=lambda item: item[1])
            # A line of text over several, within quotes, is no sign of another delimiter.
            agree = count / len(lines) if width == header else 0.5 * widths[header] / len(lines)
            fits[sign] = (width == fields, sign != BLANKS, round(agree, 2), -place)
    if not fits:
        return ","
    best = max(fits, key=lambda sign: fits[sign])
    return best


def _headed(rows: list[list[str]]) -> bool:
    """Whether the first row names the columns below it."""
    first = rows[0]
    roles = [usual_column(first[:_WIDEST], usual) for usual in USUAL.values()]
    if sum(role is not None for role in roles) >= 2:
        return True
    if any(is_value(field) for field in first if field.strip()) or not any(first):
        return False
    below = [row for row in rows[1:] if len(row) == len(first)]
    again = any(field == row[at] for row in below for at, field in enumerate(first) if field)
    return not again


def no_header(text: Text, layout: Layout) -> UserError:
    """What to say of a table that does not name its columns."""
    example = ["user", "item", *(f"c{k}" for k in range(3, layout.width)), "timestamp"]
    return UserError(
        f"{text.path} has {layout.width} columns separated by '{layout.sign}' and no header: its "
        f"first line is {listed(layout.rows[0])}; name them in order with "
        f"'dataset.columns.names=[{','.join(example[: max(layout.width, 2)])}]'."
    )


def unique(names: Sequence[str]) -> list[str]:
    """The names, those that come again with a number behind them, as SQL needs them."""
    seen: Counter[str] = Counter()
    result = []
    for place, name in enumerate(names, start=1):
        name = name or f"column {place}"
        seen[name.lower()] += 1
        result.append(name if seen[name.lower()] == 1 else f"{name} ({seen[name.lower()]})")
    return result


def line_of(text: Text, layout: Layout, quoted: bool, sought: Mapping[int, str | None]) -> int:
    """The number of the first line whose fields at these places hold these values."""
    values = {place: value or "" for place, value in sought.items() if place < layout.width}
    lines = (line for _, line in islice(text.numbered(), layout.above, None))
    if len(layout.delimiter) > 1:
        lines = (line.replace(layout.delimiter, "\x1f") for line in lines)
    sign = layout.delimiter if len(layout.delimiter) == 1 else "\x1f"
    quote = '"' if quoted else None
    reader = csv.reader(lines, delimiter=sign, quotechar=quote)
    number = layout.above + 1
    with suppress(csv.Error):
        for fields in reader:
            if len(fields) == layout.width and all(fields[k] == v for k, v in values.items()):
                break
            number = layout.above + reader.line_num + 1
    return number


def broken_row(text: Text, layout: Layout) -> int:
    """The number of the first line that ends within quotes."""
    lines = (line for _, line in islice(text.numbered(), layout.above, None))
    start = 0
    reader = csv.reader(lines, delimiter=layout.delimiter)
    for _ in reader:
        if reader.line_num > start + 1:
            break
        start = reader.line_num
    return layout.above + start + 1
