"""Chinese for the generated parts of the Chinese pages, from the catalogue chinese.txt.

The catalogue holds pairs of lines, English above Chinese: a whole cell of a table, a whole list
item or a whole paragraph, with # for every number. Numbers thus come from the result files in both
languages. Text without a pair stays English; tests/test_readme.py lists it.
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

CATALOGUE = Path(__file__).with_name("chinese.txt")
NUMBER = re.compile(r"(?<![A-Za-z_\d])(?<![A-Za-z]-)(?:(?<![^ ])[+-])?\d+(?:,\d{3})*(?:\.\d+)*(?:e-?\d+)?")
CELL = re.compile(r"(?<=\| )(?:[^|\\]|\\.)+?(?= \|)")
OPENING, CLOSING = "（“《", "，。；：、！？）”》"
PIECE = re.compile(  # code, a link or a word, with the punctuation that belongs to it
    rf"[{OPENING}*]*(?:`[^`]*`|!?\[[^\]]*\]\([^)]*\)|[^\s`\[{OPENING}{CLOSING}]+|.)[{CLOSING}*]* ?"
)
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
    return "\n".join(wrapped(item(text, known) or text, mark) for mark, text in items(text))


def items(text: str) -> Iterator[tuple[str, str]]:
    """(mark, text on one line) of every item of a list; of a paragraph, one with no mark."""
    for part in re.split(r"\n(?= *- )", text):
        mark = re.match(r" *- |", part)[0]
        yield mark, " ".join(part.removeprefix(mark).split())


def item(text: str, known: dict[str, str]) -> str | None:
    name, _, rest = text.partition(": ")  # "soft prompt: its answer", in the list of answers
    return phrase(text, known) or (f"{known[name]}：{rest}" if name in known else None)


def untranslated(block: str) -> list[str]:
    """The cells, items and paragraphs that have words and no Chinese."""
    if block.startswith("```"):
        return []
    known, found = pairs(), []
    for text in block.split("\n\n"):
        if text.startswith("|"):
            found += [cell for cell in CELL.findall(text) if phrase(cell, known) is None]
        else:
            found += [text for _, text in items(text) if item(text, known) is None]
    return [text for text in found if re.search("[A-Za-z]{3}", re.sub("`[^`]*`", "", text))]


def wrapped(text: str, mark: str = "") -> str:
    """Lines of at most WIDTH columns, broken where a space does no harm: after full-width
    punctuation, or at a space."""
    lines, line = [], mark
    for piece in PIECE.findall(text):
        full = width(line + piece.rstrip()) > WIDTH
        harmless = line.endswith((" ", *CLOSING)) or piece[0] in OPENING
        if full and harmless and not re.match(r"[-+#>]|\d+[.)] ", piece):
            lines.append(line.rstrip())
            line = " " * len(mark)
        line += piece
    return "\n".join([*lines, line.rstrip()])


def width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "FW" else 1 for char in text)
