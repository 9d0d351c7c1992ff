"""What the pages hold of numbers, made when the site is built; nothing of it is committed.

``report.md`` and its figures are built from the result rows. ``<!-- table a.csv: b, c -->`` in a
page becomes the columns b and c of ``results/benchmarks/a.csv`` (all of them, if it names none).
"""

import re
import sys
import tempfile
from pathlib import Path

import pandas as pd
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

RESULTS = Path(__file__).parents[1] / "results"
MARK = re.compile(r"<!-- table ([^\s:]+)(?::(.*?))? -->", re.DOTALL)
OPTIONAL = {"gpu.csv", "recommend.csv", "serve.csv"}  # measured where there is a GPU, or quiet


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the report and its figures to the site."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_report(folder)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                where = path.relative_to(folder).as_posix()
                files.append(File.generated(config, where, content=path.read_bytes()))
    return files


def build_report(folder: Path) -> None:
    """``report.md`` and ``figures/`` in a folder, from the committed rows."""
    sys.path.insert(0, str(RESULTS.parent))  # experiments is not installed
    from experiments import report

    report.build(folder)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the tables of benchmarks where their marks are."""
    return MARK.sub(lambda mark: table(mark[1], mark[2] or ""), markdown)


def table(pattern: str, columns: str) -> str:
    """Benchmarks as a Markdown table, with what they were measured on below it.

    Args:
        pattern: of the files' names; of several, the column ``file`` says which.
        columns: names to show, parted by commas; none for all.

    Raises:
        PluginError: no such file or column.
    """
    paths = sorted((RESULTS / "benchmarks").glob(pattern))
    if not paths and pattern in OPTIONAL:
        return "*Not measured yet.*"
    if not paths:
        raise PluginError(f"There is no results/benchmarks/{pattern}, which a page shows.")
    frame = pd.concat([pd.read_csv(path).assign(file=path.stem) for path in paths])
    stamps = [] if "stamp" not in frame else sorted(set(frame.pop("stamp")))
    names = [" ".join(name.split()) for name in columns.split(",") if name.strip()]
    names = names or [str(name) for name in frame if name != "file"]
    if absent := [name for name in names if name not in frame]:
        raise PluginError(f"results/benchmarks/{pattern} has no column '{absent[0]}'.")
    lines = [[name.replace("_", " ") for name in names], [align(frame[name]) for name in names]]
    lines += [[cell(value) for value in line] for line in frame[names].to_numpy(dtype=object)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + (f"\n\n*Measured on: {'; '.join(stamps)}.*" if stamps else "")


def align(column: pd.Series) -> str:
    return "---:" if pd.api.types.is_numeric_dtype(column) else "---"


def cell(value: object) -> str:
    """Text as it is, numbers to three digits, a dash for none."""
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value).replace("|", "\\|")
    if value != value:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
