"""Excerpts of the code for the pages: whole lines of a file, from one that holds a text to one that holds another."""

import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent


class Excerpt(NamedTuple):
    file: str  # inside the package
    first: str  # a text of the first line
    last: str  # a text of the last line


EXCERPTS = {
    "code-prompt": Excerpt("model.py", "if prompt is not None:", "torch.cat([prompt"),
    "code-prefix": Excerpt("model.py", "self.qkv(x", "prefix_attention("),
    "code-textbook": Excerpt("attention.py", "keys = torch.cat", "scores = q"),
    "code-merge": Excerpt("fused.py", "lse = torch.logaddexp", "m_prefix - lse")}


def excerpt(name: str) -> str:
    """The excerpt as a fenced block, without the indentation it has in the file."""
    file, first, last = EXCERPTS[name]
    lines = (ROOT / "minipeft" / file).read_text(encoding="utf-8").splitlines()
    starts = [i for i, line in enumerate(lines) if first in line]
    assert len(starts) == 1, f"{file} has {len(starts)} lines with {first!r}"
    end = next(i for i in range(starts[0], len(lines)) if last in lines[i])
    return "```python\n" + textwrap.dedent("\n".join(lines[starts[0] : end + 1])) + "\n```"
