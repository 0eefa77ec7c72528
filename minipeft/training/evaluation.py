"""Evaluation of a model on examples: loss, exact match, and greedy completions."""

import contextlib
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from ..checks import Error
from ..data.encoding import Batch, Encoded, collate, question, tokenize
from ..data.tasks import Example
from ..data.template import ARROW, Template
from ..data.tokenizer import Tokenizer
from ..inference.generation import generate
from ..model import GPT
from ..runtime.console import progress
from ..runtime.matmul import product
from ..runtime.modes import in_eval_mode
from ..runtime.processes import all_reduce_sum, local_batches
from ..slots import Slots
from .sharding import reshard

POSITIONS_CHUNK = 256  # positions whose logits are in memory at once


def batches(examples: list[Example] | list[Encoded], tokenizer: Tokenizer,
            template: Template = ARROW, batch_size: int = 16) -> list[Batch]:
    """idx, targets (B, T) of all examples, tokenised already or not, sorted by length."""
    records = [e if isinstance(e, Encoded) else tokenize(e, tokenizer, template) for e in examples]
    records.sort(key=lambda r: r.length)
    starts = range(0, len(records), batch_size)
    return [collate(records[i : i + batch_size], tokenizer.end) for i in starts]


@torch.no_grad()
def evaluate(model, batches: Iterable[Batch]) -> tuple[float, float]:
    """(mean loss per supervised token, exact match) over batches of idx, targets (B, T).

    model: a base or an Adapted. Exact match: the share of examples whose every supervised token is
    the most likely one given those before it, as greedy decoding would have it. Logits are computed
    for supervised positions alone. Several processes share the batches and return the same figures.
    Raises Error where no position is supervised.
    """
    base, slots = (model, Slots) if isinstance(model, GPT) else (model.base, model.slots)
    loss, tokens, exact, examples = 0.0, 0, 0, 0
    batches, device = list(local_batches(list(batches))), base.wte.weight.device
    with in_eval_mode(model), contextlib.ExitStack() as stack:
        stack.callback(reshard, base)
        bar = progress(batches, desc="evaluating", unit="batch", leave=False, delay=1)
        for (idx, targets), counts in bar:
            idx, targets = idx.to(device), targets.to(device)
            supervised = targets != -100
            x, wanted = base.hidden(idx, *slots())[supervised], targets[supervised]  # (n, C), (n,)
            if not counts:
                continue
            right, predicted = torch.ones_like(supervised), []
            for x_chunk, wanted_chunk in zip(x.split(POSITIONS_CHUNK),
                                             wanted.split(POSITIONS_CHUNK), strict=True):
                logits = product(x_chunk, base.head).float()  # (CHUNK, V)
                loss += F.cross_entropy(logits, wanted_chunk, reduction="sum").item()
                predicted.append(logits.argmax(dim=-1))
            right[supervised] = torch.cat(predicted) == wanted
            tokens += len(wanted)
            exact += int(right.all(dim=1).sum())
            examples += len(idx)
    sums = all_reduce_sum(torch.tensor([loss, tokens, exact, examples], dtype=torch.float64))
    loss, tokens, exact, examples = sums.tolist()
    if not tokens:
        raise Error("nothing to evaluate: no target is supervised")
    return loss / tokens, exact / examples


def complete_examples(model, examples: list[Example], tokenizer: Tokenizer, template: Template = ARROW,
                      max_new_tokens: int = 64, batch_size: int = 32) -> list[str]:
    """The greedy completion of every example's prompt, as complete() gives it."""
    prompts = [question(e, tokenizer, template) for e in examples]
    stops = template.stops(tokenizer)
    return complete(model, prompts, tokenizer, max_new_tokens, batch_size, stops)


def complete(model, prompts: list, tokenizer: Tokenizer, max_new_tokens: int = 64,
             batch_size: int = 32, stops: list[int] | None = None) -> list[str]:
    """The greedy completion of every prompt (token ids), in their order.

    It goes up to one of `stops` (default: the tokenizer's), max_new_tokens, or the end of the block
    size. Prompts of about one length share a batch, unless one is so long that it leaves the others
    less room.
    """
    base, stops = model if isinstance(model, GPT) else model.base, stops or tokenizer.stops
    size = base.config.block_size - (0 if base is model else model.method.positions_taken)
    device, texts = base.wte.weight.device, [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with progress(total=len(prompts), desc="answering", unit="answer", leave=False, delay=1) as bar:
        while order:
            room = [size - len(prompts[i]) + 1 for i in order]  # the last token is output only
            n = max(1, sum(r >= max_new_tokens for r in room[:batch_size]))  # short prompts first
            rows, order = order[:n], order[n:]
            lengths = torch.tensor([len(prompts[i]) for i in rows], device=device)
            T = int(lengths.max())
            padded = [[*prompts[i]] + [tokenizer.end] * (T - len(prompts[i])) for i in rows]
            idx = torch.tensor(padded, device=device)
            out = generate(model, idx, min(max_new_tokens, room[0]), stop_token=stops,
                           lengths=lengths)
            for i, row in zip(rows, out.tolist(), strict=True):
                new = row[len(prompts[i]) :]
                end = next((place for place, token in enumerate(new) if token in stops), None)
                texts[i] = tokenizer.decode(new[:end])
            bar.update(len(rows))
    reshard(base)
    return texts
