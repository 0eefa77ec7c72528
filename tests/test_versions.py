"""The table of versions: what a run records, and the versions that the requirements promise."""

import json
import platform
import re
from pathlib import Path

import pytest
import torch

from docs.tools import versions
from minipeft.files.atomic import write_text

ROOT = Path(__file__).parent.parent

TESTS = """
import pytest
def test_passes(): pass
def test_passes_too(): pass
def test_fails(): assert False
@pytest.fixture
def broken(): raise ValueError
def test_is_not_set_up(broken): pass
def test_is_skipped(): pytest.skip("2 passed")
"""


def test_a_run_appends_its_counts_and_versions(tmp_path, monkeypatch, capsys):
    write_text(tmp_path / "test_few.py", TESTS)
    write_text(tmp_path / "requirements-extra.txt", "# some\n-r other.txt\npytest>=1  # here\nno-such-thing[x]>=2\n")
    write_text(tmp_path / "versions.jsonl", "an earlier line\n")
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(versions, "LINES", tmp_path / "versions.jsonl")
    with pytest.raises(SystemExit) as end:
        versions.main(["--run"])
    earlier, line = (tmp_path / "versions.jsonl").read_text(encoding="utf-8").splitlines()
    made = json.loads(line)
    assert end.value.code == 1 and earlier == "an earlier line"
    assert [made[k] for k in ("passed", "failed", "skipped")] == [2, 2, 1]
    assert made["extras"] == {"pytest": pytest.__version__, "no-such-thing": None}
    write_text(tmp_path / "versions.jsonl", f"{line}\n")
    capsys.readouterr()
    versions.main([])
    assert capsys.readouterr().out.splitlines() == [
        f"| `python` | extras | `torch {torch.__version__}` |", "| --- | --- | ---: |",
        f"| {platform.python_version()} | 1 of 2 | 2 / 2 / 1 |"]


def test_the_table_has_a_line_for_each_python_and_extras_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "LINES", tmp_path / "versions.jsonl")
    some, every = {"peft": None, "jinja2": "3"}, {"peft": "1", "jinja2": "3"}  # torch brings jinja2
    runs = [("3.11.7", "2.9.0", every, 3), ("3.9.2", "2.11.0", some, 2000), ("3.11.7", "2.9.0", every, 4)]
    lines = [{"passed": passed, "failed": 0, "skipped": 1, "card": {"python": python, "torch": version},
              "extras": extras} for python, version, extras, passed in runs]
    write_text(tmp_path / "versions.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    assert versions.table().splitlines()[2:] == [
        "| 3.9.2 | none | not run | 2,000 / 0 / 1 |", "| 3.11.7 | all | 4 / 0 / 1 | not run |"]


@pytest.mark.slow  # the default tests, which the lines record, come before their line
def test_both_ends_of_the_range_and_the_required_version_were_run_with_the_extras():
    project, pins = ((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "requirements.txt"))
    least, below = re.search(r'"torch>=2\.(\d+),<2\.(\d+)"', project).groups()
    required = re.search(r"^torch==(\S+)", pins, re.MULTILINE)[1]
    found = versions.results()
    run = {version.partition("+")[0] for _, extras, version in found if extras == "all"}
    assert required in run
    assert {f"2.{least}", f"2.{int(below) - 1}"} <= {version.rpartition(".")[0] for version in run}
    assert [key for key, line in found.items() if line["failed"]] == []
