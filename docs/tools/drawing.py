"""Figures of the docs: one style, one colour and one marker for a method in every figure (needs matplotlib)."""

import io
from collections.abc import Iterable
from pathlib import Path

from minipeft import METHODS, Error

PALETTE = (  # (colour, marker), in the order of METHODS; safe for colour-blind readers
    ("#000000", "s"), ("#56B4E9", "P"), ("#0072B2", "o"), ("#D55E00", "D"), ("#009E73", "^"), ("#E69F00", "v"),
    ("#CC79A7", "X"),  # Okabe & Ito (https://jfly.uni-koeln.de/color/)
    ("#661100", "h"), ("#332288", "*"), ("#882255", "<"), ("#117733", ">"), ("#999933", "p"), ("#AA4499", "d"),
    ("#6699CC", "8"),  # Paul Tol, muted (https://sronpersonalpages.nl/~pault/)
)
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


def looks(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """{method: (colour, marker)}. Raises Error for more methods than PALETTE has entries."""
    methods = list(methods)
    if len(methods) > len(PALETTE):
        raise Error(f"figures have {len(PALETTE)} colours and there are {len(methods)} methods: "
                    f"add one to PALETTE in docs/tools/drawing.py for {methods[len(PALETTE)]!r}")
    return dict(zip(methods, PALETTE, strict=False))


COLOURS = {method: colour for method, (colour, _) in looks(METHODS).items()}
MARKERS = {method: marker for method, (_, marker) in looks(METHODS).items()}


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
