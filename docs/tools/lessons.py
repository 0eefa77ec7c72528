#!/usr/bin/env python3
"""Run the blocks of the lessons in order and print their output.

python docs/tools/lessons.py 2                   lesson 2; with no number all of them
python docs/tools/lessons.py 2 --lang zh-CN      the Chinese page
python docs/tools/lessons.py --figures           also draw the figures in docs/lessons/figures again
python docs/tools/lessons.py 2 --fill            also write the output into the page, in every language

docs/lessons/README.md says how a lesson is written.
"""

import contextlib
import importlib.util
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from docs.tools import drawing
from minipeft.config import Error
from minipeft.files.atomic import write_text
from minipeft.runtime import console

LESSONS = ROOT / "docs" / "lessons"
LANGUAGES = {"en": LESSONS, "zh-CN": LESSONS / "zh-CN"}  # the folder of each
FENCE = re.compile(r"^```(\w*)(?: ([^\n]*))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    note: str  # of an excerpt, its source: "minipeft/model.py GPT.hidden"
    text: str
    start: int  # in the page
    end: int

    @property
    def runs(self) -> bool:
        return self.language == "python" and not self.note

    @property
    def draws(self) -> bool:
        return self.runs and "docs.tools.drawing" in self.text


def pages(language: str) -> dict[int, Path]:
    """The lessons of this language, by number."""
    return {int(path.name[0]): path for path in sorted(LANGUAGES[language].glob("[0-9]-*.md"))}


def blocks(page: str) -> list[Block]:
    return [Block(m[1], m[2] or "", m[3], m.start(), m.end()) for m in FENCE.finditer(page)]


def runs(page: str) -> list[tuple[Block, Block | None]]:
    """The blocks that are run, each with the text block right behind it, which has its output."""
    found, answered = blocks(page), []
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.runs:
            follows = (
                after is not None
                and after.language == "text"
                and not page[block.end : after.start].strip()
            )
            answered.append((block, after if follows else None))
    return answered


def run(path: Path) -> Iterator[tuple[Block, str | None]]:
    """Run a page's blocks in one namespace, from the repository's root -> each block and its
    output.

    None for a block that draws, where matplotlib is missing.
    """
    page, namespace, before = path.read_text(encoding="utf-8"), {"__name__": "lesson"}, Path.cwd()
    os.chdir(ROOT)
    try:
        for block, _ in runs(page):
            if block.draws and importlib.util.find_spec("matplotlib") is None:
                yield block, None
                continue
            lines_before = (
                page.count("\n", 0, block.start) + 1
            )  # so that a traceback names the page's own line
            code, printed = (
                compile("\n" * lines_before + block.text, str(path), "exec"),
                io.StringIO(),
            )
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
            yield block, printed.getvalue()
    finally:
        os.chdir(before)


def filled(page: str, printed: list[str | None]) -> str:
    """The page with the output of every block in a text block behind it; blocks that were not run stay as they are."""
    for (block, answer), text in reversed(list(zip(runs(page), printed, strict=True))):
        if text is not None:
            said = f"\n\n```text\n{text}```" if text else ""
            page = page[: block.end] + said + page[answer.end if answer else block.end :]
    return page


def printed_by(path: Path) -> list[str | None]:
    """The printed text of every block of a page that is run."""
    return [text for _, text in run(path)]


def files() -> dict[Path, str]:
    """Every lesson in every language, with its printed text made anew. Runs all lessons, which takes minutes."""
    found, folder = {}, drawing.FOLDER
    with tempfile.TemporaryDirectory() as scratch:
        drawing.FOLDER = Path(scratch)
        for number, path in pages("en").items():
            printed = printed_by(path)
            its = [
                of_language[number]
                for of_language in map(pages, LANGUAGES)
                if number in of_language
            ]
            found |= {page: filled(page.read_text(encoding="utf-8"), printed) for page in its}
    drawing.FOLDER = folder
    return found


def draw() -> None:
    """Draw the figures of all lessons again, into docs/lessons/figures."""
    folder, drawing.FOLDER = drawing.FOLDER, LESSONS / "figures"
    for path in pages("en").values():
        printed_by(path)
    drawing.FOLDER = folder


def show(path: Path) -> list[str | None]:
    """Run a page, print its headings and the output of its blocks; returns that output."""
    page, printed, at = path.read_text(encoding="utf-8"), [], 0
    print(path.relative_to(ROOT))
    for block, text in run(path):
        for heading in re.findall(r"^#+ .*$", FENCE.sub("", page[at : block.start]), re.MULTILINE):
            print(f"\n{heading}\n")
        at = block.end
        print(
            "a block that draws is skipped: pip install matplotlib\n" if text is None else text,
            end="",
            flush=True,
        )
        printed.append(text)
    print()
    return printed


def main() -> None:
    p = console.Parser(__doc__)
    p.add_argument("lessons", nargs="*", type=int, metavar="N", help="which lessons (default: all)")
    p.add_argument("--lang", choices=list(LANGUAGES), default="en", help="language of the page")
    p.add_argument(
        "--figures", action="store_true", help="write the figures into docs/lessons/figures"
    )
    p.add_argument(
        "--fill", action="store_true", help="write the output into the page of every language"
    )
    args = p.parse_args()
    there = pages(args.lang)
    for number in args.lessons:
        if number not in there:
            raise Error(f"there is no lesson {number}: there are {', '.join(map(str, there))}")
    with tempfile.TemporaryDirectory() as scratch:
        drawing.FOLDER = LESSONS / "figures" if args.figures else Path(scratch)
        for number in args.lessons or there:
            printed = show(there[number])
            for language in LANGUAGES if args.fill else ():
                if path := pages(language).get(number):
                    write_text(path, filled(path.read_text(encoding="utf-8"), printed))


if __name__ == "__main__":
    raise SystemExit(console.run("lessons.py", main))
