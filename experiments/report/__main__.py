"""Every table and figure of the paper from whatever rows there are, ours beside theirs.

    python -m experiments.report                            results -> build/report
    python -m experiments.report multirun results --out report --where dataset.max_length=50

Writes report.md, tables/ as CSV (and HTML, LaTeX) and figures/ as SVG. Rows of different
protocols in one column are refused.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.ranks import RESULTS
from experiments.report import build
from experiments.rows import frame, where
from sigma.runs.messages import explained


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    places = "results or folders of runs"
    parser.add_argument("places", nargs="*", type=Path, default=[RESULTS], help=places)
    parser.add_argument("--out", type=Path, default=Path("build/report"))
    only = "only rows with this setting, such as dataset.max_length=50"
    parser.add_argument("--where", nargs="*", default=[], metavar="key=value", help=only)
    parser.add_argument("--html", action="store_true", help="tables as HTML, too")
    parser.add_argument("--latex", action="store_true", help="tables as LaTeX, too")
    options = parser.parse_args(arguments)
    rows = frame(options.places)
    notes = rows.attrs["notes"]
    rows = where(rows, options.where)
    build(options.out, rows, ["html"] * options.html + ["latex"] * options.latex)
    for note in notes:
        print(note)
    print(f"{len(rows)} rows -> {options.out / 'report.md'}")


if __name__ == "__main__":
    with explained():
        main()
