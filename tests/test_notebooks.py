"""Notebooks of the lessons: in step with their pages, links that lead somewhere, and a run without an error."""

import json
import sys
from pathlib import Path

import pytest
from two_languages import lessons

from docs.tools import notebooks
from minipeft import Error
from minipeft.runtime import console

ALL = [(language, path) for language in notebooks.FOLDERS for path in lessons.pages(language).values()]


def name(value) -> str:
    return value.stem if isinstance(value, Path) else value


@pytest.mark.parametrize("language, page", ALL, ids=name)
def test_a_notebook_is_in_step_with_its_page(language, page):
    assert notebooks.in_step(page, language), (
        f"run: python docs/tools/notebooks.py {page.name[0]} --lang {language}")


def test_no_notebook_is_left_over():
    there = {file for folder in notebooks.FOLDERS.values() for file in folder.glob("*.ipynb")}
    assert there == {notebooks.notebook_of(page, language) for language, page in ALL}


@pytest.mark.parametrize("language, page", ALL, ids=name)
def test_links_of_a_notebook_lead_somewhere(language, page):
    for kind, source in notebooks.cells(page, language):
        for target in notebooks.LINK.findall(source) if kind == "markdown" else ():
            if "://" not in target:
                assert (notebooks.FOLDERS[language] / target).exists(), target


def test_figures_and_outputs_are_from_a_run():
    """Every cell was run, in order, and every cell that draws has its figure."""
    for language, page in ALL:
        found = json.loads(notebooks.notebook_of(page, language).read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in found if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
        for cell in code:
            draws = "docs.tools.drawing" in "".join(cell["source"])
            assert draws == any("image/svg+xml" in o.get("data", {}) for o in cell["outputs"])


def test_a_changed_page_or_output_is_noticed(tmp_path, monkeypatch):
    page = tmp_path / "5-small.md"
    page.write_text("# A page\n\n```python\nprint(1 + 1)\n```\n\n```text\n2\n```\n", encoding="utf-8")
    monkeypatch.setattr(notebooks, "FOLDERS", {"en": tmp_path})
    made = notebooks.notebook(page, "en")
    assert [cell["cell_type"] for cell in made["cells"]] == ["code", "markdown", "code"]
    file = notebooks.notebook_of(page, "en")
    assert not notebooks.in_step(page, "en")
    made["cells"][2]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": "2\n"}]
    file.write_text(json.dumps(made), encoding="utf-8")
    assert notebooks.in_step(page, "en")
    made["cells"][2]["outputs"][0]["text"] = "3\n"
    file.write_text(json.dumps(made), encoding="utf-8")
    assert not notebooks.in_step(page, "en")
    made["cells"][2]["outputs"][0]["text"] = "2\n"
    made["cells"][1]["source"] = "# Another page"
    file.write_text(json.dumps(made), encoding="utf-8")
    assert not notebooks.in_step(page, "en")


def test_a_cell_that_fails_is_one_line(tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    page = tmp_path / "9-wrong.md"
    page.write_text("# A page\n\n```python\n1 / 0\n```\n", encoding="utf-8")
    with pytest.raises(Error, match="9-wrong.md: a cell fails: ZeroDivisionError: division by zero"):
        notebooks.executed(page, "en")


def test_a_lesson_that_is_not_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["notebooks.py", "99"])
    assert console.run("notebooks.py", notebooks.main) == 2
    assert capsys.readouterr().err.startswith("notebooks.py: there is no lesson 99: there are 0, 1, 2")


@pytest.mark.slow
@pytest.mark.parametrize("language, page", ALL, ids=name)
def test_a_notebook_runs_and_prints_what_its_page_says(language, page, tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    made = notebooks.executed(page, language)
    file = tmp_path / f"{page.stem}.ipynb"
    file.write_text(json.dumps(made), encoding="utf-8")
    monkeypatch.setattr(notebooks, "notebook_of", lambda *_: file)
    assert notebooks.in_step(page, language)
