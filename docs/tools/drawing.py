"""Figures of the docs: one style, and one colour for a method in every figure (needs matplotlib)."""

import io
from pathlib import Path

from minipeft import Error

COLOURS = {  # Okabe & Ito's palette, safe for colour-blind readers (https://jfly.uni-koeln.de/color/)
    "full": "#000000",
    "hard-prompt": "#56B4E9",
    "prompt": "#0072B2",
    "prefix": "#D55E00",
    "lora": "#009E73",
    "adapter": "#E69F00",
    "llama-adapter": "#CC79A7",
}
BASE = "#BBBBBB"  # frozen parts

STYLE = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "svg.hashsalt": "minipeft",  # the same drawing gives the same file
}
FOLDER = Path("docs/lessons/figures")  # where save() writes


def figure(rows: int = 1, columns: int = 1, height: float = 4.0, **subplots):
    """A white figure 8 inches wide, readable at 800 pixels -> (figure, its axes: one, or an array).

    Raises Error without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure  # not pyplot: no window, no list of open figures
    except ImportError:
        raise Error("drawing needs: pip install matplotlib") from None
    matplotlib.rcParams.update(STYLE)
    fig = Figure(figsize=(8, height), facecolor="white", layout="constrained")
    return fig, fig.subplots(rows, columns, **subplots)


def picture(fig, kind: str) -> bytes:
    """The figure as a file of this kind, "svg" or "png"; the same drawing gives the same bytes."""
    to = io.BytesIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # in SVG: version and date of the drawing
    fig.savefig(to, format=kind, dpi=100, metadata=no_metadata if kind == "svg" else None)
    return to.getvalue()


def save(fig, name: str) -> None:
    """Write the figure to FOLDER/name, in the format of its ending (.svg, .png)."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / name).write_bytes(picture(fig, name.rpartition(".")[2]))
