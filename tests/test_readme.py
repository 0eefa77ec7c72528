"""The README says what is: its tables come from result files, its excerpts are the code, its file tree is the tree."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
from two_languages import assert_in_step

from minipeft.data.tasks import NOVEL, SKILLS

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
README = ENGLISH.read_text(encoding="utf-8")


def test_every_table_is_what_its_result_file_says():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for name, blocks in tables.PAGES.items():
        page = (ROOT / name).read_text(encoding="utf-8")
        assert tables.filled(page, blocks) == page, "run: python docs/tables.py"


def test_the_chinese_page_is_in_step():
    """What docs/tables.py does not fill there has the same numbers, written by hand."""
    places = [re.findall(r"<!-- .* -->", page.read_text(encoding="utf-8")) for page in (ENGLISH, CHINESE)]
    assert places[0] == places[1]
    assert_in_step(ENGLISH, CHINESE)


def test_the_default_run_reaches_what_it_should():
    """`python train.py`: a select task from at most 0.25 to at least 0.90 in at most 3 minutes."""
    result = json.loads((ROOT / "docs" / "results" / "train-prefix-reverse.json").read_text())
    before, after = result["exact_match"]
    assert result["command"] == "python train.py --method prefix --task reverse" and result["seconds"] < 180
    assert before <= 0.25 and after >= 0.90


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=lambda page: page.name)
@pytest.mark.parametrize("place", ["model.py", "attention.py", "fused.py"])
def test_the_excerpts_are_the_code(place, page):
    code = (ROOT / "minipeft" / place).read_text(encoding="utf-8")
    fenced = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    excerpts = [e for e in fenced if "# (B, " in e or "(B, nh" in e or "# (N, " in e]
    assert len(excerpts) == 4 and sum(e in code for e in excerpts) == {"model.py": 2, "attention.py": 1, "fused.py": 1}[place]


def test_the_examples_of_tasks_are_what_the_tasks_make():
    examples = re.findall(r"`([a-z+-]+)`(?: \([^)]*\))?: (\d{8}) → (\d{8})", README)
    assert [name for name, *_ in examples] == ["reverse", "reverse+increment", "parity", "differences"]
    for name, given, wanted in examples:
        apply = {**{n: skill.apply for n, skill in SKILLS.items()}, **NOVEL}
        for part in name.split("+"):
            given = apply[part](given)
        assert given == wanted, name


def test_the_file_tree_is_the_tree():
    tree = re.search(r"<!-- tree -->\n```text\n(.*?)```", README, re.DOTALL)[1]
    named, folders = set(), []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders = folders[:depth] + [name.rstrip("/")]
        named.add("/".join(folders))
    for path in named:
        assert (ROOT / path).exists(), path
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "*.py"], capture_output=True, text=True)
    if listed.returncode == 0:
        code = {p for p in listed.stdout.split() if p.startswith(("minipeft/", "docs/")) and not p.endswith("__init__.py")}
        assert code <= named, code - named


def test_every_result_file_has_the_command_that_made_it():
    results = ROOT / "docs" / "results"
    named = re.findall(r"^\| `([\w+-]+)\.json` \|", (results / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    patterns = [re.sub("[A-Z]{2,}", "[^.]+", name) for name in named]
    files = [path.stem for path in results.glob("*.json")]
    assert [f for f in files if not any(re.fullmatch(p, f) for p in patterns)] == []
    assert [p for p in patterns if not any(re.fullmatch(p, f) for f in files)] == []
