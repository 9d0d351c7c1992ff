"""What all pictures share: a canvas that needs no screen, colours, and files that repeat."""

import io
from pathlib import Path
from typing import Any

from experiments.render import replace

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, LIGHT = "#555555", "#DDDDDD"


def picture(width: float = 7, height: float = 4.5) -> Any:
    """An empty figure of so many inches; ``figure.savefig(path)`` writes it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, stem: Path, title: str) -> Path:
    """PNG and SVG, the same bytes for the same figure; the title is in both for the blind.

    Args:
        stem: path without suffix; its folder is made.

    Returns:
        The PNG's path.
    """
    import matplotlib

    png = stem.with_name(f"{stem.name}.png")
    # Paths, not fonts: the reader may lack them. The salt makes the SVG's ids repeat.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "sigma"}):
        for path, metadata in (
            (png, {"Title": title}),
            (png.with_suffix(".svg"), {"Title": title, "Date": None}),
        ):
            data = io.BytesIO()
            figure.savefig(data, format=path.suffix[1:], dpi=150, metadata=metadata)
            replace(path, data.getvalue())
    return png
