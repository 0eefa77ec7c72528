#!/usr/bin/env python3
"""Fill the marked places of README.md and of the pages in docs/: tables from result files, excerpts
from the code.

python docs/tools/tables.py          (python docs/tools/refresh.py does this and everything else that is generated)

A place is what stands between `<!-- name -->` and `<!-- /name -->`, with a name of BLOCKS. On the
Chinese pages, chinese.py translates the words around the numbers.
"""

import re
import sys
import typing
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from docs.tools import (
    advice,
    attention_tables,
    chinese,
    claims,
    compatibility,
    cost_tables,
    document_tables,
    excerpts,
    fault_tables,
    peers_tables,
    processes,
    quantised_tables,
    run_tables,
    serving_tables,
    study_tables,
    tree,
    versions,
)
from docs.tools.markdown import name, table
from minipeft import METHODS
from minipeft.files.atomic import write_text


def hyperparameters() -> str:
    """Every argument of adapt(), as the methods declare it."""
    rows = []
    for key, method in METHODS.items():
        hints, its = typing.get_type_hints(method.__init__), []
        for argument, p in method.arguments().items():
            spec = method.hyperparameters[argument]
            help_, _, follows = spec.help.removesuffix(")").partition(" (default: ")
            default = "required" if p.default is p.empty else follows or f"`{p.default!r}`".replace("'", '"')
            its.append([f"`{argument}`", spec.symbol or "-", kinds(hints[argument]), default, help_])
        names = [[name(key), f"`{key}`"]] + [["", ""]] * len(its)
        rows += [first + row for first, row in zip(names, its or [["-"] * 5], strict=False)]
    head = ["method", "name in code", "hyper-parameter", "symbol", "type", "default", "meaning"]
    return table(head, rows, left=len(head))


def kinds(hint) -> str:
    """A type as a reader would say it: its options, or the names of its classes."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f'`"{option}"`' for option in typing.get_args(hint))
    classes = [typing.get_origin(x) or x for x in typing.get_args(hint) or [hint]]
    return ", ".join(f"`{x.__name__}`" for x in classes if x not in (type(None), tuple))


TABLES_OF = (advice, attention_tables, compatibility, cost_tables, document_tables, fault_tables, peers_tables,
             quantised_tables, run_tables, serving_tables, study_tables, versions)
BLOCKS: dict[str, Callable[[], str]] = {
    "claims": claims.table, "tree": tree.tree, "hyperparameters": hyperparameters,
    **{block: made for module in TABLES_OF for block, made in module.BLOCKS.items()},
    "traffic-gpt2": lambda: processes.table("gpt2"),
    "traffic-llama-3.2-1b": lambda: processes.table("llama-3.2-1b"),
    **{block: lambda block=block: excerpts.excerpt(block) for block in excerpts.EXCERPTS}}
PLACE = re.compile(r"(<!-- ([\w.+-]+) -->\n)(.*?)(<!-- /\2 -->)", re.DOTALL)


def pages() -> list[Path]:
    """README and the pages of docs/, in both languages."""
    found = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
    return (
        found + sorted((ROOT / "docs").glob("*.md"))
        + sorted((ROOT / "docs" / "zh-CN").glob("*.md")))


def is_chinese(page: Path) -> bool:
    return "zh-CN" in page.as_posix().removeprefix(ROOT.as_posix())


def filled(page: Path) -> str:
    """The page's text with every place made anew; a place that BLOCKS does not name stays as it is."""

    def made(m: re.Match) -> str:
        if m[2] not in BLOCKS:
            return m[0]
        text = BLOCKS[m[2]]()
        if is_chinese(page):
            text = chinese.translated(text)
        return f"{m[1]}{text}\n{m[4]}"

    return PLACE.sub(made, page.read_text(encoding="utf-8"))


def files() -> dict[Path, str]:
    """Every page that this tool fills, and its text."""
    return {
        page: filled(page) for page in pages() if PLACE.search(page.read_text(encoding="utf-8"))
    }


if __name__ == "__main__":
    for path, text in files().items():
        write_text(path, text)
