"""The lessons are true: every block runs and prints what the page says, excerpts are code, languages are in step."""

import ast
import re
import sys
from pathlib import Path

import pytest
from two_languages import ROOT, assert_in_step, lessons, links, read

from docs.tools import drawing
from minipeft import Error
from minipeft.runtime import console

FOLDERS = lessons.LANGUAGES
PAGES = [path for language in FOLDERS for path in lessons.pages(language).values()]
INDEXES = [folder / "README.md" for folder in FOLDERS.values()]


def name(path: Path) -> str:
    return str(path.relative_to(lessons.LESSONS))


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_block_runs_and_prints_what_the_page_says(path, tmp_path, monkeypatch):
    page = read(path)
    monkeypatch.setattr(drawing, "FOLDER", tmp_path)
    printed = [text for _, text in lessons.run(path)]
    assert lessons.filled(page, printed) == page, (
        f"run: python docs/tools/lessons.py {path.name[0]} --fill"
    )
    pytest.importorskip("matplotlib")
    wanted = {Path(target).name for mark, target in links(page, path) if mark}
    assert {file.name for file in tmp_path.iterdir()} == wanted, (
        "the page shows what its blocks draw, and all of it"
    )
    for file in tmp_path.iterdir():
        assert drawn(file) > 20, f"{file.name} is as good as blank"
        assert drawn(file) == pytest.approx(drawn(drawing_of(file.name)), rel=0.2), (
            f"run: python docs/tools/lessons.py {path.name[0]} --figures"
        )


def drawing_of(figure: str) -> Path:
    return lessons.LESSONS / "figures" / figure


def drawn(figure: Path) -> int:
    """How many shapes an SVG file draws."""
    return len(re.findall("<(?:path|use|image)", read(figure)))


SMALL = """# A page

```python
x = 2
print(x)
```

```python
from docs.tools.drawing import figure
```

```python
print(x + 1)
```

```text
4
```
"""


def test_what_is_printed_is_filled_in_and_without_matplotlib_no_block_draws(tmp_path, monkeypatch):
    path = tmp_path / "9-small.md"
    path.write_text(SMALL, encoding="utf-8")
    monkeypatch.setattr(lessons.importlib.util, "find_spec", lambda name: None)
    printed = [text for _, text in lessons.run(path)]
    assert printed == ["2\n", None, "3\n"]
    assert lessons.filled(SMALL, printed) == SMALL.replace("4", "3").replace(
        "print(x)\n```\n", "print(x)\n```\n\n```text\n2\n```\n"
    )
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Error, match="pip install matplotlib"):
        drawing.figure()


def test_a_lesson_that_is_not_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lessons.py", "99"])
    assert console.run("lessons.py", lessons.main) == 2
    assert capsys.readouterr().err.startswith("lessons.py: there is no lesson 99: there are 0, 1, 2")


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_excerpts_are_the_code(path):
    page = read(path)
    for block in lessons.blocks(page):
        if block.language == "python" and block.note:
            file, _, function = block.note.partition(" ")
            before = page[: block.start].rstrip().rsplit("\n\n", 1)[-1]
            assert file in before and function in before, (
                f"the paragraph before the excerpt names {block.note}, for whoever reads the page"
            )
            assert block.text in source(ROOT / file, function), block.note


def source(file: Path, function: str) -> str:
    """The lines of a function or a method ("GPT.hidden"); the whole file where none is named."""
    text = read(file)
    node = ast.parse(text)
    for part in function.split(".") if function else []:
        node = next(n for n in node.body if getattr(n, "name", None) == part)
    return (
        "".join(text.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno])
        if function
        else text
    )


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_exercises_and_three_questions_with_their_answers_end_a_lesson(path):
    *_, exercises, end = re.split("^## ", read(path), flags=re.MULTILINE)
    folder = ROOT / "docs" / "exercises" / path.name[0]
    if folder.exists():
        stubs = {f for f in folder.glob("*.py") if not f.name.startswith("test_")}
        named = re.findall(r"\[\w+\.py\]\((\S+)\)", exercises)
        assert {(path.parent / target).resolve() for target in named} == stubs
    answers = re.findall(
        r"<details>\n<summary>(.+?)</summary>\n\n(.+?)\n\n</details>", end, re.DOTALL
    )
    assert len(answers) == end.count("<details>") == 3 and all(
        len(question) > 10 and len(answer) > 20 for question, answer in answers
    )


def test_both_languages_have_the_same_lessons_and_no_figure_is_left_over():
    english, chinese = (
        sorted(p.name for p in lessons.pages(language).values()) for language in FOLDERS
    )
    numbers = [p[0] for p in english]
    assert english == chinese and len(set(numbers)) == len(numbers) > 6
    shown = {
        Path(target).name for path in PAGES for mark, target in links(read(path), path) if mark
    }
    assert shown == {file.name for file in (lessons.LESSONS / "figures").glob("*.svg")}
    for index in INDEXES:
        assert [n for n in english if f"({n})" in read(index)] == english


@pytest.mark.parametrize("path", [*lessons.pages("en").values(), INDEXES[0], lessons.LESSONS / "teaching.md"],
                         ids=name)
def test_the_two_languages_are_in_step(path):
    assert_in_step(path, FOLDERS["zh-CN"] / path.name)
