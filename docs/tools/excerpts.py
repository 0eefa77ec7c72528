"""Excerpts of the code for the pages: whole lines, from one that holds a text to one that holds another."""

import ast
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent


class Excerpt(NamedTuple):
    file: str  # inside the package
    function: str  # "GPT.hidden"
    first: str  # a text of the first line
    last: str  # a text of the last line


EXCERPTS = {
    "code-prompt": Excerpt("model.py", "GPT.hidden", "x = self.wte(idx)", "torch.cat([prompt"),
    "code-prefix": Excerpt("model.py", "CausalSelfAttention.forward", "self.qkv(x", "prefix_attention("),
    "code-textbook": Excerpt("attention.py", "_reference", "keys = torch.cat", "scores = q"),
    "code-merge": Excerpt("fused.py", "halves", "if gate is None:", "m_prefix - lse"),
}


def source(path: Path, function: str) -> list[str]:
    """The lines of a function or a method ("GPT.hidden")."""
    text = path.read_text(encoding="utf-8")
    node = ast.parse(text)
    for part in function.split("."):
        node = next(n for n in node.body if getattr(n, "name", None) == part)
    return text.splitlines()[node.lineno - 1 : node.end_lineno]


def excerpt(name: str) -> str:
    """The excerpt as a fenced block, without the indentation it has in the file."""
    e = EXCERPTS[name]
    lines = source(ROOT / "minipeft" / e.file, e.function)
    start = next(i for i, line in enumerate(lines) if e.first in line)
    end = next(i for i, line in enumerate(lines) if i >= start and e.last in line)
    return "```python\n" + textwrap.dedent("\n".join(lines[start : end + 1])) + "\n```"
