"""Cells, and the file with one JSON line per cell that was run."""

import functools
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ...checks import Error, shown


@dataclass(frozen=True)
class Cell:
    """One run: everything needed to repeat it. Cells with the same JSON line are the same cell.

    base, task    a base of minipeft.data.BASES and a task of train.py; or one of quality.real.TASKS and its base
    size          the hyper-parameters passed to adapt()
    start         initial value of a prompt or prefix (None: the method's default). "random",
                  "vocab", {"text": …}, {"rung": "hard-prompt"} (the best wording), {"rung": "prompt",
                  "lr": …} (a soft prompt trained for half of the steps), or {"match": n} (rows matched to
                  the first n training examples as one text, without their bias, in the text's positions)
    lr            peak learning rate of the schedule; None: nothing is trained
    examples      number of training examples; None: new ones in every batch
    scored_on     "held-out", or "dev" (the validation set) for the runs that choose a learning rate
    """

    base: str
    task: str
    method: str
    size: dict[str, Any] = field(default_factory=dict)
    start: Any = None
    lr: float | None = None
    steps: int = 300
    batch_size: int = 16
    examples: int | None = None
    seed: int = 0
    scored_on: str = "held-out"

    @functools.cached_property
    def key(self) -> str:
        """The cell as one line of JSON."""
        return json.dumps({f.name: getattr(self, f.name) for f in fields(self)}, sort_keys=True)

    @classmethod
    def of(cls, line: dict) -> "Cell":
        """The cell of a line. Raises Error when the line has none."""
        cell, names = line.get("cell"), [f.name for f in fields(cls)]
        if not isinstance(cell, dict) or set(cell) != set(names):
            raise Error(f"a cell has {', '.join(names)}, not {shown(cell)}")
        return cls(**cell)


Lines = dict[str, dict]  # key of a cell -> its line
BEGINNING = b'{"cell": '  # of every line that a grid writes


def read(path: Path) -> Lines:
    """The lines of a file by their cells; empty if there is no file. Raises Error as numbered()."""
    return {Cell.of(line).key: line for line in numbered(path).values()} if path.exists() else {}


def numbered(path: Path) -> dict[int, dict]:
    """The lines of a file by line number, from 1, without an incomplete last line.

    Raises Error for a file that cannot be read and for a line that is not a cell's.
    """
    try:
        *texts, torn = path.read_bytes().split(b"\n")
    except OSError as e:
        raise Error(f"{path} cannot be read ({type(e).__name__})") from None
    if torn[: len(BEGINNING)] != BEGINNING[: len(torn)]:
        texts.append(torn)  # not ours, so it is checked like the others and refused
    lines = {}
    for number, text in ((i, text) for i, text in enumerate(texts, 1) if text):
        try:
            lines[number] = line = json.loads(text)
            Cell.of(line)
            if not {"score", "loss"} <= line.keys():
                raise Error("it has no score and loss")
        except (ValueError, AttributeError, RecursionError) as e:  # Error is a ValueError
            raise Error(f"{path}, line {number}, is no line of `bench.py quality`: {e}") from None
    return lines
