"""Words of generated tables in Chinese, for the Chinese pages."""

import re

WORDS: dict[str, str] = {}  # a whole cell of a table -> its translation


def translated(block: str) -> str:
    """The block with every cell of a table that WORDS names translated."""

    def line(text: str) -> str:
        if not text.startswith("|"):
            return text
        return re.sub(r"(?<=\| )[^|]+?(?= \|)", lambda m: WORDS.get(m[0], m[0]), text)

    return "\n".join(map(line, block.split("\n")))
