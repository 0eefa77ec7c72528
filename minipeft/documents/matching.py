"""Attention matching (Zweiger et al. 2026, "Fast KV Compaction via Attention Matching", 2602.16284): a prefix of P rows
that stands for a text of n, without training.

A query q takes two things from the text's part of attention, and no more (fused.py): its mass and its output,

    m(q) = Σ_j exp(q·k_j / sqrt(hs)),      o(q) = Σ_j exp(q·k_j / sqrt(hs)) v_j / m(q)

Whatever stands behind the text, attention is the mix of o(q) and of attention to the rest by their masses. So P keys
with these two values for the queries that will come are as good as the text. For every key head, from reference queries
Q, layer by layer, each with the queries that have already seen the layers below as they will be:

    keys     P of the n, by orthogonal matching pursuit (1993) on the masses, or those with most attention
    bias     w = exp β ≥ 0 minimises  Σ_q λ² (Σ_S w_j exp(q·k_j) / m(q) - 1)²                non-negative least squares
    values   V minimises              Σ_q λ² |Σ_S p_j(q) V_j - o(q)|² + ε |V - V_S|²       ridge, towards the text's own

p(q) is softmax over the P keys with their bias; λ the share of q's attention that the text gets, by which its error
reaches the output. Reference queries are those of the text read a second time, behind itself, or of other texts.

Departs from the paper: masses in relative terms and weighted by λ; values drawn to their own instead of to 0; every
head has P rows, since a slot holds as many for each.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import Error, one_of
from ..model import GPT
from ..runtime.console import progress
from ..slots import Prefix
from .text import prefill, rows

CHOICES = ("pursuit", "attention")
MOST_QUERIES = 1024  # reference queries of a key head
RIDGE = 1e-3  # ε, in units of the mean square of a column of weights
LEAST = 1e-6  # the weight w of a key that non-negative least squares leaves out


class Seen(NamedTuple):
    """Attention of a block's reference queries to the text: for each of n_kv key heads, N queries."""

    weights: Tensor  # (n_kv, N, n): softmax over the text's keys
    output: Tensor  # (n_kv, N, hs)
    share: Tensor  # (n_kv, N): λ, of all that the query attends to
    q: Tensor  # (n_kv, N, hs)


@torch.no_grad()
def match(base: GPT, tokens: Tensor, P: int, reference: list[Tensor] | None = None, choose: str = "pursuit",
          ridge: float = RIDGE) -> Prefix:
    """tokens (n,) int64 -> a prefix of P <= n rows, its bias (L, 1, n_kv, P), and n positions.

    reference: texts (T,) int64 whose queries are to be matched, each as if it stood behind the document; None: the
    document itself. choose: "pursuit" or "attention". Raises Error as `prefill` does, for P above n, and where no
    reference text has a token.
    """
    one_of("choose", choose, CHOICES)
    text = prefill(base, tokens)
    n, c = len(tokens), base.config
    if type(P) is not int or not 1 <= P <= n:
        raise Error(f"a document of {n} tokens has 1 … {n} rows, not {P}")
    device, room = tokens.device, c.block_size - n
    pieces = [piece for t in (reference or [tokens]) for piece in t.to(device).split(room) if len(piece)]
    if not pieces:
        raise Error("matching needs at least one token of a reference text")
    if P == n:
        return text._replace(bias=text.k.new_zeros(text.k.shape[:4]), positions=n)
    states = [base.add_positions(base.wte(piece)[None], n) for piece in pieces]
    layers: list[tuple[Tensor, Tensor, Tensor]] = []
    for block, whole in zip(progress(base.h, desc="matching", unit="layer"), text.layers(c.n_layer), strict=True):
        seen = attention_to_text(block.attn, [(block.ln_1(x), rope) for x, rope in states], whole)
        k, v, bias = fitted(seen, whole.k[0], whole.v[0], P, choose, ridge)
        layers.append((k, v, bias))
        one = Prefix(k[None], v[None], bias=bias[None])
        states = [(block(x, rope, one), rope) for x, rope in states]
    k, v, bias = (torch.stack(x)[:, None] for x in zip(*layers, strict=True))
    return Prefix(k, v, bias=bias, positions=n)


def attention_to_text(attention, inputs: list, whole: Prefix) -> Seen:
    """The reference queries of a block, at most MOST_QUERIES for each key head, evenly over the texts, and what they
    see of the text. inputs: (x (1, T, C) behind ln_1, rotary tables) of each reference text."""
    n_kv, total = whole.k.size(1), sum(x.size(1) for x, _ in inputs)
    queries, contexts, at = [], [], 0
    for x, rope in inputs:
        q, k, _ = (y[0].float() for y in attention.qkv(x, rope))  # (nh | n_kv, T, hs)
        G, T, hs = len(q) // n_kv, q.size(1), q.size(2)
        every = -(-total * G // MOST_QUERIES)  # one query of so many
        kept = torch.arange(-at % every, T, every, device=q.device)
        at += T
        q = q[:, kept].reshape(n_kv, -1, hs)  # (n_kv, G·kept, hs)
        scores = q @ k.mT / math.sqrt(hs)
        ahead = torch.arange(T, device=q.device) > kept[:, None]
        contexts.append(scores.masked_fill(ahead.repeat(G, 1), -math.inf).logsumexp(-1))
        queries.append(q)
    q, context = torch.cat(queries, dim=1), torch.cat(contexts, dim=1)
    scores = q @ whole.k[0].float().mT / math.sqrt(q.size(-1))  # (n_kv, N, n)
    share = torch.sigmoid(scores.logsumexp(-1) - context)
    weights = scores.softmax(-1)
    return Seen(weights, weights @ whole.v[0].float(), share, q)


def fitted(seen: Seen, k: Tensor, v: Tensor, P: int, choose: str, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """k, v (n_kv, n, hs) of the text -> keys and values (n_kv, P, hs) and bias (n_kv, P) of a prefix."""
    atoms = (seen.weights * seen.share[..., None]).double()  # (n_kv, N, n): a key's share of the query's attention
    gram, target = atoms.mT @ atoms, (atoms.mT @ seen.share[..., None].double())[..., 0]
    if choose == "pursuit":
        keep = pursuit(gram, target, P)
    else:
        keep = atoms.square().sum(1).topk(P, dim=-1).indices
    keep = keep.sort(dim=-1).values
    of = keep[..., None].expand(-1, -1, P)
    w = nonnegative(gram.gather(1, keep[..., None].expand(-1, -1, gram.size(2))).gather(2, of.mT), target.gather(1, keep))
    bias = w.clamp_min(LEAST).log().float()
    rows_of = keep[..., None].expand(-1, -1, k.size(-1))
    k, own = k.gather(1, rows_of), v.gather(1, rows_of)
    p = ((seen.q @ k.float().mT / math.sqrt(k.size(-1))) + bias[:, None]).softmax(-1)
    p, wanted = (p * seen.share[..., None]).double(), (seen.output * seen.share[..., None]).double()
    normal = p.mT @ p  # (n_kv, P, P)
    drawn = ridge * normal.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None] * torch.eye(P, dtype=p.dtype, device=p.device)
    change = torch.linalg.solve(normal + drawn, p.mT @ (wanted - p @ own.double()))
    return k, (own.double() + change).to(v.dtype), bias


def pursuit(gram: Tensor, target: Tensor, P: int, rounds: int = 16) -> Tensor:
    """Orthogonal matching pursuit: the P columns whose sum, with weights of 0 or more, is nearest to the target.

    gram (n_kv, n, n), target (n_kv, n): products of the columns with each other and with the target -> (n_kv, P).
    A round takes the columns that correlate most with what is left, an equal share of P, and fits all weights anew.
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
    """w (n_kv, P) >= 0 that minimises wᵀ gram w / 2 - target·w: projected gradient with momentum (Nesterov), columns
    scaled to length 1."""
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
