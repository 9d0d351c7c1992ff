"""Tables and report as files: what is escaped, marked, footnoted, sorted and read back."""

import html
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments.render import Cell, Section, Table, csv, latex, markdown, page, report, write
from sigma.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
NAN = float("nan")
SEEDS = "3 of 5 seeds"
TABLE = Table(
    "table2_small",
    "Table 2: 100% of A_B & C",
    "HR@10 on <test>, mean ± sd.",
    ["Model", "HR@10", "[0, 5)", "Commit"],
    [
        [Cell("SIGMA"), Cell(".0737 ± .0012", 0.0737, "best"), Cell("1,204", 1204.0), Cell("8ab")],
        [Cell("sasrec_x"), Cell(".0712", 0.0712, "second", SEEDS), Cell("–"), Cell("NA", note="?")],
        [Cell("[a|b] *c*"), Cell(".0590", 0.059, note=SEEDS), Cell("", NAN), Cell('<b>"&\\')],
    ],
    ["The paper's number is a validation score.", "1. Not a list."],
    ["python train.py -m model=sasrec 'seed=1,2'", "python train.py dataset.path='a b'"],
)
EMPTY = Table("none_yet", "Table 9", "", ["a", "b"], [], missing=["python train.py x=1"])


def sections(*figures: Path) -> list[Section]:
    return [
        Section("all of it", "Overall <1>", "One.\n\nTwo & a\nhalf.", [TABLE, EMPTY], [*figures]),
        Section("rest", "Nothing", "", [], []),
    ]


def figure(folder: Path, svg: bool = True) -> Path:
    """A figure's PNG, with or without its SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "a figure.png"
    made = Figure(figsize=(1, 1))
    made.add_subplot().plot([1, 2])
    made.savefig(path)
    if svg:
        made.savefig(path.with_suffix(".svg"), metadata={"Title": 'Curves & "more"'})
    return path


class Page(HTMLParser):
    """A page, taken apart: unbalanced elements fail."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize(("function", "suffix"), [(markdown, "md"), (latex, "tex"), (csv, "csv")])
def test_golden(function: object, suffix: str) -> None:
    assert callable(function)
    assert function(TABLE) == (GOLDEN / f"table.{suffix}").read_text()
    assert function(EMPTY) == (GOLDEN / f"empty.{suffix}").read_text()


def test_golden_page() -> None:
    text = page("T", "", [Section("s", "S", "", [TABLE], [])])
    article = re.search(r"<article.*</article>\n", text, re.DOTALL)
    assert article is not None
    # The downloads are the other goldens.
    assert re.sub(r"base64,[\w+/=]+", "", article[0]) == (GOLDEN / "table.html").read_text()


def test_equal_notes_are_one_footnote() -> None:
    assert TABLE.footnotes == {SEEDS: 1, "?": 2}
    assert markdown(TABLE).count("<sup>1</sup>") == 3  # two cells and the footnote
    assert latex(TABLE).count(r"\textsuperscript{1}") == 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("sigma_released *", r"sigma\_released \*"),
        ("1. one", r"1\. one"),
        ("- one", r"\- one"),
        ("# one", r"\# one"),
        ("-0.1", "-0.1"),
        ("0.1", "0.1"),
        ("---", r"\---"),
        ("<b>&amp;", r"\<b\>&amp;amp;"),
        ("two\nlines", "two lines"),
        (r"\n `x` $y$", r"\\n \`x\` \$y\$"),
    ],
)
def test_markdown_is_escaped(text: str, shown: str) -> None:
    assert f"| {shown} |" in markdown(Table("t", "t", "", ["c"], [[Cell(text)]]))


def test_latex_is_escaped() -> None:
    def cell(text: str) -> str:
        return latex(Table("t", "t", "", ["c"], [[Cell(text)]])).split("\\midrule\n")[1]

    assert cell("50% of A_B & C #1 $").startswith(r"50\% of A\_B \& C \#1 \$ \\")
    assert cell(r"\x{y}^~").startswith(
        r"\textbackslash{}x\{y\}\textasciicircum{}\textasciitilde{} \\"
    )
    # As it is, a bracket or star behind \\ or \midrule would be an argument of theirs.
    assert cell("[0, 5)").startswith("{[}0, 5) ")
    assert cell("* x").startswith("{*} x ")
    assert cell("--flag").startswith("-{}-flag ")
    assert cell("1 ± 2 ≥ –").startswith(r"1 $\pm$ 2 $\ge$ -- \\")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path: Path) -> None:
    signs = "".join(map(chr, range(33, 127))) + "±×≤≥≠≈→∞·†‡Δαβλμστ’‘“”–—…−"
    odd = Table("odd", signs, signs, ["[c", "*d"], [[Cell(signs), Cell("*", 1.0, "best", signs)]])
    document = [r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"]
    document += [latex(TABLE), latex(EMPTY), latex(odd), r"\end{document}"]
    (tmp_path / "all.tex").write_text("\n".join(document))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output[-1500:]
    assert "Missing character" not in output


def test_csv_gives_every_cell_back() -> None:
    frame = pd.read_csv(io.StringIO(csv(TABLE)), dtype=str, keep_default_na=False)
    assert list(frame) == [
        "Model", "HR@10", "HR@10 value", "HR@10 mark", "HR@10 note", "[0, 5)", "[0, 5) value",
        "Commit", "Commit note",
    ]  # fmt: skip
    for name, at in ((name, at) for at, name in enumerate(TABLE.columns)):
        for row, cells in zip(frame.to_dict("records"), TABLE.rows, strict=True):
            value = row.get(f"{name} value", "")
            back = Cell(
                row[name],
                float(value) if value else None,
                row.get(f"{name} mark", ""),
                row.get(f"{name} note", ""),
            )
            cell = cells[at]
            assert back == Cell(cell.text, cell.number, cell.mark, cell.note)
    values = pd.to_numeric(frame["HR@10 value"])
    assert values.tolist() == [0.0737, 0.0712, 0.059]


def test_csv_keeps_full_precision_and_refuses_a_name_that_is_taken() -> None:
    third = Table("t", "t", "", ["c"], [[Cell(".33", 1 / 3)], [Cell('two\nlines, "q"')]])
    frame = pd.read_csv(io.StringIO(csv(third)), dtype=str, keep_default_na=False)
    assert float(frame["c value"][0]) == 1 / 3
    assert frame["c"][1] == 'two\nlines, "q"'
    with pytest.raises(ValueError, match="c value"):
        csv(Table("t", "t", "", ["c", "c value"], [[Cell(".33", 1 / 3), Cell("")]]))


def test_wrong_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        Table("t", "t", "", ["a", "b"], [[Cell("x")]])
    with pytest.raises(ValueError, match="one name"):
        Table("t", "t", "", ["a", "a"], [])
    with pytest.raises(ValueError, match="file's"):
        Table("../t", "t", "", ["a"], [])
    with pytest.raises(ValueError, match="mark"):
        Cell("x", mark="third")
    with pytest.raises(ValueError, match="twice: table2_small"):
        page("T", "", [Section("a", "", "", [TABLE, TABLE], [])])
    with pytest.raises(ValueError, match="twice: a"):
        page("T", "", [Section("a", "", "", [], []), Section("a", "", "", [], [])])


@pytest.mark.parametrize("svg", [True, False])
def test_page_is_balanced_and_holds_everything(tmp_path: Path, svg: bool) -> None:
    text = page("<T>", "Commit 8ab & more.\n\nHere.", sections(figure(tmp_path, svg)))
    made = Page(text)
    ids = [a["id"] for _, a in made.elements if a.get("id")]
    assert len(set(ids)) == len(ids)
    for tag, attributes in made.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            where = attributes.get(name)
            if where is not None and where.startswith("#"):
                assert where[1:] in ids
            elif where is not None:
                assert where.startswith("data:")
    assert "@import" not in text
    assert "url(" not in text
    assert not re.search(r"https?:", re.sub(r"base64,[\w+/=]+", "", text))
    (image,) = made.all("img")
    assert image["alt"] == ('Curves & "more"' if svg else "a figure")
    kind = "svg+xml" if svg else "png"
    assert str(image["src"]).startswith(f"data:image/{kind};base64,")
    shown = " ".join(made.texts)
    assert "<T>" in shown
    assert '<b>"&\\' in shown  # escaped, and shown as it is
    assert "Overall <1>" in shown
    assert "incomplete" in shown


def test_page_marks_empties_and_footnotes() -> None:
    text = page("T", "", sections())
    cells = [a for tag, a in Page(text).elements if tag == "td"]
    kinds = [a.get("class") for a in cells]
    assert kinds == ["best number", "number", None, "second number", "number none", None,
                     "number", "number none", None]  # fmt: skip
    assert [a.get("data-value") for a in cells[:3]] == ["0.0737", "1204.0", None]
    assert cells[7].get("data-value") is None  # NaN
    assert [a.get("title") for a in cells].count(SEEDS) == 2
    assert re.search(rf'id="table-table2_small-note-1"><sup>1</sup> {SEEDS}</li>', text)
    for command in TABLE.missing:
        assert f"<code>{html.escape(command).replace('&#x27;', '&#39;')}</code>" in text
    assert text.count("Nothing here yet.") == 1


def test_write(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    png = figure(folder / "figures")
    for _ in range(2):  # over what is there, too
        write(folder, "Title", "Made here.", sections(png))
        for name in ("tables/of_an_earlier_report.csv", "figures/of_an_earlier_report.svg"):
            (folder / name).touch()
            with (folder / "files.txt").open("a") as listed:
                listed.write(f"{name}\n")
    (folder / "tables" / "mine.csv").touch()
    write(folder, "Title", "Made here.", sections(png))
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    found.remove("tables/mine.csv")  # no report's
    found.remove("files.txt")
    tables = [f"tables/{t.name}.{s}" for t in (EMPTY, TABLE) for s in ("csv", "md", "tex")]
    figures = ["figures/a figure.png", "figures/a figure.svg"]
    assert found == sorted([*figures, "index.html", "report.md", *tables])
    assert (folder / "tables" / "table2_small.csv").read_text() == csv(TABLE)
    text = (folder / "report.md").read_text()
    assert '![Curves &amp; "more"](figures/a%20figure.png)' in text
    assert markdown(TABLE).rstrip() in text
    for anchor in re.findall(r"\]\(#(.*?)\)", text):
        assert f'<a id="{anchor}"></a>' in text
    assert "\n\n\n" not in text
    assert text == report(folder, "Title", "Made here.", sections(png))


def test_nothing_is_written_of_a_report_that_cannot_be_made(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(UserError, match=r"gone\.png is not there"):
        write(folder, "Title", "", sections(tmp_path / "gone.png"))
    assert not folder.exists()
    folder.write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        write(folder, "Title", "", sections())


def test_a_failed_write_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "Old", "", sections())
    before = (tmp_path / "index.html").read_text()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="disk full"):
        write(tmp_path, "New", "", sections())
    assert (tmp_path / "index.html").read_text() == before
    assert not list(tmp_path.rglob("*.partial"))


def browser(folder: Path, text: str, script: str, width: int = 1280) -> object:
    """What ``script``, the body of a function, returns at the end of the page in Chromium."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed, so that nothing can be clicked")
    end = f"<script>document.title = JSON.stringify((() => {{{script}}})());</script>\n</body>"
    path = folder / "page.html"
    path.write_text(text.replace("</body>", end))
    command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", "--no-first-run",
               "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}",
               f"--window-size={width},900", "--dump-dom", path.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None, done.stderr[-1000:]
    return json.loads(html.unescape(title[1]))


def test_a_click_on_a_header_sorts(tmp_path: Path) -> None:
    values = [("a", 0.5, "10"), ("b", None, "9"), ("c", 10.0, ""), ("d", 0.5, "x"), ("e", 9, "1")]
    rows = [[Cell(n), Cell("" if v is None else f"{v}", v), Cell(t)] for n, v, t in values]
    text = page("T", "", [Section("s", "S", "", [Table("t", "t", "", ["n", "v", "w"], rows)], [])])
    script = """
        const buttons = [...document.querySelectorAll("thead button")];
        const seen = () => [...document.querySelectorAll("tbody th")].map(c => c.innerText).join("")
            + " " + [...document.querySelectorAll("thead th")].map(h => h.ariaSort[0]).join("");
        return [0, 1, 1, 1, 2, 2, 0, 0, 1].map(at => { buttons[at].click(); return seen(); });
    """
    assert browser(tmp_path, text, script) == [
        "abcde ann",
        "adecb nan",  # the missing one last, equal ones in order
        "ceadb ndn",  # 10 above 9: numbers, not text
        "abcde nnn",
        "ebadc nna",  # numbers within text, too
        "dabec nnd",
        "abcde ann",
        "edcba dnn",
        "daecb nan",  # equal ones as they stood before
    ]


@pytest.mark.parametrize("width", [500, 1280])
def test_nothing_is_wider_than_the_screen(tmp_path: Path, width: int) -> None:
    wide = [[Cell("a model of a long name"), *[Cell(".0737 ± .0012", 0.07)] * 20]]
    names = ["Model", *(f"metric {at}" for at in range(20))]
    table = Table("t", "t", "c", names, wide, [], [f"python train.py {'x' * 300}"])
    text = page("T", "", [Section("s", "S", "", [table], [])])
    script = """
        const scroll = document.querySelector(".scroll"), root = document.documentElement;
        scroll.scrollLeft = 200;
        return [root.scrollWidth <= root.clientWidth, scroll.scrollWidth > scroll.clientWidth,
                document.querySelector("tbody th").getBoundingClientRect().left
                  - scroll.getBoundingClientRect().left];
    """
    fits, scrolls, aside = browser(tmp_path, text, script, width)  # type: ignore[misc]
    assert fits
    assert scrolls
    assert aside < 2  # the row's name stays in sight
