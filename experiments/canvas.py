"""What all pictures share: a canvas that needs no screen, colours, and files that repeat."""

from pathlib import Path
from typing import Any

from sigma.runs.files import atomic_path

# Okabe and Ito's palette: colour-blind readers tell them apart, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, LIGHT = "#555555", "#DDDDDD"


def picture(width: float = 7, height: float = 4.5) -> Any:
    """An empty figure of so many inches; ``figure.savefig(path)`` writes it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path, title: str) -> Path:
    """A PNG or SVG, by its name; the same bytes for the same figure, the title in it for the blind.

    Without a suffix both are written, and the PNG's path is returned.
    """
    import matplotlib

    if path.suffix not in (".png", ".svg"):
        save(figure, path.with_name(f"{path.name}.svg"), title)
        return save(figure, path.with_name(f"{path.name}.png"), title)
    metadata = {"Title": title} | ({"Date": None} if path.suffix == ".svg" else {})
    # Paths, not fonts: the reader may lack them. The salt makes the SVG's ids repeat.
    settings = {"svg.fonttype": "path", "svg.hashsalt": "sigma"}
    with matplotlib.rc_context(settings), atomic_path(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=150, metadata=metadata)
    return path
