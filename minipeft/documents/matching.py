"""Attention matching (Zweiger et al. 2026, "Fast KV Compaction via Attention Matching",
2602.16284): a prefix of P rows that stands for a text of n, without training.

A query q takes two things from the text's part of attention, and no more (fused.py): its mass and its output,

    m(q) = Σ_j exp(q·k_j / sqrt(hs)),      o(q) = Σ_j exp(q·k_j / sqrt(hs)) v_j / m(q)

Whatever stands behind the text, attention is the mix of o(q) and of attention to the rest by their
masses. So P keys with these two values for the queries that will come are as good as the text. For
every key head, from N reference queries, layer by layer, each with the queries that have already
seen the layers below as they will be:

    a_j(q)   = exp(q·k_j / sqrt(hs)) / m(q)        the share of key j, in the text's part of attention
    keys     P of the n whose sum Σ w_j a_j (1, v_j / σ) is nearest to (1, o / σ): orthogonal matching pursuit
    bias     w = exp β ≥ 0 minimises  Σ_q (Σ_j w_j a_j(q) - 1)²                     non-negative least squares
    values   V minimises              Σ_q |Σ_j p_j(q) V_j - o(q)|² + ε |V - V_S|²   ridge, towards the text's own

p(q) is softmax over the P keys with their bias. Reference queries are those of the text read a
second time, in pieces that each stand right behind it, or of other texts.

Departs from the paper: masses in relative terms; the pursuit sees outputs beside masses, σ² being
the mean |v_j|²; values are drawn to their own instead of to 0; the text is read again in pieces,
not in one go; every head has P rows, since the slot holds as many for each.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import Error, described, shown
from ..model import GPT
from ..runtime.console import progress
from ..slots import Prefix
from .text import prefill, rows

MOST_QUERIES = 4096  # reference queries of a key head
PIECE = 64  # tokens of the text that are read again at once: behind more, queries look at the text less
MOST_KEYS = 8  # times P: the keys that a pursuit chooses from, those with most attention
RIDGE = 0.03  # ε, in units of the mean square of a column of weights
LEAST = 1e-6  # the weight w of a key that non-negative least squares leaves out


class Seen(NamedTuple):
    """Attention of a block's reference queries to the text: N queries for each key head."""

    weights: Tensor  # (n_kv, N, n): softmax over the text's keys
    output: Tensor  # (n_kv, N, hs)
    q: Tensor  # (n_kv, N, hs)


@torch.no_grad()
def match(base: GPT, tokens: Tensor, P: int, reference: list[Tensor] | None = None) -> Prefix:
    """tokens (n,) int64 -> a prefix of P <= n rows, its bias (L, 1, n_kv, P), and n positions.

    reference: texts (T,) int64 whose queries are to be matched, each as if it stood behind the
    document; None: the document itself, PIECE tokens each. Raises Error as `prefill` does, for P
    above n, and where no reference text has a token.
    """
    text, n, c = prefill(base, tokens), len(tokens), base.config
    check_rows(P, n)
    device, room = tokens.device, c.block_size - n
    texts = tokens.split(PIECE) if reference is None else reference
    for x in texts if isinstance(texts, (list, tuple)) else [texts]:
        if not isinstance(x, Tensor) or x.dim() != 1 or x.dtype != torch.int64 or x is texts:
            raise Error(f"reference must be a list of texts (T,) int64, not {described(x)}")
    pieces = [piece for t in texts for piece in t.to(device).split(room) if len(piece)]
    if not pieces:
        raise Error("matching needs at least one token of a reference text")
    if P == n:
        return text._replace(bias=text.k.new_zeros(text.k.shape[:4]), positions=n)
    states, ropes = states_of(base, pieces, n)
    layers: list[tuple[Tensor, Tensor, Tensor]] = []
    blocks = progress(base.h, desc="matching", unit="layer")
    for block, rope, whole in zip(blocks, ropes, text.layers(c.n_layer), strict=True):
        seen = attention_to_text(block.attn, [(block.ln_1(x), t) for x, t in zip(states, rope, strict=True)], whole)
        k, v, bias = fit_keys(seen, whole.k[0], whole.v[0], P)
        layers.append((k, v, bias))
        one = Prefix(k[None], v[None], bias=bias[None])
        states = [block(x, t, one) for x, t in zip(states, rope, strict=True)]
    k, v, bias = (torch.stack(x)[:, None] for x in zip(*layers, strict=True))
    return Prefix(k, v, bias=bias, positions=n)


@torch.no_grad()
def match_by_attention(base: GPT, tokens: Tensor, P: int) -> Prefix:
    """P rows of each key head with most attention when the text is read again, not fitted."""
    text, keep = prefill(base, tokens), []
    check_rows(P, len(tokens))
    pieces = tokens.split(min(PIECE, base.config.block_size - len(tokens)))
    states, ropes = states_of(base, pieces, len(tokens))
    for block, rope, whole in zip(base.h, ropes, text.layers(len(base.h)), strict=True):
        seen = attention_to_text(block.attn, [(block.ln_1(x), t) for x, t in zip(states, rope, strict=True)], whole)
        keep.append(seen.weights.square().sum(1).topk(P, dim=-1).indices.sort(dim=-1).values)
        states = [block(x, t, whole) for x, t in zip(states, rope, strict=True)]
    return rows(text, torch.stack(keep))


def check_rows(P: int, n: int) -> None:
    """Raise Error unless a text of n tokens can keep P rows."""
    if type(P) is not int or not 1 <= P <= n:
        raise Error(f"of a document of {n} tokens 1 … {n} rows can be kept, not {shown(P)}")


def states_of(base: GPT, pieces: Iterable[Tensor], first: int) -> tuple[list[Tensor], list[tuple]]:
    """Input of the first block (1, T, C) for each text (T,) at positions first …, and for each
    layer their rotary tables."""
    placed = [base.add_positions(base.embed(piece[None]), first) for piece in pieces]
    return [x for x, _ in placed], list(zip(*(tables for _, tables in placed), strict=True))


def attention_to_text(attention, inputs: list, whole: Prefix) -> Seen:
    """The reference queries of a block, at most MOST_QUERIES for each key head, evenly over the
    texts, and what they see of the text. inputs: (x (1, T, C) behind ln_1, rotary tables) of each
    reference text."""
    n_kv = whole.k.size(1)
    every = torch.cat([attention.qkv(x, rope)[0][0] for x, rope in inputs], dim=1).float()  # (nh, T of all, hs)
    step = -(-every[..., 0].numel() // (n_kv * MOST_QUERIES))
    q = every[:, ::step].reshape(n_kv, -1, every.size(-1))  # (n_kv, N, hs)
    weights = (q @ whole.k[0].float().mT / math.sqrt(q.size(-1))).softmax(-1)  # (n_kv, N, n)
    return Seen(weights, weights @ whole.v[0].float(), q)


def fit_keys(seen: Seen, k: Tensor, v: Tensor, P: int) -> tuple[Tensor, Tensor, Tensor]:
    """k, v (n_kv, n, hs) of the text -> keys and values (n_kv, P, hs), bias (n_kv, P)."""

    def take(x: Tensor, keep: Tensor) -> Tensor:  # rows of (n_kv, n, hs)
        return x.gather(1, keep[..., None].expand(-1, -1, x.size(-1)))

    most = min(k.size(1), MOST_KEYS * P)
    keep = seen.weights.square().sum(1).topk(most, dim=-1).indices.sort(dim=-1).values  # (n_kv, most)
    atoms = take(seen.weights.mT, keep).double()  # (n_kv, most, N)
    gram, target = atoms @ atoms.mT, atoms.sum(-1)
    values, wanted = take(v, keep).double(), seen.output.double()
    scale = values.square().sum(-1).mean()
    chosen = pursuit(gram * (1 + values @ values.mT / scale),
                     target + (atoms @ wanted * values).sum(-1) / scale, P)
    chosen = chosen.sort(dim=-1).values  # (n_kv, P)
    keep, target, gram = keep.gather(1, chosen), target.gather(1, chosen), take(take(gram, chosen).mT, chosen)
    bias = nonnegative(gram, target).clamp_min(LEAST).log().float()
    k, own = take(k, keep), take(v, keep).double()
    p = (seen.q @ k.float().mT / math.sqrt(k.size(-1)) + bias[:, None]).softmax(-1).double()  # (n_kv, N, P)
    normal = p.mT @ p
    drawn = RIDGE * normal.diagonal(dim1=1, dim2=2).mean(-1)
    normal = normal + torch.diag_embed(drawn[:, None].expand(-1, P))
    change = torch.linalg.solve(normal, p.mT @ (seen.output.double() - p @ own))
    return k, (own + change).to(v.dtype), bias


def pursuit(gram: Tensor, target: Tensor, P: int, rounds: int = 16) -> Tensor:
    """Orthogonal matching pursuit: P columns whose sum, weights ≥ 0, is nearest to the target.

    gram (n_kv, n, n), target (n_kv, n): products of the columns with each other and with the target
    -> (n_kv, P). A round takes the columns that correlate most with what is left, an equal share of
    P, and fits all weights anew.
    """
    n_kv, n = target.shape
    norm = gram.diagonal(dim1=1, dim2=2).clamp_min(1e-30).sqrt()
    keep = torch.empty(n_kv, 0, dtype=torch.int64, device=gram.device)
    left, sizes = target, [P * (i + 1) // min(rounds, P) for i in range(min(rounds, P))]
    for size in sizes:
        gain = (left / norm).scatter(1, keep, -math.inf)
        keep = torch.cat([keep, gain.topk(size - keep.size(1), dim=-1).indices], dim=1)
        columns = gram.gather(2, keep[:, None].expand(-1, n, -1))  # (n_kv, n, size)
        among = columns.gather(1, keep[..., None].expand(-1, -1, size))
        w = nonnegative(among, target.gather(1, keep), steps=100)
        left = target - (columns @ w[..., None])[..., 0]
    return keep


def nonnegative(gram: Tensor, target: Tensor, steps: int = 1000) -> Tensor:
    """w (n_kv, P) >= 0 that minimises wᵀ gram w / 2 - target·w: projected gradient with momentum
    (Nesterov), columns scaled to length 1."""
    norm = gram.diagonal(dim1=1, dim2=2).clamp_min(1e-30).sqrt()
    gram, target = gram / norm[:, :, None] / norm[:, None], target / norm
    step = 1 / torch.linalg.matrix_norm(gram, 2).clamp_min(1e-30)[:, None]
    w = y = norm.clone()
    t = 1.0
    for _ in range(steps):
        new = (y - step * ((gram @ y[..., None])[..., 0] - target)).clamp_min(0)
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        y, w, t = new + (t - 1) / following * (new - w), new, following
    return w / norm
