"""Turning logits into text, one token at a time, with a cache of the keys and values already made.

A prefix never enters the cache: it stands beside it, once for all rows that share it, and attention joins the two (fused.py; Hydragen,
2402.05099). So P shared virtual tokens take P·2·L·n_kv·hs numbers, not B times as many.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Error
from ..model import GPT
from ..slots import KVCache, Prefix


def generate(
    model: Any,
    idx: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: "int | list[int] | None" = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """idx (B, T) int64 -> (B, <= T + max_new_tokens): every row followed by what the model says next.

    model         a base, an Adapted, or TaskBank.rows(tasks)
    temperature   0: the most likely token; above: drawn from softmax(logits / temperature), by torch's random numbers
    top_k         draw from the k most likely alone
    top_p         draw from the fewest most likely that have this probability together (nucleus, 1904.09751)
    stop_token    ends a row, or each of several does; all ends when every row has one, and rows that had it sooner are filled up
                  with it (the first of several)
    lengths       (B,) int64 where rows are of different lengths: row b is idx[b, :lengths[b]], what follows it comes right behind,
                  and the row is filled up with stop_token (0 without one)

    Raises Error when the new tokens do not fit the block size, or for a setting that means nothing.
    """
    steps = list(stream(model, idx, max_new_tokens, temperature, top_k, top_p, stop_token, lengths))
    if not steps:
        return idx
    new = torch.stack(steps, dim=1)  # (B, n)
    if lengths is None:
        return torch.cat([idx, new], dim=1)
    (B, T), n = idx.shape, new.size(1)
    column = torch.arange(T + n, device=idx.device)
    out = idx.new_full((B, T + n), 0 if stop_token is None else int(torch.tensor(stop_token).view(-1)[0]))
    given, end = column < lengths[:, None], lengths[:, None] + n
    out[given] = F.pad(idx, (0, n))[given]
    out[~given & (column < end)] = new.flatten()
    return out


@torch.no_grad()
def stream(
    model: Any,
    idx: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: "int | list[int] | None" = None,
    lengths: Tensor | None = None,
) -> Iterator[Tensor]:
    """What `generate` appends, as it comes: (B,) int64 at a time."""
    _check(idx, max_new_tokens, temperature, top_k, top_p, lengths)
    base, slots = (model, {}) if isinstance(model, GPT) else (model.base, model.slots())
    B, T = idx.shape
    if max_new_tokens == 0:
        return
    cache, slots = read_slots(base, slots, B, T + max_new_tokens - 1)  # the last token is not read again
    stops = None if stop_token is None else torch.tensor(stop_token, device=idx.device).view(-1)
    training = model.training
    model.eval()
    try:
        done = torch.zeros(B, dtype=torch.bool, device=idx.device)
        hidden = base.hidden(idx, **slots, cache=cache)  # (B, T, C)
        x = hidden[:, -1] if lengths is None else hidden[torch.arange(B, device=idx.device), lengths - 1]
        cache = cache.after(T + (slots["prompt"].size(1) if "prompt" in slots else 0))
        if lengths is not None:  # shorter rows go on where they end: what fills them up is written over
            cache = cache._replace(length=lengths + cache.read - T)
        slots.pop("prompt", None)  # read
        for step in range(max_new_tokens):
            token = sample(F.linear(x, base.head), temperature, top_k, top_p)  # (B,)
            if stops is not None:
                token = torch.where(done, stops[0], token)
                done = done | torch.isin(token, stops)
            yield token
            if step == max_new_tokens - 1 or (stops is not None and done.all()):
                return
            x = base.hidden(token[:, None], **slots, cache=cache)[:, -1]  # (B, C)
            cache = cache.after(1)
    finally:
        model.train(training)


def read_slots(base: GPT, slots: dict, B: int, T: int) -> tuple[KVCache, dict]:
    """An empty cache for B rows of T positions and a prompt's, and the slots as a record that is made once for all steps.

    Raises Error when that is more than the block size.
    """
    slots = dict(slots)
    if isinstance(slots.get("prefix"), Tensor):
        slots["prefix"] = Prefix.of(slots["prefix"])
    prefix, prompt = slots.get("prefix"), slots.get("prompt")
    before = prefix.k.size(3) if prefix is not None and prefix.gate is None else 0
    in_cache = T + (0 if prompt is None else prompt.size(1))
    c = base.config
    if before + in_cache > c.block_size:
        raise Error(f"{before + in_cache - T} virtual tokens and {T} to read do not fit the base's block size of {c.block_size}")
    like = {"device": base.wte.weight.device, "dtype": base.wte.weight.dtype}
    k, v = torch.zeros(2, c.n_layer, B, c.n_kv, in_cache, c.head_size, **like)
    return KVCache(k, v), slots  # zeros: a shorter row looks, with weight 0, at places that only longer ones have written


def sample(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """logits (B, V) -> one token a row (B,). Raises Error where there is nothing to draw by."""
    if temperature < 1e-6:  # as good as 0, and no divisor for float32
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if not logits.amax(dim=-1).isfinite().all():
        raise Error("the model gives no numbers to draw a token by: its base or adapter holds some that are not finite, or far too large")
    if top_k is not None and top_k < logits.size(-1):
        best = logits.topk(top_k)
        logits = torch.full_like(logits, -math.inf).scatter(1, best.indices, best.values)
    if top_p is not None:
        ordered, place = logits.softmax(dim=-1).sort(descending=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p  # those before it have the probability already
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, place, beyond), -math.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1).squeeze(1)


def _check(idx, max_new_tokens, temperature, top_k, top_p, lengths) -> None:
    if idx.dim() != 2 or idx.size(1) == 0:
        raise Error(f"idx {tuple(idx.shape)} must be (B, T) with at least one token to go on from")
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise Error(f"max_new_tokens must be a whole number of at least 0, not {max_new_tokens!r}")
    if not 0 <= temperature < math.inf:
        raise Error(f"temperature must be 0 or above, not {temperature!r}")
    if top_k is not None and top_k < 1:
        raise Error(f"top_k must be at least 1, not {top_k!r}")
    if top_p is not None and not 0 < top_p <= 1:
        raise Error(f"top_p must be above 0 and at most 1, not {top_p!r}")
    if lengths is not None and (lengths.shape != idx.shape[:1] or not 1 <= int(lengths.min()) <= int(lengths.max()) <= idx.size(1)):
        raise Error(f"lengths must be {(idx.size(0),)} numbers from 1 to {idx.size(1)}, one a row")
