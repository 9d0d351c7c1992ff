"""Tables and report as files: Markdown, LaTeX, CSV and one HTML page. Plain data in, text out.

All strings given here are plain text: each output escapes what it would take for markup. A cell
shows its ``text`` and is sorted by its ``value``; an equal note of several cells is one footnote.

The CSV has a column for each of the table's, with the texts, and behind it, where any cell of the
column has one, ``<column> value``, ``<column> mark`` and ``<column> note``. Values are written in
full precision, so that this gives back every cell (without the options, pandas takes a text such
as ``.0737`` for a number and an empty one for NaN)::

    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    values = pd.to_numeric(frame["HR@10 value"])
"""

import base64
import csv as csv_format
import io
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from sigma.errors import UserError
from sigma.runs.files import atomic_path

MARKS = ("", "best", "second")
EMPTY = ("", "–")
FIGURE_TYPES = (".png", ".svg")
LIST = "files.txt"  # of the report's own files
TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        text: what is shown, such as ".0737 ± .0012"; "" or "–" where nothing is there.
        value: to sort by; None, NaN and infinity are sorted last.
        mark: "", "best" or "second".
        note: a footnote, such as "3 of 5 seeds".
    """

    text: str
    value: float | None = None
    mark: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.mark not in MARKS:
            raise ValueError(f"A cell's mark is one of {MARKS}, not {self.mark!r}.")

    @property
    def number(self) -> float | None:
        """The value, where it is a finite one."""
        return float(self.value) if self.value is not None and math.isfinite(self.value) else None

    @property
    def empty(self) -> bool:
        return self.text.strip() in EMPTY


@dataclass(frozen=True)
class Table:
    """One table.

    Args:
        name: stem of its files, such as "table2_beauty".
        title: heading.
        caption: one or two sentences; how best and second best are shown is said by itself.
        columns: header, C different names.
        rows: R lists of C cells; the first names its row.
        notes: sentences under the table.
        missing: commands that add what is missing.

    Raises:
        ValueError: a name that is no file name, columns of one name, or rows of another width.
    """

    name: str
    title: str
    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"A table's name is a file's: letters, digits, _ - . ({self.name!r}).")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"{self.name}: two columns have one name: {self.columns}.")
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"{self.name}: a row of {len(row)} cells under {len(self.columns)} columns: "
                    f"{[cell.text for cell in row]}."
                )

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it is sorted by number (and set to the right)."""
        return [
            any(row[at].number is not None for row in self.rows) for at in range(len(self.columns))
        ]

    @property
    def marked(self) -> bool:
        """Whether any cell is best or second best; every output then says how it shows them."""
        return any(cell.mark for row in self.rows for cell in row)

    @property
    def footnotes(self) -> dict[str, int]:
        """Note -> its number, from 1, in reading order."""
        notes = (cell.note for row in self.rows for cell in row if cell.note)
        return {note: at for at, note in enumerate(dict.fromkeys(notes), 1)}


@dataclass(frozen=True)
class Section:
    """A heading of the report with tables and figures.

    Args:
        name: of its anchor.
        title: heading.
        text: paragraphs, blank lines between them.
        tables: in order.
        figures: PNG files, an SVG of the same stem beside each.
    """

    name: str
    title: str
    text: str
    tables: list[Table]
    figures: list[Path]


def one_line(text: str) -> str:
    return " ".join(text.split())


def paragraphs(text: str) -> list[str]:
    return [one_line(part) for part in re.split(r"\n\s*\n", text) if part.strip()]


# Markdown


def escape_markdown(text: str) -> str:
    """Plain text as one line of Markdown that shows the same."""
    text = re.sub(r"([\\`*_\[\]<>|~$])", r"\\\1", one_line(text)).replace("&", "&amp;")
    # At the start of a line these would begin a list, a heading or a rule.
    return re.sub(r"^(\d*)([-+#=]+|(?<=\d)[.)])(?=\s|$)", r"\1\\\2", text)


def _markdown_cell(cell: Cell, footnotes: dict[str, int]) -> str:
    text = escape_markdown(cell.text)
    if text and cell.mark:
        around = {"best": "**", "second": "*"}[cell.mark]
        text = f"{around}{text}{around}"
    return text + (f"<sup>{footnotes[cell.note]}</sup>" if cell.note else "")


def markdown(table: Table) -> str:
    """The table under a heading; best bold, second best italic, numbered footnotes below it."""
    lines = [f"### {escape_markdown(table.title)}", ""]
    lines += [part for text in paragraphs(table.caption) for part in (escape_markdown(text), "")]
    footnotes = table.footnotes
    if table.rows:
        head = [escape_markdown(column) for column in table.columns]
        rule = ["---:" if numeric else "---" for numeric in table.numeric]
        body = [[_markdown_cell(cell, footnotes) for cell in row] for row in table.rows]
        lines += ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]
        lines.append("")
    else:
        lines += ["*Nothing here yet.*", ""]
    if table.marked:
        lines += ["**Best** bold, *second best* italic.", ""]
    for note, number in footnotes.items():
        lines += [f"<sup>{number}</sup> {escape_markdown(note)}", ""]
    for note in table.notes:
        lines += [escape_markdown(note), ""]
    if table.missing:
        commands = [one_line(command) for command in table.missing]
        longest = max((len(run) for c in commands for run in re.findall("`+", c)), default=0)
        fence = "`" * max(3, longest + 1)
        lines += ["Missing; these commands add it:", "", f"{fence}bash", *commands, fence, ""]
    return "\n".join(lines)


# LaTeX

# Braces around brackets and the star: behind \\ or \midrule they would be its argument.
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "]": "{]}", "*": "{*}", "`": r"\textasciigrave{}",
    "’": "'", "‘": "`", "“": "``", "”": "''", "–": "--", "—": "---", "…": r"\ldots{}",
    "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "≤": r"$\le$", "≥": r"$\ge$", "≠": r"$\ne$",
    "≈": r"$\approx$", "→": r"$\to$", "∞": r"$\infty$", "·": r"$\cdot$", "†": r"\dag{}",
    "‡": r"\ddag{}", "Δ": r"$\Delta$", "α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$",
    "μ": r"$\mu$", "σ": r"$\sigma$", "τ": r"$\tau$",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Plain text as one line of LaTeX that shows the same."""
    text = re.sub("-(?=-)", "-\0", one_line(text))  # two hyphens would join to a dash
    return "".join(_LATEX.get(sign, sign) for sign in text).replace("\0", "{}")


def _latex_cell(cell: Cell, footnotes: dict[str, int]) -> str:
    text = escape_latex(cell.text)
    if text and cell.mark:
        text = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}[cell.mark] % text
    return text + (rf"\textsuperscript{{{footnotes[cell.note]}}}" if cell.note else "")


def latex(table: Table) -> str:
    r"""A ``table`` of booktabs; best ``\textbf``, second best ``\underline``.

    It needs booktabs and graphicx (a table wider than the line is scaled to it). The commands that
    add what is missing are comments.
    """
    lines = [r"% \usepackage{booktabs,graphicx}"]
    lines += [f"% missing: {one_line(command)}" for command in table.missing]
    title, caption = (escape_latex(text) for text in (table.title, table.caption))
    lines += [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{title}{'' if title.endswith(('.', '?')) else '.'} {caption}}}",
        rf"\label{{tab:{table.name}}}",
    ]
    footnotes = table.footnotes
    if table.rows:
        head = [escape_latex(column) for column in table.columns]
        body = [[_latex_cell(cell, footnotes) for cell in row] for row in table.rows]
        lines += [
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{''.join('lr'[numeric] for numeric in table.numeric)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in body),
            r"\bottomrule",
            r"\end{tabular}}",
        ]
    else:
        lines.append(r"\emph{Nothing here yet.}")
    below = [r"\textbf{Best} bold, \underline{second best} underlined."] if table.marked else []
    below += [rf"\textsuperscript{{{at}}}~{escape_latex(note)}" for note, at in footnotes.items()]
    below += [escape_latex(note) for note in table.notes]
    if below:
        lines += ["", r"\smallskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += ["\n\n".join(below), r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}", ""])


# CSV


def csv(table: Table) -> str:
    """The table as CSV; the module's docstring says how, and how pandas reads it back.

    Raises:
        ValueError: a column is named as one that would stand beside it.
    """
    names: list[str] = []
    columns: list[list[str]] = []
    for at, name in enumerate(table.columns):
        cells = [row[at] for row in table.rows]
        values = ["" if c.number is None else repr(c.number) for c in cells]
        parts = {
            "value": values, "mark": [c.mark for c in cells], "note": [c.note for c in cells]
        }  # fmt: skip
        kept = {part: texts for part, texts in parts.items() if any(texts)}
        names += [name, *(f"{name} {part}" for part in kept)]
        columns += [[c.text for c in cells], *kept.values()]
    if len(set(names)) != len(names):
        raise ValueError(f"{table.name}: a column's name ends as those of the CSV do: {names}.")
    file = io.StringIO()
    writer = csv_format.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(zip(*columns, strict=True))
    return file.getvalue()


# HTML


def slug(*parts: str) -> str:
    """An anchor, the same in Markdown and HTML."""
    return "-".join(re.sub(r"[^\w.-]+", "-", part) for part in parts)


def figure_title(png: Path) -> str:
    """What the figure shows, for those who cannot see it: the SVG's title, else the file's name."""
    svg = png.with_suffix(".svg")
    if svg.is_file():
        for element in ElementTree.parse(svg).iter("{http://purl.org/dc/elements/1.1/}title"):
            if element.text:
                return element.text
    return png.stem.replace("_", " ")


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def figure_uri(png: Path) -> str:
    """The figure itself as an address: its SVG, or the PNG where there is no SVG.

    As an image, not as elements of the page: the ids inside two SVGs are the same.
    """
    svg = png.with_suffix(".svg")
    if svg.is_file():
        return data_uri(svg.read_bytes(), "image/svg+xml")
    return data_uri(png.read_bytes(), "image/png")


def downloads(table: Table) -> list[tuple[str, str, str]]:
    """(label, file name, address) of the table in the other formats."""
    made = (
        ("CSV", "csv", "text/csv", csv(table)),
        ("LaTeX", "tex", "application/x-tex", latex(table)),
        ("Markdown", "md", "text/markdown", markdown(table)),
    )
    return [
        (label, f"{table.name}.{suffix}", data_uri(text.encode(), f"{kind};charset=utf-8"))
        for label, suffix, kind, text in made
    ]


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "paragraphs": paragraphs, "slug": slug, "one_line": one_line, "downloads": downloads,
        "figure_uri": figure_uri, "figure_title": figure_title,
    }  # fmt: skip
    return environment.get_template(TEMPLATE)


def _check(sections: list[Section]) -> None:
    """No file or anchor twice, and every figure there."""
    tables = [table.name for table in _tables(sections)]
    for names in (tables, [section.name for section in sections]):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"The report has these names twice: {', '.join(twice)}.")
    for section in sections:
        for png in section.figures:
            if not png.is_file():
                raise UserError(f"The report's figure {png} is not there; draw it first.")


def _tables(sections: list[Section]) -> Iterator[Table]:
    for section in sections:
        yield from section.tables


def page(title: str, provenance: str, sections: list[Section]) -> str:
    """One HTML page with everything in it; it loads nothing, and says so to the browser.

    Args:
        title: heading of the page.
        provenance: of which rows, commits and machines it was made; paragraphs.
        sections: in order.

    Raises:
        UserError: a figure is not there.
        ValueError: two tables or sections of one name.
    """
    _check(sections)
    return str(_template().render(title=title, provenance=provenance, sections=sections))


# Files


def report(folder: Path, title: str, provenance: str, sections: list[Section]) -> str:
    """The same in Markdown, for ``folder``: figures are links relative to it."""
    _check(sections)
    lines = [f"# {escape_markdown(title)}", ""]
    lines += [part for text in paragraphs(provenance) for part in (escape_markdown(text), "")]
    for section in sections:
        lines.append(f"- [{escape_markdown(section.title)}](#{slug('section', section.name)})")
        lines += [
            f"  - [{escape_markdown(table.title)}](#{slug('table', table.name)})"
            for table in section.tables
        ]
    lines.append("")
    for section in sections:
        lines += [f'<a id="{slug("section", section.name)}"></a>', ""]
        lines += [f"## {escape_markdown(section.title)}", ""]
        lines += [part for text in paragraphs(section.text) for part in (escape_markdown(text), "")]
        for table in section.tables:
            lines += [f'<a id="{slug("table", table.name)}"></a>', "", markdown(table)]
        for png in section.figures:
            link = quote(Path(os.path.relpath(png, folder)).as_posix())
            lines += [f"![{escape_markdown(figure_title(png))}]({link})", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def replace(path: Path, data: bytes) -> None:
    """Write a file, as a whole or not at all; its folder is made."""
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def write(folder: Path, title: str, provenance: str, sections: list[Section]) -> None:
    """``report.md``, ``index.html`` and ``tables/<name>.{md,tex,csv}`` in a folder.

    Nothing is written unless all of it can be made, and no file is ever seen half written. What an
    earlier report wrote (``files.txt`` lists it) and this one does not have is deleted.

    Raises:
        UserError: a figure is not there, or the folder cannot be written.
        ValueError: two tables or sections of one name.
    """
    files = {Path("index.html"): page(title, provenance, sections)}
    files[Path("report.md")] = report(folder, title, provenance, sections)
    for table in _tables(sections):
        for suffix, text in (("md", markdown), ("tex", latex), ("csv", csv)):
            files[Path("tables") / f"{table.name}.{suffix}"] = text(table)
    try:
        for name, text in files.items():
            replace(folder / name, text.encode())
        own = {folder / name for name in files}
        own |= {f.with_suffix(s) for part in sections for f in part.figures for s in FIGURE_TYPES}
        listed = sorted(p.relative_to(folder).as_posix() for p in own if p.is_relative_to(folder))
        before = folder / LIST
        for old in before.read_text().splitlines() if before.is_file() else []:
            if old not in listed and ".." not in Path(old).parts:
                (folder / old).unlink(missing_ok=True)
        replace(before, "".join(f"{name}\n" for name in listed).encode())
    except OSError as error:
        raise UserError(f"The report cannot be written to {folder}: {error}") from error
