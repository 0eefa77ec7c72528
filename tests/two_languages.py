"""Compare a page with its translation: blocks, links, numbers and code must be the same, in the same order."""

import ast
import re
import textwrap
from pathlib import Path

from docs.tools import lessons

ROOT = Path(__file__).parent.parent
CODE = re.compile(r"\w+\(.*\)|\S*·\S*|\b\d+\b")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def assert_in_step(path: Path, other: Path) -> None:
    ours, theirs = lessons.blocks(read(path)), lessons.blocks(read(other))
    assert [(b.language, b.note) for b in ours] == [(b.language, b.note) for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        ours, theirs = untranslated(a), untranslated(b)
        if b.language == "text" and is_chinese(theirs):  # a table drawn in text: its functions, formulas and numbers
            ours, theirs = (CODE.findall(text) for text in (ours, theirs))
        assert ours == theirs
    a, b = paragraphs(path), paragraphs(other)
    for ours, theirs in zip(a, b, strict=False):
        assert what_counts(ours, path) == what_counts(theirs, other), f"{ours}\n\n{theirs}"
    assert len(a) == len(b)


def untranslated(block: lessons.Block) -> str:
    """The parts of a fenced block that no translation changes: all but comments, and the sentences of a file tree."""
    if block.runs:
        return ast.dump(ast.parse(textwrap.dedent(block.text)))
    if block.language == "bash":
        return re.sub(r" *# .*", "", block.text)
    if "\nminipeft/\n" in block.text:
        return "\n".join(re.findall(r"^ *\S+", block.text, re.MULTILINE))
    return block.text


def is_chinese(text: str) -> bool:
    return bool(re.search("[\u4e00-\u9fff]", text))


def paragraphs(path: Path) -> list[str]:
    """The page without its fenced blocks, HTML tags and comments, a paragraph at a time."""
    prose = re.sub(r"(`[^`]*`)|</?\w[^>]*>|<!--.*?-->", r"\1", lessons.FENCE.sub("", read(path)))
    return [p for p in re.split(r"\n\s*\n", prose) if p.strip()]


def links(text: str, path: Path) -> list[tuple[str, str]]:
    """(! for a figure, target) of every link; a file as its path from the root, the same in both languages."""
    found = []
    for mark, _, target in LINK.findall(text):
        if "://" not in target:
            target, _, anchor = target.partition("#")
            file = (path.parent / target).resolve() if target else path
            assert file.exists(), f"{path}: no {target}"
            assert not anchor, (
                f"{path}: headings differ between the languages, so link to the page: #{anchor}"
            )
            target = str(file.relative_to(ROOT)).replace("/zh-CN/", "/").replace(".zh-CN.md", ".md")
        found.append((mark, target))
    return found


def what_counts(paragraph: str, path: Path) -> dict:
    """The parts of a paragraph that every language has."""
    text = LINK.sub(r"\2", paragraph)
    return {
        "heading": [len(marks) for marks in re.findall(r"^(#+) ", paragraph, re.MULTILINE)],
        "items": len(re.findall(r"^\s*(?:[-*]|\d+\.) ", paragraph, re.MULTILINE)),
        "rows": [cells(row) for row in text.splitlines() if row.startswith("|")],
        "numbers": numbers(text),
        "code": set(re.findall(r"`([^`]+)`", text)),
        "links": sorted(links(paragraph, path)),
    }


def cells(row: str) -> list[list[str]]:
    """The numbers of every cell of a table's row."""
    return [numbers(cell) for cell in re.split(r"(?<!\\)\|", row)]


def numbers(text: str) -> list[str]:
    return re.findall(
        r"(?<![A-Za-z_\d])(?<![A-Za-z]-)\d+(?:,\d{3})*(?:\.\d+)?", text
    )  # not that of GPT-2
