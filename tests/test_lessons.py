"""The lessons say what is: every block runs and prints what the page says, excerpts are the code, and the two languages are in step."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from minipeft import drawing

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("lessons", ROOT / "docs" / "lessons.py")
lessons = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lessons)

FOLDERS = lessons.LANGUAGES
PAGES = [path for language in FOLDERS for path in lessons.pages(language).values()]
INDEXES = [folder / "README.md" for folder in FOLDERS.values()]
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(lessons.LESSONS))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def paragraphs(path: Path) -> list[str]:
    """The page without its fenced blocks and HTML tags, a paragraph at a time."""
    prose = re.sub(r"(`[^`]*`)|</?\w[^>]*>", r"\1", lessons.FENCE.sub("", read(path)))
    return [p for p in re.split(r"\n\s*\n", prose) if p.strip()]


def links(text: str, path: Path) -> list[tuple[str, str]]:
    """(! for a figure, where it leads): a file as its path from the lessons' folder, whatever the language."""
    found = []
    for mark, target in LINK.findall(text):
        if "://" not in target:
            target, _, anchor = target.partition("#")
            file = (path.parent / target).resolve() if target else path
            assert file.exists(), f"{path}: no {target}"
            assert not anchor, f"{path}: headings differ between the languages, so link to the page: #{anchor}"
            target = str(file.relative_to(ROOT)).replace("docs/lessons/zh-CN/", "docs/lessons/")
        found.append((mark, target))
    return found


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_block_runs_and_prints_what_the_page_says(path, tmp_path, monkeypatch):
    page = read(path)
    monkeypatch.setattr(drawing, "FOLDER", tmp_path)
    printed = [text for _, text in lessons.run(path)]
    assert lessons.filled(page, printed) == page, f"run: python docs/lessons.py {path.name[0]} --fill"
    pytest.importorskip("matplotlib")
    wanted = {Path(target).name for mark, target in links(page, path) if mark}
    assert {file.name for file in tmp_path.iterdir()} == wanted, "the page shows what its blocks draw, and all of it"
    for file in tmp_path.iterdir():
        assert drawn(file) > 20, f"{file.name} is as good as blank"
        assert drawn(file) == pytest.approx(drawn(drawing_of(file.name)), rel=0.2), f"run: python docs/lessons.py {path.name[0]} --figures"


def drawing_of(figure: str) -> Path:
    return lessons.LESSONS / "figures" / figure


def drawn(figure: Path) -> int:
    """How many shapes an SVG file draws."""
    return len(re.findall("<(?:path|use|image)", read(figure)))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_excerpts_are_the_code(path):
    page = read(path)
    for block in lessons.blocks(page):
        if block.language == "python" and block.note:
            file, _, function = block.note.partition(" ")
            before = page[: block.start].rstrip().rsplit("\n\n", 1)[-1]
            assert file in before and function in before, f"the paragraph before the excerpt names {block.note}, for whoever reads the page"
            assert block.text in source(ROOT / file, function), block.note


def source(file: Path, function: str) -> str:
    """The lines of a function or a method ("GPT.hidden"); the whole file where none is named."""
    text = read(file)
    node = ast.parse(text)
    for part in function.split(".") if function else []:
        node = next(n for n in node.body if getattr(n, "name", None) == part)
    return "".join(text.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno]) if function else text


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_three_questions_with_their_answers_end_a_lesson(path):
    end = re.split(r"^## ", read(path), flags=re.MULTILINE)[-1]
    answers = re.findall(r"<details>\n<summary>(.+?)</summary>\n\n(.+?)\n\n</details>", end, re.DOTALL)
    assert len(answers) == end.count("<details>") == 3 and all(len(question) > 10 and len(answer) > 20 for question, answer in answers)


def test_both_languages_have_the_same_lessons_and_no_figure_is_left_over():
    english, chinese = (sorted(p.name for p in lessons.pages(language).values()) for language in FOLDERS)
    assert english == chinese and [int(p[0]) for p in english] == list(range(1, len(english) + 1))
    shown = {Path(target).name for path in PAGES for mark, target in links(read(path), path) if mark}
    assert shown == {file.name for file in (lessons.LESSONS / "figures").glob("*.svg")}
    for index in INDEXES:
        assert [n for n in english if f"({n})" in read(index)] == english


@pytest.mark.parametrize("path", [*lessons.pages("en").values(), INDEXES[0]], ids=name)
def test_the_two_languages_are_in_step(path):
    other = FOLDERS["zh-CN"] / path.name
    ours, theirs = lessons.blocks(read(path)), lessons.blocks(read(other))
    assert [(b.language, b.note) for b in ours] == [(b.language, b.note) for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        if a.runs:  # comments may be in either language
            assert ast.dump(ast.parse(a.text)) == ast.dump(ast.parse(b.text))
        else:
            assert a.text == b.text
    a, b = paragraphs(path), paragraphs(other)
    for ours, theirs in zip(a, b, strict=False):
        assert what_counts(ours, path) == what_counts(theirs, other), f"{ours}\n\n{theirs}"
    assert len(a) == len(b)


def what_counts(paragraph: str, path: Path) -> dict:
    """What a paragraph has in every language."""
    text = LINK.sub("", paragraph)
    return {
        "heading": [len(marks) for marks in re.findall(r"^(#+) ", paragraph, re.MULTILINE)],
        "items": len(re.findall(r"^\s*(?:[-*]|\d+\.) ", paragraph, re.MULTILINE)),
        "cells": len(re.findall(r"(?<!\\)\|", paragraph)) if paragraph.lstrip().startswith("|") else 0,
        "numbers": re.findall(r"(?<![A-Za-z_\d])(?<![A-Za-z]-)\d+(?:,\d{3})*(?:\.\d+)?", text),  # not that of GPT-2
        "code": set(re.findall(r"`([^`]+)`", text)),
        "links": sorted(links(paragraph, path)),
    }
