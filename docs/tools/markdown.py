"""Pieces that the generated parts of the pages share: tables, paragraphs, cells, and the names of methods."""

import re
import textwrap
from collections.abc import Iterable

NAMES = {
    "full": "full fine-tuning", "prompt": "soft prompt", "lora": "LoRA",
    "adapter": "bottleneck adapter"}
NAMES |= {"hard-prompt": "hard prompt", "llama-adapter": "LLaMA-Adapter"}
NAMES |= {"bitfit": "BitFit", "ia3": "(IA)³", "prefix-memory": "prefix memory"}


def name(method: str) -> str:
    return NAMES.get(method, method)


def table(head: Iterable[str], rows: Iterable[Iterable], left: int = 1) -> str:
    """A Markdown table; the first `left` columns stand left, the others right."""
    head = list(head)
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def paragraph(*sentences: str) -> str:
    """Sentences as one paragraph, wrapped, but not within `code`."""
    text = re.sub(r"`[^`]+`", lambda m: m[0].replace(" ", "\0"), " ".join(sentences))
    return textwrap.fill(text, 116, break_long_words=False, break_on_hyphens=False).replace(
        "\0", " "
    )


def points_list(*items: str) -> str:
    """Items as a list, wrapped."""
    wrap = textwrap.TextWrapper(
        116, initial_indent="- ", subsequent_indent="  ", break_long_words=False,
        break_on_hyphens=False)
    return "\n".join(map(wrap.fill, items))


def fenced(text: str) -> str:
    return f"```text\n{text}\n```"


def ratio(x: float | None) -> str:
    return "-" if x is None else f"{x:.2f}"


def spread(times: dict, digits: int = 1) -> str:
    return f"{times['median']:,.{digits}f} ({times['p10']:,.{digits}f}–{times['p90']:,.{digits}f})"
