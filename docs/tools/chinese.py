"""Chinese for the generated parts of the Chinese pages, from the catalogue chinese.txt.

The catalogue holds pairs of lines, English above Chinese: a whole cell of a table, a whole list
item or a whole paragraph, with # for every number. Numbers thus come from the result files in both
languages. Text without a pair stays English; tests/test_readme.py lists it.
"""

import re
import textwrap
import unicodedata
from collections.abc import Iterator
from pathlib import Path

CATALOGUE = Path(__file__).with_name("chinese.txt")
NUMBER = re.compile(r"(?<![A-Za-z_\d])(?<![A-Za-z]-)\d+(?:,\d{3})*(?:\.\d+)*(?:e-?\d+)?")
CELL = re.compile(r"(?<=\| )[^|]+?(?= \|)")
WIDTH = 116  # of a line, in columns: a Chinese character takes two


def pairs() -> dict[str, str]:
    """English -> Chinese, with # for every number. Lines that start with == are headings."""
    lines = CATALOGUE.read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("==")]
    return dict(zip(lines[::2], lines[1::2], strict=True))


def phrase(text: str, known: dict[str, str]) -> str | None:
    """The Chinese of a cell, an item or a paragraph, with its numbers; None if there is none."""
    found = known.get(NUMBER.sub("#", text))
    if found is None:
        return None
    numbers = NUMBER.findall(text)
    assert found.count("#") == len(numbers), f"{found}: not as many # as in its English"
    parts = found.split("#")
    return "".join(part + number for part, number in zip(parts, [*numbers, ""], strict=True))


def translated(block: str) -> str:
    """A generated block for a Chinese page. Code and printed output stay as they are."""
    if block.startswith("```"):
        return block
    known = pairs()
    return "\n\n".join(paragraph(text, known) for text in block.split("\n\n"))


def paragraph(text: str, known: dict[str, str]) -> str:
    if text.startswith("|"):
        return CELL.sub(lambda cell: phrase(cell[0], known) or cell[0], text)
    return "\n".join(item(part, known) for part in items(text))


def items(text: str) -> Iterator[str]:
    """The items of a list, or the whole paragraph, each as one line."""
    for part in re.split(r"\n(?=\s*- )", text):
        indent = re.match(" *", part)[0]
        yield indent + " ".join(part.split())


def item(text: str, known: dict[str, str]) -> str:
    mark = re.match(r" *(?:- )?", text)[0]
    text = text.removeprefix(mark)
    found = phrase(text, known)
    if found is not None:
        return wrapped(found, mark)
    name, _, rest = text.partition(": ")  # "soft prompt: its answer", of a list of answers
    return mark + (f"{known[name]}：{rest}" if name in known else text)


def untranslated(block: str) -> list[str]:
    """The words of a block for which the catalogue has no Chinese."""
    if block.startswith("```"):
        return []
    code = r"`[^`]*`"
    words = re.sub(code, "", re.sub(r" {2}- (.*?)：.*", r"\1", translated(block)))
    lines = [cell for line in words.split("\n") for cell in line.split("|")]
    known = set(pairs().values())
    return [line.strip() for line in lines if is_english(line) and line.strip() not in known]


def is_english(text: str) -> bool:
    return bool(re.search("[a-z]{3}", text)) and not re.search("[\u4e00-\u9fff]", text)


def wrapped(text: str, mark: str = "") -> str:
    """Lines of at most WIDTH columns, broken where a space does no harm: after full-width
    punctuation, or at a space."""
    whole = r"`[^`]*`|!?\[[^\]]*\]\([^)]*\)|[^\s，。；：、！？）”》`\[]+|."
    unit = rf"(?:{whole})[，。；：、！？）”》*]*"
    lines, line = [], mark
    for piece in re.findall(rf"{unit} ?", text):
        if width(line + piece.rstrip()) > WIDTH and not re.match(r"[-+#>\d]", piece):
            lines.append(line.rstrip())
            line = " " * len(mark)
        line += piece
    return "\n".join([*lines, line.rstrip()])


def width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "FW" else 1 for char in text)
