"""What a model reaches on examples: the loss of their answers, how many it gives exactly, and the answers themselves."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.batches import encode, length, question
from ..data.tasks import Example
from ..data.template import ARROW, Template
from ..data.tokenizer import Tokenizer
from ..inference.generation import generate
from ..model import GPT
from ..runtime.console import progress
from ..runtime.processes import all_reduce_sum, share_batches
from .sharding import reshard

CHUNK = 256  # positions whose logits are in memory at once


def batches(examples: list[Example], tokenizer: Tokenizer, template: Template = ARROW, batch_size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """idx, targets (B, T) of all examples, those of about one length together."""
    examples = sorted(examples, key=lambda e: length(e, tokenizer, template))
    return [encode(examples[i : i + batch_size], tokenizer, template) for i in range(0, len(examples), batch_size)]


@torch.no_grad()
def evaluate(model, given: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """(mean loss per supervised token, exact match) over batches of idx, targets (B, T); model: a base or an Adapted.

    Exact match is the share of examples whose every supervised token is the most likely one given those before it: the very
    examples that greedy decoding answers exactly. The head is applied to supervised positions alone, some at a time. Several processes
    share the batches, and all get the figures of all.
    """
    base, slots = (model, dict) if isinstance(model, GPT) else (model.base, model.slots)
    training = model.training
    model.eval()
    loss, tokens, exact, examples = 0.0, 0, 0, 0
    given, device = list(given), base.wte.weight.device
    for (idx, targets), counts in progress(list(share_batches(given)), desc="evaluating", unit="batch", leave=False, delay=1):
        idx, targets = idx.to(device), targets.to(device)
        supervised = targets != -100
        x, wanted = base.hidden(idx, **slots())[supervised], targets[supervised]  # (n, C), (n,)
        right = torch.ones_like(supervised)
        found = []
        if not counts:
            continue
        for some, these in zip(x.split(CHUNK), wanted.split(CHUNK), strict=True):
            logits = F.linear(some, base.head).float()  # (CHUNK, V)
            loss += F.cross_entropy(logits, these, reduction="sum").item()
            found.append(logits.argmax(dim=-1) == these)
        right[supervised] = torch.cat(found)
        tokens, exact, examples = tokens + len(wanted), exact + int(right.all(dim=1).sum()), examples + len(idx)
    reshard(base)
    model.train(training)
    loss, tokens, exact, examples = all_reduce_sum(torch.tensor([loss, tokens, exact, examples], dtype=torch.float64)).tolist()
    return loss / tokens, exact / examples




def perplexity(loss: float) -> float:
    """exp of the mean loss per token: how many equally likely tokens it is like choosing from."""
    return math.exp(min(loss, 700))


def answer(
    model, examples: list[Example], tokenizer: Tokenizer, template: Template = ARROW, max_new_tokens: int = 64, batch_size: int = 32
) -> list[str]:
    """The greedy answer to every example, in their order: up to a stop token, max_new_tokens, or the end of the block size.

    Questions of about one length share a batch, unless one is so long that it would leave the others less room.
    """
    base, virtual = (model, 0) if isinstance(model, GPT) else (model.base, model.method.num_virtual_tokens)
    device, texts = base.wte.weight.device, [""] * len(examples)
    asked = [question(e, tokenizer, template) for e in examples]
    order = sorted(range(len(examples)), key=lambda i: len(asked[i]))
    with progress(total=len(examples), desc="answering", unit="answer", leave=False, delay=1) as bar:
        while order:
            room = [base.config.block_size - virtual - len(asked[i]) + 1 for i in order]  # the last token is not read again
            n = max(1, sum(r >= max_new_tokens for r in room[:batch_size]))  # shorter questions come first
            rows, order = order[:n], order[n:]
            lengths = torch.tensor([len(asked[i]) for i in rows], device=device)
            T = int(lengths.max())
            idx = torch.tensor([asked[i] + [tokenizer.end] * (T - len(asked[i])) for i in rows], device=device)
            out = generate(model, idx, min(max_new_tokens, room[0]), stop_token=tokenizer.stops, lengths=lengths)
            for i, row, n in zip(rows, out.tolist(), lengths.tolist(), strict=True):
                new = row[n:]
                ends = [place for place, token in enumerate(new) if token in tokenizer.stops]
                texts[i] = tokenizer.decode(new[: ends[0]] if ends else new)
            bar.update(len(rows))
    reshard(base)
    return texts
