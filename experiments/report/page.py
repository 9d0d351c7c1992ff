"""Tables and the report as files: Markdown and CSV, and tables as HTML and LaTeX, by pandas."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import yaml

from sigma.files import atomic_path

SPECS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text("utf-8"))
FORMATS = {name: pattern for pattern, names in SPECS["formats"].items() for name in names}
SUFFIXES = {"html": "html", "latex": "tex"}
DASH = "–"  # a number that there is not


def number(value: float) -> str:
    """``.0737``; a dash for NaN."""
    if pd.isna(value):
        return DASH
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.4f}"


def shown(value: Any, column: str = "") -> str:
    """A cell as text; the minus is as wide as a plus."""
    if value is None or value != value:
        return DASH
    if column in FORMATS:
        return str(FORMATS[column]).format(value).replace("-", "−")
    if column.startswith("p over") and value < 1e-4:
        return "< .0001"
    return number(value) if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Table:
    """One table."""

    name: str  # stem of its files, such as table2_beauty
    title: str
    caption: str
    frame: pd.DataFrame  # full numbers and texts; <name> sd is shown behind its <name>
    marks: dict[str, list[str]] = field(default_factory=dict)  # column -> best, second or nothing
    notes: list[str] = field(default_factory=list)  # sentences under the table
    missing: list[str] = field(default_factory=list)  # commands that add what is missing

    @classmethod
    def of(cls, spec: str, frame: pd.DataFrame, dataset: str = "", **more: Any) -> "Table":
        """A table of ``tables.yaml``: its columns, or all; one that the frame has not is empty."""
        entry = SPECS[spec]
        if "columns" in entry:
            frame = frame.reindex(columns=entry["columns"].values())
            frame.columns = list(entry["columns"])
        name = f"{spec}_{dataset}" if dataset else spec
        more = {"caption": entry.get("caption"), "name": name} | more
        return cls(title=entry["title"].format(dataset), frame=frame, **more)

    @property
    def texts(self) -> pd.DataFrame:
        """What is shown of ``frame``."""
        columns = {}
        for name in (name for name in self.frame if not name.endswith(" sd")):
            texts = self.frame[name].astype(object).map(lambda value, name=name: shown(value, name))
            if f"{name} sd" in self.frame:
                deviation = self.frame[f"{name} sd"].map(number)
                texts = texts.where(deviation == DASH, texts + " ± " + deviation)
            columns[name] = texts
        return pd.DataFrame(columns)

    @property
    def remarks(self) -> list[str]:
        """Notes, after how best and second best are shown, where they are."""
        marked = any(mark for marks in self.marks.values() for mark in marks)
        return ["The best is bold, the second best italic."] * marked + self.notes

    def markdown(self) -> str:
        """The lines, without heading and caption."""
        texts = self.texts.map(lambda text: text.replace("|", r"\|"))
        for name, marks in self.marks.items():
            stars = pd.Series(marks, texts.index).map({"best": "**", "second": "*", "": ""})
            texts[name] = stars + texts[name] + stars
        align = ["left", *["right"] * (texts.shape[1] - 1)]
        return texts.to_markdown(index=False, disable_numparse=True, colalign=align)

    def styled(self, escape: str) -> "pd.io.formats.style.Styler":
        """As pandas' Styler; ``escape`` is of ``html`` or ``latex``."""
        css = {"best": "font-weight: bold", "second": "font-style: italic", "": ""}
        styler = self.texts.style.hide(axis="index").format(escape=escape)
        for name, marks in self.marks.items():
            styles = [css[mark] for mark in marks]
            styler = styler.apply(lambda column, styles=styles: styles, subset=[name])
        return styler.format_index(escape=escape, axis="columns")

    def as_format(self, name: str) -> str:
        """As ``html``, or as ``latex``: a ``table`` of booktabs."""
        if name == "html":
            return str(self.styled("html").set_caption(self.title).to_html())
        plain = {ord(sign): f"\\{sign}" for sign in "&%$#_{}"}
        caption = f"{self.title}. {self.caption}".translate(plain)
        look = {"hrules": True, "convert_css": True, "label": f"tab:{self.name}"}
        return str(self.styled("latex").to_latex(caption=caption, **look))

    def section(self) -> list[str]:
        """Paragraphs of the report."""
        lines = [f'<a id="table-{self.name}"></a>', f"### {self.title}", self.caption]
        lines.append(self.markdown() if len(self.frame) else "*Nothing here yet.*")
        lines += self.remarks
        if self.missing:
            commands = "\n".join(self.missing)
            lines.append(f"Missing; these commands add it:\n\n```bash\n{commands}\n```")
        return lines


Part = tuple[str, Sequence[Table], Mapping[str, Path]]  # heading, and figures by what they show


def write(folder: Path, head: Sequence[str], parts: Sequence[Part], formats: Sequence[str]) -> None:
    """``report.md`` and ``tables/<name>.csv``, of full numbers, and the tables in more formats."""
    lines = list(head)
    files: dict[str, str] = {}
    for title, tables, figures in parts:
        lines.append(f"## {title}")
        for table in tables:
            lines += table.section()
            stem = f"tables/{table.name}"
            files[f"{stem}.csv"] = table.frame.to_csv(index=False)
            files |= {f"{stem}.{SUFFIXES[name]}": table.as_format(name) for name in formats}
        for content, path in figures.items():
            lines.append(f"![{content}]({quote(Path(os.path.relpath(path, folder)).as_posix())})")
    files["report.md"] = "\n\n".join(lines) + "\n"
    for name, text in files.items():
        with atomic_path(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
