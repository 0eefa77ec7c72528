"""Token ids of examples, and tensors of them in which only the completion is supervised."""

from array import array
from typing import NamedTuple

import torch
from torch import Tensor

from .tasks import Example
from .template import ARROW, Template
from .tokenizer import Tokenizer

IGNORED = -100  # target of a position that is not supervised
Batch = tuple[Tensor, Tensor]  # idx, targets (B, T) int64


class Encoded(NamedTuple):
    """An example with its token ids: the prompt, and the completion with its end mark."""

    example: Example
    prompt: array  # of 4 bytes a token, where a list takes 36
    completion: array  # without an end mark where the example is a piece of a longer text

    @property
    def prompt_key(self) -> tuple:
        return self.example.prompt_key

    @property
    def new_tokens(self) -> int:
        """Tokens of the target, without the end mark."""
        return len(self.completion) - self.example.ends

    @property
    def length(self) -> int:
        """T of this example alone. The end mark is only a target, never an input."""
        return len(self.prompt) + self.new_tokens


def question(example: Example, tokenizer: Tokenizer, template: Template = ARROW) -> list[int]:
    """Token ids of the prompt: the filled template, or nothing for a text; never empty."""
    ids = [] if example.input is None else tokenizer.encode(template.fill(example))
    return (tokenizer.begin + ids) or [tokenizer.end]  # the first target needs a token before it


def tokenize(example: Example, tokenizer: Tokenizer, template: Template = ARROW) -> Encoded:
    """Prompt and completion are tokenised separately, so no token ever spans the two."""
    completion = tokenizer.encode(example.target) + ([tokenizer.end] if example.ends else [])
    prompt = question(example, tokenizer, template)
    return Encoded(example, array("i", prompt), array("i", completion))


def collate(records: list[Encoded], fill: int, bucket: int = 1, longest: int = 0) -> Batch:
    """Records -> idx (B, T), targets (B, T): the next token inside the completion, else -100.

    Shorter rows are padded on the right with `fill`. T is rounded up to a multiple of `bucket`, but
    not beyond `longest`: torch.compile then sees few different shapes.
    """
    T = max(len(r.prompt) + len(r.completion) for r in records) - 1
    T = max(T, min(longest, -(-T // bucket) * bucket))
    idx = torch.full((len(records), T), fill)
    targets = torch.full((len(records), T), IGNORED)
    for i, r in enumerate(records):
        row = torch.tensor(r.prompt + r.completion)
        idx[i, : len(row) - 1] = row[:-1]
        targets[i, len(r.prompt) - 1 : len(row) - 1] = row[len(r.prompt) :]
    return idx, targets


def encode(examples: list[Example], tokenizer: Tokenizer, template: Template = ARROW,
           bucket: int = 1, longest: int = 0) -> Batch:
    """Examples -> idx, targets (B, T), as collate() describes them."""
    records = [tokenize(e, tokenizer, template) for e in examples]
    return collate(records, tokenizer.end, bucket, longest)


def length(example: Example, tokenizer: Tokenizer, template: Template = ARROW) -> int:
    """T of the example alone, as Encoded.length."""
    return tokenize(example, tokenizer, template).length
