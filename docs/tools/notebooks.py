#!/usr/bin/env python3
"""Write the lessons as Jupyter notebooks, executed, into docs/lessons/notebooks.

python docs/tools/notebooks.py 2                 lesson 2 in both languages; with no number all of them
python docs/tools/notebooks.py 2 --lang en       in one language
python docs/tools/notebooks.py --check           list notebooks that differ from their pages; exit code 1 if any

Needs: pip install nbclient ipykernel (--check does not). Text of a page becomes Markdown cells, a block that is
run a code cell, and a block that draws shows its figure. Outputs come from the run: progress bars are dropped.
"""

import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from docs.tools import lessons
from minipeft.config import Error
from minipeft.files.atomic import write_text
from minipeft.runtime import console

FOLDERS = {"en": lessons.LESSONS / "notebooks", "zh-CN": lessons.LESSONS / "notebooks" / "zh-CN"}
NEEDED = ("torch", "numpy", "tqdm", "matplotlib", "scipy")  # by the package and the lessons
SETUP = f'''# Run this cell first. In a checkout it finds the repository; elsewhere write its git address here.
ADDRESS = ""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

root = next((p for p in (Path.cwd(), *Path.cwd().parents) if (p / "minipeft" / "model.py").exists()), None)
if root is None:
    assert ADDRESS, "this is no checkout of the repository: set ADDRESS above"
    subprocess.run(["git", "clone", "--depth", "1", ADDRESS, "minipeft-course"], check=True)
    root = Path("minipeft-course").resolve()
missing = [name for name in {NEEDED!r} if importlib.util.find_spec(name) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
os.chdir(root)
sys.path.insert(0, str(root))

from docs.tools import drawing

drawing.FOLDER = Path(tempfile.mkdtemp())  # figures are shown here, those of the lesson stay as they are'''
LINK = re.compile(r"\]\(([^)\s]+)\)")
FIGURE = re.compile(r"^!\[([^\]]*)\]\((\S+)\)\n?", re.MULTILINE)


def notebook_of(page: Path, language: str) -> Path:
    return FOLDERS[language] / f"{page.stem}.ipynb"


def moved(text: str, page: Path, language: str) -> str:
    """Markdown of a page with its links as seen from the notebook; other lessons are linked as notebooks."""
    def target(m: re.Match) -> str:
        path = m[1]
        if "://" in path or path.startswith("#"):
            return m[0]
        file = (page.parent / path).resolve()
        if file.parent == page.parent.resolve() and re.match(r"\d-", file.name):
            return f"]({file.stem}.ipynb)"
        return f"]({Path(os.path.relpath(file, FOLDERS[language])).as_posix()})"

    return LINK.sub(target, text)


def cells(page: Path, language: str) -> list[tuple[str, str]]:
    """(kind, source) of every cell: "markdown" or "code"."""
    text, found, at = page.read_text(encoding="utf-8"), [("code", SETUP)], 0

    def prose(stop: int) -> None:
        # a figure is the output of the cell above, its description a caption
        captioned = FIGURE.sub(lambda m: f"*{m[1]}*\n", text[at:stop])
        if captioned.strip():
            found.append(("markdown", moved(captioned.strip("\n"), page, language)))

    for block, output in lessons.runs(text):
        prose(block.start)
        source = block.text.rstrip("\n")
        if block.draws:
            figure = re.search(r'^save\(fig, "([^"]+)"\)$', source, re.MULTILINE)[1]
            source += f'\n\nfrom IPython.display import SVG\n\nSVG(drawing.FOLDER / "{figure}")'
        found.append(("code", source))
        at = output.end if output else block.end
    prose(len(text))
    return found


def notebook(page: Path, language: str) -> dict:
    """The notebook of a page as JSON, without outputs."""
    made = []
    for i, (kind, source) in enumerate(cells(page, language)):
        cell = {"cell_type": kind, "id": f"cell-{i}", "metadata": {}, "source": source}
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def executed(page: Path, language: str) -> dict:
    """The notebook after a run in a kernel of its own. Raises Error without nbclient or where a cell fails."""
    try:
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
    except ImportError:
        raise Error("running notebooks needs: pip install nbclient ipykernel") from None
    made = nbformat.from_dict(notebook(page, language))
    try:
        NotebookClient(made, timeout=600, coalesce_streams=True,  # one text a cell, however it arrives
                       resources={"metadata": {"path": str(lessons.LESSONS)}}).execute()
    except CellExecutionError as e:
        raise Error(f"{page.name}: a cell fails: {e.ename}: {e.evalue}") from None
    for cell in made.cells:
        cell.metadata = {}  # without times of the run
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return json.loads(nbformat.writes(made))


def in_step(page: Path, language: str) -> bool:
    """True if the notebook has the page's cells, and its cells print what the page says."""
    file = notebook_of(page, language)
    if not file.exists():
        return False
    found = json.loads(file.read_text(encoding="utf-8"))["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in found]
    if sources != cells(page, language):
        return False
    code = [cell for cell in found if cell["cell_type"] == "code"][1:]  # the first sets up
    for cell, (_, output) in zip(code, lessons.runs(page.read_text(encoding="utf-8")), strict=True):
        printed = "".join("".join(o["text"]) for o in cell["outputs"] if o.get("name") == "stdout")
        if printed != (output.text if output else ""):
            return False
    return True


def main() -> None:
    p = console.Parser(__doc__)
    p.add_argument("lessons", nargs="*", type=int, metavar="N", help="which lessons (default: all)")
    p.add_argument("--lang", choices=list(FOLDERS), help="language of the page (default: both)")
    p.add_argument("--check", action="store_true", help="write nothing; list what is not in step")
    args = p.parse_args()
    stale = False
    for language in [args.lang] if args.lang else FOLDERS:
        there = lessons.pages(language)
        for number in args.lessons or there:
            if number not in there:
                raise Error(f"there is no lesson {number}: there are {', '.join(map(str, there))}")
            page = there[number]
            file = notebook_of(page, language)
            if args.check:
                if not in_step(page, language):
                    stale = True
                    print(f"stale: {file.relative_to(ROOT)}")
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(executed(page, language), ensure_ascii=False, indent=1, sort_keys=True)
            write_text(file, text + "\n")
            print(f"written: {file.relative_to(ROOT)}", flush=True)
    if stale:
        sys.exit(1)


if __name__ == "__main__":
    raise SystemExit(console.run("notebooks.py", main))
