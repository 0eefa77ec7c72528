#!/usr/bin/env python3
"""Refresh everything in README and docs/ that is generated, or say what is stale.

python docs/tools/refresh.py                   write what is stale
python docs/tools/refresh.py --check           list what is stale; exit code 1 if anything is
python docs/tools/refresh.py pages figures     only these parts
python docs/tools/refresh.py --quick           all parts but the lessons, which take minutes

Parts: pages (tables and excerpts of README and docs/*.md), numbers (docs/published-numbers.md),
explorer (the data of docs/explorer.html), figures (docs/figures), comparison
(docs/results/comparison.*, needs matplotlib), lessons (the printed output of docs/lessons, needs
matplotlib for its figures). Measurements are not repeated: docs/results/README.md has their
commands.
"""

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from docs.tools import explorer, hero, lessons, published_numbers, tables
from docs.tools.comparison import page
from docs.tools.results import RESULTS
from minipeft.files.atomic import write_text
from minipeft.runtime import console


def comparison() -> dict[Path, str]:
    """The report's page as text; `redraw` writes its figures and the HTML page."""
    path = RESULTS / "quality.jsonl"
    return {RESULTS / "comparison.md": page.markdown(page.facts_of(path), path)}


# Each part returns {file: the text it should have}. Those of REDRAW also have figures, which differ between versions of
# matplotlib and are therefore drawn again only where the text is stale, or with --redraw.
PARTS: dict[str, Callable[[], dict[Path, str]]] = {
    "pages": tables.files, "numbers": published_numbers.files, "explorer": explorer.files,
    "figures": hero.files, "comparison": comparison, "lessons": lessons.files}
REDRAW: dict[str, Callable[[], object]] = {
    "comparison": lambda: page.write(RESULTS / "quality.jsonl", RESULTS), "lessons": lessons.draw}


def stale(part: str) -> dict[Path, str]:
    """{file: the text it should have} for every file of this part that has another."""
    files = PARTS[part]()
    return {
        path: text for path, text in files.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text}


def main(argv: list[str] | None = None) -> None:
    p = console.Parser(__doc__)
    p.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    p.add_argument("--check", action="store_true", help="write nothing; list what is stale")
    p.add_argument("--quick", action="store_true", help="leave the lessons out")
    p.add_argument(
        "--redraw", action="store_true",
        help="draw the figures of comparison and lessons again in any case")
    args = p.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        p.error(f"there is no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    found = False
    for part in args.parts or [part for part in PARTS if not (args.quick and part == "lessons")]:
        files = stale(part)
        for path, text in files.items():
            print(f"{'stale' if args.check else 'written'}: {path.relative_to(ROOT)}")
            if not args.check:
                write_text(path, text)
        if part in REDRAW and not args.check and (files or args.redraw):
            REDRAW[part]()
        found = found or bool(files)
    if found and args.check:
        sys.exit(1)


if __name__ == "__main__":
    raise SystemExit(console.run("refresh.py", main))
