#!/usr/bin/env python3
"""Draw the README's first figure, in light and dark, as docs/figures/hero-light.svg and
hero-dark.svg.

python docs/tools/hero.py

Three parts: where each method enters a Transformer block, the causal mask with its open prefix
columns, and the seeds that learn a new skill against trained parameters: the runs of README's first
table, read from docs/results/quality.jsonl, and those of other budgets.
"""

import math
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from docs.tools.drawing import COLOURS
from docs.tools.results import quality, seeds_above, trained
from minipeft.files.atomic import write_text

FOLDER = ROOT / "docs" / "figures"
WIDTH, HEIGHT = 800, 456
LIGHT = {"paper": "#ffffff", "ink": "#1f2328", "soft": "#59636e", "line": "#afb8c1", "box": "#eef1f4"}
DARK = {"paper": "#0d1117", "ink": "#f0f6fc", "soft": "#9198a1", "line": "#484f58", "box": "#21262d"}
BRIGHT = {"full": "#f0f6fc", "prompt": "#58a6ff", "lora": "#2dd4a0", "prefix": "#ff8a4c"}  # on dark paper
WORDS = {  # the names of methods on light paper: their colours, so dark that text reads well
    "hard-prompt": "#1c6f9e", "prefix": "#b24e00", "lora": "#00754f", "adapter": "#8a5f00", "llama-adapter": "#a3447a",
}
THEMES = {
    "light": LIGHT | COLOURS | {f"{name} name": colour for name, colour in WORDS.items()},
    "dark": DARK | COLOURS | BRIGHT,
}
NAMES = {
    "prompt": "soft prompt", "prefix": "prefix", "lora": "LoRA", "adapter": "bottleneck|adapter",
    "llama-adapter": "LLaMA-Adapter", "full": "full fine-tuning",
}
# Where a curve's name stands, seen from its last point.
SHIFTS = {
    "prompt": (9, -21), "prefix": (9, 0), "lora": (9, -4), "adapter": (9, -3), "llama-adapter": (9, -9),
    "full": (8, 20),
}
LIFTS = {"prompt": 3, "prefix": 3, "adapter": -3, "llama-adapter": -3}  # equal counts stand side by side
NEW_SKILL, BUDGET, SEEDS = "parity", 4096, 5  # of README's first table
P, T = 3, 6  # prefix columns and tokens of the mask


class Canvas:
    """SVG elements in the colours of one theme."""

    def __init__(self, theme: dict):
        self.theme, self.parts = theme, []

    def rect(self, x, y, w, h, fill, stroke="none", radius=4) -> None:
        fill, stroke = (self.theme.get(c, c) for c in (fill, stroke))
        shape = f'x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius}"'
        self.parts.append(f'<rect {shape} fill="{fill}" stroke="{stroke}"/>')

    def text(self, x, y, words, colour="ink", size=13, anchor="start", bold=False) -> None:
        weight = ' font-weight="600"' if bold else ""
        place = f'x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"'
        fill = self.theme.get(f"{colour} name", self.theme[colour])
        self.parts.append(f'<text {place} fill="{fill}"{weight}>{escape(words)}</text>')

    def path(self, d, colour, width=1.5, arrow=False) -> None:
        """A path of straight lines; `arrow` ends it in a head that points along its last step."""
        stroke = self.theme[colour]
        self.parts.append(f'<path d="{d}" fill="none" stroke="{stroke}" stroke-width="{width}"/>')
        if arrow:
            (x0, y0), (x, y) = ([float(n) for n in p.split()] for p in d.lstrip("M").split(" L")[-2:])
            dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
            a = (x - 7 * dx - 4 * dy, y - 7 * dy - 4 * dx)
            b = (x - 7 * dx + 4 * dy, y - 7 * dy + 4 * dx)
            head = f"{x:g},{y:g} {a[0]:g},{a[1]:g} {b[0]:g},{b[1]:g}"
            self.parts.append(f'<polygon points="{head}" fill="{stroke}"/>')

    def dot(self, x, y, colour, radius=4.5) -> None:
        fill = self.theme[colour]
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}"/>')

    def svg(self) -> str:
        font = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="{font}">'
        paper = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{self.theme["paper"]}"/>'
        return "\n".join([head, paper, *self.parts, "</svg>", ""])


def block(c: Canvas, left: int) -> None:
    """A Transformer block, its flow upwards; on its right where each method enters."""
    c.text(left, 24, "Where each method enters", bold=True, size=15)
    x, w = left + 22, 118
    mid, side = x + w / 2, x + w
    c.rect(left, 64, w + 44, 278, "paper", "line", 8)
    c.text(left + 8, 82, "× L blocks", "soft", 12)
    boxes = {"mlp": (112, 40, "MLP"), "attn": (212, 62, "attention"), "wte": (374, 28, "embedding")}
    c.path(f"M{mid:g} 374 L{mid:g} 275", "line", 2, arrow=True)
    c.path(f"M{mid:g} 212 L{mid:g} 153", "line", 2, arrow=True)
    c.path(f"M{mid:g} 112 L{mid:g} 46", "line", 2, arrow=True)
    c.path(f"M{mid:g} 426 L{mid:g} 403", "line", 2, arrow=True)
    c.text(mid, 42, "to the next token", "soft", 12, "middle")
    c.text(mid, 440, "tokens", "soft", 12, "middle")
    for y, h, name in boxes.values():
        c.rect(x, y, w, h, "box", "line")
        c.text(mid, y + h / 2 + 5, name, anchor="middle")
    for y in (100, 190):  # after MLP and after attention
        c.rect(mid - 24, y - 9, 48, 16, "adapter", radius=3)
        c.path(f"M{side + 38:g} {y - 1} L{mid + 26:g} {y - 1}", "adapter", 2, arrow=True)
    c.path(f"M{side + 38:g} 99 L{side + 38:g} 189", "adapter", 2)
    at = side + 46
    c.text(at, 132, "bottleneck adapter", "adapter", 12.5, bold=True)
    c.text(at, 148, "small network after", "soft", 12)
    c.text(at, 163, "attention and MLP", "soft", 12)
    enter(c, at, side, 209, "LoRA", "lora", "low-rank change of", "a weight matrix")
    enter(c, at, side, 259, "prefix", "prefix", "P keys and P values,", "in every block")
    enter(c, at, mid + 3, 309, "hidden prefix", "prefix", "P vectors before the", "input of every block")
    enter(c, at, mid + 3, 359, "soft prompt", "prompt", "P vectors before the", "token embeddings")
    enter(c, at, mid + 28, 430, "hard prompt", "hard-prompt", "words")


def enter(c: Canvas, left: float, to: float, y: float, name: str, colour: str, *about: str) -> None:
    """The name of a method and lines about it, with an arrow to where it enters."""
    c.path(f"M{left:g} {y + 6:g} L{to:g} {y + 6:g}", colour, 2, arrow=True)
    c.text(left + 4, y + 10, name, colour, bold=True)
    for n, line in enumerate(about):
        c.text(left + 4, y + 25 + 14 * n, line, "soft", 12)


def mask(c: Canvas, left: int) -> None:
    """The boolean attention mask (T, P + T): filled where the query may attend."""
    c.text(left, 24, "What a query sees", bold=True, size=15)
    s, top = 19, 92
    for i in range(T):
        for j in range(P + T):
            open_ = j < P or j - P <= i
            fill = "box" if not open_ else "prefix" if j < P else "soft"
            c.rect(left + j * s + (6 if j >= P else 0), top + i * s, s - 2, s - 2, fill, radius=2)
    c.text(left + P * s / 2 - 1, top - 26, "P prefix", "prefix", 13, "middle", bold=True)
    c.text(left + P * s / 2 - 1, top - 10, "keys", "soft", 12, "middle")
    c.text(left + 6 + (P + T / 2) * s, top - 26, "T token keys", "ink", 13, "middle", bold=True)
    c.text(left + 6 + (P + T / 2) * s, top - 10, "causal", "soft", 12, "middle")
    y = top + T * s + 22
    about = ("Each row is one query.", "Prefix columns are open to", "every query; token columns",
             "only up to its own position.")
    for n, line in enumerate(about):
        c.text(left, y + 17 * n, line, "soft", 12.5)
    y += 88
    c.text(left, y, "One softmax over both, so", "ink", 12.5)
    c.text(left, y + 17, "a prefix takes a share λ of", "ink", 12.5)
    c.text(left, y + 34, "each query's attention.", "ink", 12.5)


def passed() -> dict[str, list[tuple[int, int]]]:
    """{method: [(trained parameters, seeds with over 0.9 exact match)]} on the new skill, by trained parameters."""
    found: dict[str, list[tuple[int, int]]] = {}
    for p in [*quality("budget"), *(p for p in quality("methods") if p.row == "full")]:
        if p.cell.task == NEW_SKILL:
            found.setdefault(p.row, []).append((trained(p), seeds_above(p)))
    return {row: sorted(its) for row, its in found.items()}


def plot(c: Canvas, left: int) -> None:
    """Seeds that learn the new skill against trained parameters, on a logarithmic axis."""
    c.text(left, 24, "What a new skill takes", bold=True, size=15)
    c.text(left, 44, f"seeds of {SEEDS} that learn {NEW_SKILL}", "soft", 12)
    c.text(left, 59, "(over 0.9 exact match)", "soft", 12)
    x0, x1, y0, y1 = left + 20, WIDTH - 18, 358, 96

    def at(parameters: float, seeds: float) -> tuple[float, float]:
        share = math.log10(parameters / 700) / math.log10(400_000 / 700)
        return x0 + share * (x1 - x0), y0 + seeds / SEEDS * (y1 - y0)

    for seeds in range(SEEDS + 1):
        _, y = at(1000, seeds)
        c.path(f"M{x0:g} {y:g} L{x1:g} {y:g}", "line", 0.8)
        c.text(x0 - 6, y + 4, f"{seeds}", "soft", 12, "end")
    for n, name in ((1000, "1k"), (10_000, "10k"), (100_000, "100k")):
        c.text(at(n, 0)[0], y0 + 17, name, "soft", 12, "middle")
    c.text((x0 + x1) / 2, y0 + 35, "trained parameters", "soft", 12, "middle")
    x, y = at(BUDGET, SEEDS)
    c.path(f"M{x:g} {y0} L{x:g} {y - 12:g}", "soft", 0.8)
    c.text(x, y - 16, f"table: {BUDGET:,}", "soft", 12, "middle")
    for row, its in passed().items():
        where = [(x, y - LIFTS.get(row, 0)) for x, y in (at(*point) for point in its)]
        c.path("M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in where), row, 2.2)
        for x, y in where:
            c.dot(round(x, 1), round(y, 1), row)
        x, y = where[-1]
        dx, dy = SHIFTS[row]
        for n, line in enumerate(NAMES[row].split("|")):
            anchor = "end" if row == "full" else "start"
            c.text(x + dx, y + dy + 14 * n, line, row, 12.5, anchor, bold=True)


def draw(theme: str) -> str:
    c = Canvas(THEMES[theme])
    block(c, 8)
    mask(c, 348)
    plot(c, 562)
    for x in (334, 546):
        c.path(f"M{x} 14 L{x} {HEIGHT - 14}", "line", 0.8)
    return c.svg()


def files() -> dict[Path, str]:
    """Every file that this tool writes, and its text."""
    return {FOLDER / f"hero-{theme}.svg": draw(theme) for theme in THEMES}


if __name__ == "__main__":
    for path, text in files().items():
        write_text(path, text)
