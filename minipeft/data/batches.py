"""From examples to tensors: `input -> target` as ids, with the target alone supervised."""

import hashlib
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from ..config import Error
from .jsonl import read_jsonl
from .tasks import Example, Task
from .tokenizer import ByteTokenizer

ARROW = " -> "
IGNORED = -100  # the target of a position that is not supervised


def encode(examples: list[Example], tokenizer: ByteTokenizer, bucket: int = 1, longest: int = 0) -> tuple[Tensor, Tensor]:
    """Examples -> idx (B, T), targets (B, T): the next token where it belongs to the answer or its end mark, else -100.

    Shorter rows are filled up on the right, where causal attention keeps the fill from mattering. T is rounded up to a multiple of
    `bucket`, but not past `longest`: few different shapes, for torch.compile.
    """
    rows = [(question(e, tokenizer), tokenizer.encode(e.target) + [tokenizer.end]) for e in examples]
    T = max(len(asked) + len(answer) for asked, answer in rows) - 1
    T = max(T, min(longest, -(-T // bucket) * bucket))
    idx = torch.full((len(rows), T), tokenizer.end)
    targets = torch.full((len(rows), T), IGNORED)
    for i, (asked, answer) in enumerate(rows):
        row = torch.tensor(asked + answer)
        idx[i, : len(row) - 1] = row[:-1]
        targets[i, len(asked) - 1 : len(row) - 1] = row[len(asked) :]
    return idx, targets


def question(example: Example, tokenizer: ByteTokenizer) -> list[int]:
    """What the model is given: the input and the arrow."""
    return tokenizer.encode(example.input + ARROW)


def fit(examples: list[Example], tokenizer: ByteTokenizer, block_size: int, virtual: int) -> tuple[list[Example], int]:
    """Examples cut from the left of their input until they fit beside the virtual tokens, and how many were cut.

    Raises Error when a target alone is too long.
    """
    fitted, cut = [], 0
    for e in examples:
        asked, answer = tokenizer.encode(e.input), len(tokenizer.encode(ARROW + e.target))
        room = block_size - virtual - answer
        if room < 0:
            start = ascii(e.target[:30])
            raise Error(f"{virtual} virtual tokens and {answer} of {ARROW!r} and {start} do not fit the block size of {block_size}")
        if len(asked) > room:
            e, cut = Example(tokenizer.decode(asked[len(asked) - room :]).lstrip("\ufffd"), e.target), cut + 1
        fitted.append(e)
    return fitted, cut


class TaskData:
    """Endless examples of a task, the same for the same seed; the held-out ones come from a seed of their own.

    Of the 10⁸ strings there are, hardly any is drawn twice.
    """

    def __init__(self, task: Task, seed: int, batch_size: int, held_out: int = 500):
        self.task, self.seed, self.batch_size = task, seed, batch_size
        self.held_out = draw(task.example, "held-out", held_out)

    def batch(self, step: int) -> list[Example]:
        return draw(self.task.example, f"{self.seed}/{step}", self.batch_size)

    def development(self, n: int) -> list[Example]:
        """Examples to choose by, which are neither held out nor any batch's."""
        return draw(self.task.example, f"{self.seed}/development", n)


def draw(example: Callable[[Random], Example], seed: str, n: int) -> list[Example]:
    rng = Random(seed)
    return [example(rng) for _ in range(n)]


class FileData:
    """A JSONL file: the last tenth is held out (500 at most), the rest is shuffled anew every epoch."""

    def __init__(self, path, tokenizer: ByteTokenizer, seed: int, batch_size: int, block_size: int, virtual: int):
        examples, self.cut = fit(read_jsonl(path), tokenizer, block_size, virtual)
        if len(examples) < 2:
            raise Error(f"{path} holds one example: at least two are needed, one of them held out")
        apart = min(500, max(1, len(examples) // 10))
        self.examples, self.held_out = examples[:-apart], examples[-apart:]
        self.digest = hashlib.sha256(repr(examples).encode()).hexdigest()
        self.seed, self.batch_size = seed, min(batch_size, len(self.examples))

    def batch(self, step: int) -> list[Example]:
        epoch, place = divmod(step, len(self.examples) // self.batch_size)
        order = list(range(len(self.examples)))
        Random(f"{self.seed}/{epoch}").shuffle(order)
        return [self.examples[i] for i in order[place * self.batch_size : (place + 1) * self.batch_size]]

    def development(self, n: int) -> list[Example]:
        """Examples to choose by: of those that are trained on."""
        return self.examples[:n]
