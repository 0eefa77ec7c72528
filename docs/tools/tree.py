"""The tree of docs/files.md: every file of the package with the first sentence of its docstring."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# The core, in the order in which to read it, then what serves it; what is not named follows by name.
ORDER = ["config", "attention", "fused", "slots", "parts", "block", "quantised", "model", "loss", "ladder"]
ORDER += ["methods", "attach", "checks", "adapters", "accounting", "files", "data", "inference", "documents"]
ORDER += ["training", "runtime", "bench"]
WIDTH = 120


def sentence(path: Path) -> str:
    """The first sentence of a file's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = re.split(r"(?<=[a-z)])(?<! al)\. |\.$", " ".join(text.split("\n\n")[0].split()))[0]
    return first.rstrip(".:;")


def rank(path: Path) -> tuple:
    name = path.stem
    place = ORDER.index(name) if name in ORDER else len(ORDER)
    return place, path.is_dir(), name not in ("base", "__main__"), name


def branch(folder: Path, depth: int) -> list[str]:
    lines = []
    for path in sorted(folder.iterdir(), key=rank):
        if path.is_dir() and (path / "__init__.py").exists():
            about = sentence(path / "__init__.py")
            lines += [entry(f"{path.name}/", about, depth), *branch(path, depth + 1)]
        elif path.suffix == ".py" and path.name != "__init__.py":
            lines.append(entry(path.name, sentence(path), depth))
    return lines


def entry(name: str, about: str, depth: int) -> str:
    """A line of the tree; a sentence that does not fit is cut at its last colon, semicolon or comma that does."""
    start = f"{'  ' * depth + name:<28} "
    room = WIDTH - len(start)
    if len(about) > room:
        marks = [m.start() for m in re.finditer("[:;,]", about) if m.start() <= room]
        marks = [
            i for i in marks
            if about[:i].count("(") == about[:i].count(")") and about[:i].count('"') % 2 == 0]
        about = about[: marks[-1]] if marks else about[: room - 2].rsplit(" ", 1)[0] + " …"
    return (start + about).rstrip()


def tree() -> str:
    lines = [entry(name, sentence(ROOT / name), 0) for name in ("train.py", "bench.py")]
    lines += ["minipeft/", *branch(ROOT / "minipeft", 1)]
    lines += ["docs/tools/", *branch(ROOT / "docs" / "tools", 1)]
    lines += ["tests/faults/", *branch(ROOT / "tests" / "faults", 1)]
    return "```text\n" + "\n".join(lines) + "\n```"
