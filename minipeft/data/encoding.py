"""Token ids of examples, and tensors of them in which only the completion is supervised."""

from array import array
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import Error
from .tasks import Example
from .template import ARROW, Template
from .tokenizer import Tokenizer, encode_behind, with_begin

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
    """Token ids of the prompt, never empty: the first target needs a token before it."""
    return prompt_ids(example, tokenizer, template) or [tokenizer.end]


def prompt_ids(example: Example, tokenizer: Tokenizer, template: Template = ARROW) -> list[int]:
    """Token ids of the filled template, or only of the begin mark for a text."""
    if example.input is None:
        if template.has_soft:
            raise Error("a template with {soft} needs inputs to stand beside: a text alone has none")
        return tokenizer.begin
    chat = template.chat(tokenizer)
    first, *behind = template.pieces(example, chat)  # a folder's chat template writes its begin mark itself
    ids = with_begin(tokenizer, first) if chat is None else tokenizer.encode(first)
    for text in behind:  # the ids that slots.SoftTokens replaces by vectors
        soft = range(tokenizer.vocab_size, tokenizer.vocab_size + template.num_soft)
        ids = [*ids, *soft, *encode_behind(tokenizer, ids, text)]
    return ids


def tokenize(example: Example, tokenizer: Tokenizer, template: Template = ARROW,
             before=()) -> Encoded:
    """Tokenise an example: prompt and completion separately, so that no token spans the two.

    before: ids of the piece before this one, of a text that was divided. A begin or end mark that
    the target's text already holds is removed first.
    """
    stops = template.stops(tokenizer)
    begin, ends = mark_texts(tokenizer, stops)
    target = example.target.removeprefix(begin)
    while example.ends and target.rstrip().endswith(ends):
        target = target.rstrip()
        target = next(target.removesuffix(end) for end in ends if target.endswith(end))
    example = example._replace(target=target)
    prompt = prompt_ids(example, tokenizer, template)
    opening = "" if example.input is None else template.opening(tokenizer)
    completion = encode_behind(tokenizer, before or prompt, opening + target) + (stops[:1] if example.ends else [])
    return Encoded(example, array("i", prompt or [tokenizer.end]), array("i", completion))


def without_soft(record: Encoded, tokenizer: Tokenizer) -> Encoded:
    """The record without soft tokens in its text, for the bare base."""
    words = [i for i in record.prompt if i < tokenizer.vocab_size] or [tokenizer.end]
    return record._replace(prompt=array("i", words))


def mark_texts(tokenizer: Tokenizer, stops: list[int]) -> tuple[str, tuple[str, ...]]:
    """The text of the begin mark ("" for none), and those of the ids that end an answer."""
    begin = "".join(tokenizer.marks.get(i, "") for i in tokenizer.begin)
    return begin, tuple(tokenizer.marks[i] for i in stops if i in tokenizer.marks)


def collate(records: list[Encoded], fill: int) -> Batch:
    """Records -> idx (B, T), targets (B, T): the next token inside the completion, else -100.

    Shorter rows are padded on the right with `fill`.
    """
    T = max(len(r.prompt) + len(r.completion) for r in records) - 1
    idx = torch.full((len(records), T), fill)
    targets = torch.full((len(records), T), IGNORED)
    for i, r in enumerate(records):
        row = torch.tensor(r.prompt + r.completion)
        idx[i, : len(row) - 1] = row[:-1]
        targets[i, len(r.prompt) - 1 : len(row) - 1] = row[len(r.prompt) :]
    return idx, targets


def encode(examples: list[Example], tokenizer: Tokenizer, template: Template = ARROW) -> Batch:
    """Examples -> idx, targets (B, T), as collate() describes them."""
    records = [tokenize(e, tokenizer, template) for e in examples]
    return collate(records, tokenizer.end)
