"""The README says what is: its tables come from result files, its excerpts are the code, its file tree is the tree."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minipeft.data.jsonl import read_jsonl

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_table_is_what_its_result_file_says():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.filled(README) == README, "run: python docs/tables.py"


def test_the_default_run_reaches_what_it_should():
    """`python train.py`: a select task from at most 0.25 to at least 0.90 in at most 3 minutes."""
    result = json.loads((ROOT / "docs" / "results" / "train-prefix-reverse.json").read_text())
    before, after = result["exact_match"]
    assert result["command"] == "python train.py --method prefix --task reverse" and result["seconds"] < 180
    assert before <= 0.25 and after >= 0.90


def test_the_conversion_of_e2e_makes_what_train_reads(tmp_path):
    rows = "".join(f'"name[A{i}], area[riverside]","There is a place, ""A{i}"", by the river – £{i}."\n' for i in range(30))
    (tmp_path / "devset.csv").write_text("mr,ref\n" + rows, encoding="utf-8")
    command = next(line for line in README.splitlines() if line.startswith('python -c "import csv'))
    subprocess.run(["bash", "-c", command.replace("python", sys.executable, 1)], cwd=tmp_path, check=True)
    examples = read_jsonl(tmp_path / "pairs.jsonl")
    assert len(examples) == 3 and examples[1] == ("name[A12], area[riverside]", 'There is a place, "A12", by the river – £12.')


@pytest.mark.parametrize("place", ["model.py", "attention.py", "fused.py"])
def test_the_excerpts_are_the_code(place):
    code = (ROOT / "minipeft" / place).read_text(encoding="utf-8")
    excerpts = [e for e in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "# (B, " in e or "(B, nh" in e or "# (N, " in e]
    assert len(excerpts) == 4 and sum(e in code for e in excerpts) == {"model.py": 2, "attention.py": 1, "fused.py": 1}[place]


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
        code = {p for p in listed.stdout.split() if p.startswith("minipeft/") and not p.endswith("__init__.py")}
        assert code <= named, code - named
