"""Figures in one style, with one colour per method. Needs matplotlib."""

import io
from pathlib import Path

from ..checks import Error

COLOURS = {  # Okabe & Ito, for colour-blind readers too (https://jfly.uni-koeln.de/color/)
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
FOLDER = Path("docs/lessons/figures")  # of `save`


def figure(rows: int = 1, columns: int = 1, height: float = 4.0, **subplots):
    """A white figure 8 inches (800 pixels) wide -> (figure, its axes: one, or an array of them).

    Raises Error when matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure  # without pyplot: no window, no list of open figures
    except ImportError:
        raise Error("drawing needs: pip install matplotlib") from None
    matplotlib.rcParams.update(STYLE)
    fig = Figure(figsize=(8, height), facecolor="white", layout="constrained")
    return fig, fig.subplots(rows, columns, **subplots)


def picture(fig, kind: str) -> bytes:
    """The figure as a file of this kind, "svg" or "png". The same drawing gives the same bytes."""
    to = io.BytesIO()
    without = dict.fromkeys(("Date", "Creator", "Format", "Type")) if kind == "svg" else None
    fig.savefig(to, format=kind, dpi=100, metadata=without)
    return to.getvalue()


def save(fig, name: str) -> None:
    """Write the figure to FOLDER/name, in the format that its suffix names (.svg, .png)."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / name).write_bytes(picture(fig, name.rpartition(".")[2]))
