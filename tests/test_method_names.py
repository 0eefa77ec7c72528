"""No module outside methods/ knows a method by name, so that a new one is one file and one line."""

import ast
from pathlib import Path

import pytest

from minipeft import METHODS

ROOT = Path(__file__).parents[1]
EVERY = set(METHODS)
ALLOWED = {  # file: which names, and why
    "train.py": ({"prefix"}, "the default of --method"),
    "minipeft/bench/quality/studies.py": (EVERY, "studies of these methods, at sizes and learning rates of theirs"),
    "minipeft/bench/quality/real.py": (EVERY, "a study of these methods, on a real model"),
    "docs/tools/published_numbers.py": (EVERY, "what papers say of the methods they name"),
    "docs/tools/claims.py": (EVERY, "what the article says of the methods it names"),
    "docs/tools/comparison/trends.py": (EVERY, "what papers say of the methods they name"),
    "docs/tools/comparison/facts.py": (EVERY, "the story of a page, told of some methods"),
    "docs/tools/advice.py": (EVERY, "the story of a page, told of some methods"),
    "docs/tools/markdown.py": (EVERY, "their names in tables"),
    "docs/tools/cost_tables.py": (EVERY, "the story of a page, told of some methods"),
    "docs/tools/study_tables.py": (EVERY, "the story of a page, told of some methods"),
    "docs/tools/run_tables.py": ({"full"}, "whose answers are shown first"),
    "docs/tools/serving_tables.py": ({"prefix", "lora"}, "what was served"),
    "docs/tools/hero.py": (EVERY, "a drawing of some methods, each at its place"),
    "docs/tools/e2e.py": (EVERY, "a published run of some methods"),
    "docs/tools/quantised.py": (EVERY, "a published run of some methods"),
    "minipeft/bench/quantised.py": ({"prefix"}, "the default of --method"),
    "docs/tools/processes.py": (EVERY, "the rows of one page"),
    # the same word for something else
    "minipeft/checks.py": ({"prompt"}, "slot 1"),
    "docs/tools/writers.py": ({"lora"}, "a part of PEFT's names of parameters"),
    "minipeft/data/files.py": ({"prompt"}, "the name of a column"),
    "docs/tools/ledger_terms.py": ({"full", "adapter"}, "symbols in formulas"),
}
SOURCES = [path for place in ("minipeft", "docs/tools", "train.py", "bench.py")
           for path in ([ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py")))
           if ROOT / "minipeft" / "methods" not in path.parents]


def names_in(source: str) -> list[tuple[int, str]]:
    """(line, text) of every string that is the name of a method; parts of an f-string and docstrings are none."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in METHODS:
            found.append((node.lineno, node.value))
        for child in ast.iter_child_nodes(node):
            if not (isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)):
                visit(child)

    visit(ast.parse(source))
    return found


def test_no_module_names_a_method():
    """Read what the method declares instead."""
    found = {path.relative_to(ROOT).as_posix(): names_in(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert [f"{file}:{line}: {name!r}" for file, names in found.items() for line, name in names
            if name not in ALLOWED.get(file, ((), ""))[0]] == []
    assert [file for file in ALLOWED if not found.get(file)] == [], "exceptions that nothing needs"
    assert len(found["train.py"]) == 1


@pytest.mark.parametrize("source, names", [
    ('x = "lora"', ["lora"]),
    ("if m == 'prefix': f(a, ['full', 1])", ["prefix", "full"]),
    ('{"hard-prompt": 1}["prompt"]', ["hard-prompt", "prompt"]),
    ('f"{m}{d[\'lora\']}lora"', ["lora"]),
    ('"""lora, as the page says"""\nlora = prefix(full=adapter)', []),
    ('print("lora tasks", "+lora")', []),
])
def test_names_are_found(source, names):
    assert [name for _, name in names_in(source)] == names
