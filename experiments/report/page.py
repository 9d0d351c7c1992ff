"""Tables and the report as files: Markdown, HTML, CSV and LaTeX, by pandas."""

import html
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from sigma.runs.files import atomic_path

DASH = "–"  # a number that there is not
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #ddd } a { color: #8bf } }
div.table { overflow-x: auto } table { border-collapse: collapse; font-size: 13px }
td, th { padding: .2rem .6rem; border-bottom: 1px solid #8884; text-align: right }
td:first-child, th:first-child { text-align: left } img { max-width: 100%; background: white }
pre { overflow-x: auto; background: #8882; padding: .5rem }
"""


def number(value: float, digits: int = 4) -> str:
    """``.0737``; a dash for NaN."""
    if pd.isna(value):
        return DASH
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def form(pattern: str) -> Callable[[float], str]:
    """A format such as ``{:,.0f}`` as a function, with the minus that is as wide as a plus."""
    return lambda value: DASH if pd.isna(value) else pattern.format(value).replace("-", "−")


count, change = form("{:,.0f}"), form("{:+.1%}")


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: stem of its files, such as ``table2_beauty``.
        frame: full numbers and texts; a column ``<name> sd`` is shown behind its ``<name>``.
        formats: how the numbers of a column are shown; what is not named is shown as it is.
        marks: column -> best, second or nothing, for every line.
        notes: sentences under the table.
        missing: commands that add what is missing.
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame
    formats: dict[str, Callable[[float], str]] = field(default_factory=dict)
    marks: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def texts(self) -> pd.DataFrame:
        """What is shown of ``frame``."""
        columns = {}
        for name in self.frame:
            if name.endswith(" sd"):
                continue
            texts = self.frame[name].map(
                self.formats.get(name, lambda v: DASH if pd.isna(v) else str(v))
            )
            if f"{name} sd" in self.frame:
                deviation = self.frame[f"{name} sd"].map(number)
                texts = texts.where(deviation == DASH, texts + " ± " + deviation)
            columns[name] = texts.astype(object)
        return pd.DataFrame(columns)

    @property
    def hint(self) -> list[str]:
        """How best and second best are shown, where they are."""
        marked = any(mark for marks in self.marks.values() for mark in marks)
        return ["The best is bold, the second best italic."] if marked else []


@dataclass(frozen=True)
class Part:
    """A heading of the report: tables and figures (what each shows, and its file)."""

    title: str
    tables: Sequence[Table]
    figures: dict[str, Path] = field(default_factory=dict)
    text: str = ""


def markdown(table: Table) -> str:
    """The lines of a table, without heading and caption."""
    texts = table.texts.map(lambda text: text.replace("|", r"\|"))
    for name, marks in table.marks.items():
        if name not in texts:
            continue
        stars = [{"best": "**", "second": "*"}.get(mark, "") for mark in marks]
        texts[name] = [f"{star}{text}{star}" for text, star in zip(texts[name], stars, strict=True)]
    return texts.to_markdown(
        index=False, disable_numparse=True, colalign=["left", *["right"] * (texts.shape[1] - 1)]
    )


def _styled(table: Table, escape: str) -> "pd.io.formats.style.Styler":
    styler = table.texts.style.hide(axis="index").format(escape=escape)
    css = {"best": "font-weight: bold", "second": "font-style: italic"}
    for name, marks in table.marks.items():
        styles = [css.get(mark, "") for mark in marks]
        styler = styler.apply(lambda column, styles=styles: styles, subset=[name])
    return styler


def latex(table: Table) -> str:
    """A ``table`` of booktabs."""
    plain = {ord(sign): f"\\{sign}" for sign in "&%$#_{}"}
    styler = _styled(table, "latex").format_index(escape="latex", axis="columns")
    return styler.to_latex(
        hrules=True,
        convert_css=True,
        label=f"tab:{table.name}",
        caption=f"{table.title}. {table.caption}".translate(plain),
    )


def _markdown_table(table: Table) -> list[str]:
    lines = [f'<a id="table-{table.name}"></a>', f"### {table.title}", table.caption]
    lines.append(markdown(table) if len(table.frame) else "*Nothing here yet.*")
    lines += [*table.hint, *table.notes]
    if table.missing:
        lines += ["Missing; these commands add it:"]
        lines += ["\n".join(["```bash", *table.missing, "```"])]
    return lines


def _html_table(table: Table) -> list[str]:
    title, caption = html.escape(table.title), html.escape(table.caption)
    lines = [f'<h3 id="table-{table.name}">{title}</h3>', f"<p>{caption}</p>"]
    lines.append(f'<div class="table">{_styled(table, "html").to_html()}</div>')
    lines += [f"<p>{html.escape(note)}</p>" for note in (*table.hint, *table.notes)]
    if table.missing:
        commands = html.escape("\n".join(table.missing))
        lines.append(f"<p>Missing; these commands add it:</p><pre>{commands}</pre>")
    return lines


def write(folder: Path, title: str, provenance: str, parts: Sequence[Part], *formats: str) -> None:
    """``report.md`` and ``tables/<name>.csv``, of full numbers.

    Args:
        formats: ``html`` adds ``index.html``, ``latex`` adds ``tables/<name>.tex``.
    """
    lines = [f"# {title}", provenance]
    page = [f"<h1>{title}</h1>", *(f"<p>{html.escape(p)}</p>" for p in provenance.split("\n\n"))]
    files: dict[str, str] = {}
    for part in parts:
        lines += [f"## {part.title}", *[part.text] * bool(part.text)]
        page += [f"<h2>{html.escape(part.title)}</h2>", f"<p>{html.escape(part.text)}</p>"]
        for table in part.tables:
            lines += _markdown_table(table)
            page += _html_table(table)
            files[f"tables/{table.name}.csv"] = table.frame.to_csv(index=False)
            if "latex" in formats:
                files[f"tables/{table.name}.tex"] = latex(table)
        for shows, path in part.figures.items():
            link = quote(Path(os.path.relpath(path, folder)).as_posix())
            lines.append(f"![{shows}]({link})")
            page.append(f'<p><img src="{link}" alt="{html.escape(shows)}"></p>')
    files["report.md"] = "\n\n".join(lines) + "\n"
    if "html" in formats:
        head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        head += '<meta name="viewport" content="width=device-width">'
        files["index.html"] = "\n".join(["<!doctype html>", head, *page, ""])
    for name, text in files.items():
        with atomic_path(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
