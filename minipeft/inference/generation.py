"""Generation: one token at a time, with a cache of keys and values.

With several rows, a prefix is not copied into the cache: it is stored once, and attention merges
the prefix part and the context part (attention.py; Hydragen, 2402.05099). So P shared virtual
tokens take P·2·L·n_kv·hs elements, not B times as many. With a single row the prefix is copied into
the cache, which saves the merge: one attention a layer instead of two.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import Error, check_base, check_tokens, described, shown
from ..model import GPT
from ..runtime.matmul import Linear, packed, product
from ..runtime.modes import in_eval_mode
from ..slots import KVCache, Prefix, Slots

WORTH_PACKING = 16  # new tokens that pay for laying out the weights for few rows


def generate(model: Any, idx: Tensor, max_new_tokens: int, temperature: float | None = None,
             top_k: int | None = None, top_p: float | None = None,
             stop_token: "int | list[int] | None" = None, lengths: Tensor | None = None) -> Tensor:
    """idx (B, T) int64 -> (B, <= T + max_new_tokens): every row followed by its continuation.

    model         a base, an Adapted, or TaskBank.rows(tasks)
    temperature   0: the most likely token; above: sampled from softmax(logits / temperature);
                  None: 1 where top_k or top_p is given, else 0
    top_k         sample from the k most likely tokens
    top_p         sample from the fewest tokens with this probability together (nucleus, 1904.09751)
    stop_token    one or several tokens that end a row; ended rows are padded with the first of them
    lengths       (B,) int64 for rows of different lengths: row b is idx[b, :lengths[b]], its
                  continuation follows directly, then padding: stop_token, or 0 without one

    Raises Error when the new tokens do not fit the block size, or for an invalid setting.
    """
    steps = list(stream(model, idx, max_new_tokens, temperature, top_k, top_p, stop_token, lengths))
    idx = idx.long()
    new = torch.stack(steps, dim=1) if steps else idx[:, :0]  # (B, n)
    if lengths is None:
        return torch.cat([idx, new], dim=1)
    (B, T), n = idx.shape, new.size(1)
    column = torch.arange(T + n, device=idx.device)
    padding = 0 if stop_token is None else int(torch.tensor(stop_token).view(-1)[0])
    out = idx.new_full((B, T + n), padding)
    given, end = column < lengths[:, None], lengths[:, None] + n
    out[given] = F.pad(idx, (0, n))[given]
    out[~given & (column < end)] = new.flatten()
    return out


@torch.no_grad()
def stream(model: Any, idx: Tensor, max_new_tokens: int, temperature: float | None = None,
           top_k: int | None = None, top_p: float | None = None,
           stop_token: "int | list[int] | None" = None,
           lengths: Tensor | None = None) -> Iterator[Tensor]:
    """Yield the tokens that `generate` appends, (B,) int64 at a time."""
    if hasattr(model, "base") and not hasattr(model, "slots"):
        raise Error("a task bank generates by the tasks of its rows: give bank.rows(tasks)")
    base, slots = (model.base, model.slots()) if hasattr(model, "base") else (model, Slots())
    check_base(base)
    if temperature is None:
        temperature = 0.0 if top_k is None and top_p is None else 1.0
    _check(idx, max_new_tokens, temperature, top_k, top_p, stop_token, lengths,
           base.config.vocab_size)
    if hasattr(model, "check_rows"):  # a bank's
        model.check_rows(idx)
    B, T = idx.shape
    if max_new_tokens == 0:
        return
    cache, slots = allocate_cache(base, slots, B, T + max_new_tokens - 1)  # the last is output only
    stops = None if stop_token is None else torch.tensor(stop_token, device=idx.device).view(-1)
    with in_eval_mode(model):
        done = torch.zeros(B, dtype=torch.bool, device=idx.device)
        hidden = base.hidden(idx, *slots, cache=cache)  # (B, T, C)
        rows = torch.arange(B, device=idx.device)
        x = hidden[:, -1] if lengths is None else hidden[rows, lengths - 1]  # (B, C)
        cache = cache.after(T + (slots.prompt.size(1) if isinstance(slots.prompt, Tensor) else 0))
        if lengths is not None:  # new tokens overwrite the padding of shorter rows
            cache = cache._replace(length=lengths + cache.read - T)
        slots = slots._replace(prompt=None)  # it is in the cache now
        with packed(_weights(base) if max_new_tokens >= WORTH_PACKING else [], B):
            for step in range(max_new_tokens):
                token = sample(product(x, base.head), temperature, top_k, top_p)  # (B,)
                if stops is not None:
                    token = torch.where(done, stops[0], token)
                    done = done | torch.isin(token, stops)
                yield token
                if step == max_new_tokens - 1 or (stops is not None and done.all()):
                    return
                with torch.inference_mode():  # nothing is tracked for autograd: less to do at each operator
                    x = base.hidden(token[:, None], *slots, cache=cache)[:, -1]  # (B, C)
                cache = cache.after(1)


def _weights(base: GPT) -> list[Tensor]:
    """The matrices that each new token meets, the head among them."""
    return [part.weight for part in base.h.modules() if isinstance(part, Linear)] + [base.head]


def allocate_cache(base: GPT, slots: Slots, B: int, T: int) -> tuple[KVCache, Slots]:
    """An empty cache for B rows of soft prompt and T tokens, and the slots beside it.

    A single row's plain prefix is copied into the cache; others stay in the slots."""
    (prompt, prefix, _), c = slots, base.config
    if isinstance(prefix, Tensor):
        prefix = Prefix.of(prefix)
    prefix_length = 0 if prefix is None else prefix.most_taken
    prompt_length = prompt.size(1) if isinstance(prompt, Tensor) else 0  # soft tokens in the text are part of T
    if (P := prefix_length + prompt_length) + T > c.block_size:
        raise Error(f"{P} virtual tokens and {T} of input and output do not fit the base's block size of "
                    f"{c.block_size}")
    weight = base.wte.weight  # of a sharded base, whose new_zeros would be sharded too
    plain = prefix is not None and prefix.gate is prefix.length is prefix.bias is None
    own = prefix.k.size(3) if plain and B == 1 and len(prefix.k) == c.n_layer else 0
    # zeros: a shorter row attends, with weight 0, to places that only longer rows have written
    shape = (2, c.n_layer, B, c.n_kv, own + prompt_length + T, c.head_size)
    k, v = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    if own:
        k[:, :, :, :own], v[:, :, :, :own], prefix = prefix.k.detach(), prefix.v.detach(), None
    shift = prefix_length - own if own else 0
    return KVCache(k, v, own, None, own + prompt_length, shift), slots._replace(prefix=prefix)


def sample(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """logits (B, V) -> one token a row (B,). Raises Error for logits that are not finite."""
    most, likeliest = logits.max(dim=-1)
    if not most.isfinite().all():
        raise Error("the model's logits are not finite: check the parameters of base and adapter")
    if temperature < 1e-6:  # no divisor for float32
        return likeliest
    logits = (logits.float() - most.float()[:, None]) / temperature
    if top_k is not None and top_k < logits.size(-1):
        best = logits.topk(top_k)
        logits = torch.full_like(logits, -math.inf).scatter(1, best.indices, best.values)
    if top_p is not None:
        p, token = logits.softmax(dim=-1).sort(descending=True)
        beyond = p.cumsum(dim=-1) - p >= top_p  # the tokens before it are enough
        beyond[:, 0] = False  # a top_p so small that it is 0 in float32
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, token, beyond), -math.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1).squeeze(1)


def _check(idx, max_new_tokens, temperature, top_k, top_p, stop_token, lengths,
           vocab_size: int) -> None:
    check_tokens(idx)
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise Error(f"max_new_tokens must be a whole number of at least 0, not {shown(max_new_tokens)}")
    if not isinstance(temperature, (int, float)) or not 0 <= temperature < math.inf:
        raise Error(f"temperature must be 0 or above, not {shown(temperature)}")
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise Error("top_k and top_p choose among samples: they need a temperature above 0")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise Error(f"top_k must be a whole number of at least 1, not {shown(top_k)}")
    if top_p is not None and not (isinstance(top_p, (int, float)) and 0 < top_p <= 1):
        raise Error(f"top_p must be above 0 and at most 1, not {shown(top_p)}")
    stops = stop_token if isinstance(stop_token, (list, tuple)) else [0 if stop_token is None else stop_token]
    if not stops or not all(type(i) is int and 0 <= i < vocab_size for i in stops):
        raise Error(f"stop_token must be one or several token ids in 0 … {vocab_size - 1}, not {shown(stop_token)}")
    if lengths is not None:
        (B, T), whole = idx.shape, isinstance(lengths, Tensor) and lengths.dtype == torch.int64
        if not whole or lengths.shape != (B,) or not 1 <= int(lengths.min()) <= int(lengths.max()) <= T:
            raise Error(f"lengths {described(lengths)} must be {(B,)} int64 from 1 to {T}, one a row")
