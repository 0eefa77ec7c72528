"""Your own data: one {"input": …, "target": …} a line."""

import json
from pathlib import Path

from ..config import Error
from .tasks import Example


def read_jsonl(path) -> list[Example]:
    """The examples of a file, in its order; blank lines are passed over. Raises Error naming file and line."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise Error(f"no data at {path}: there is no such file") from None
    except UnicodeDecodeError as e:
        raise Error(f"{path} is not UTF-8 text (byte {e.start})") from None
    except OSError as e:
        raise Error(f"{path} cannot be read: {e.strerror}") from None
    examples = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise Error(f"{path} line {number} is not JSON: {getattr(e, 'msg', 'nested too deep')}") from None
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("input", "target")):
            raise Error(f'{path} line {number} must be {{"input": "…", "target": "…"}} with two strings')
        try:
            (row["input"] + row["target"]).encode("utf-8")
        except UnicodeEncodeError:
            raise Error(f"{path} line {number} holds half a surrogate pair, which is no character") from None
        if not row["target"]:
            raise Error(f"{path} line {number} has an empty target: there is nothing to learn from it")
        examples.append(Example(row["input"], row["target"]))
    if not examples:
        raise Error(f"{path} holds no examples")
    return examples
