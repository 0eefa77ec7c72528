"""Output head and cross-entropy without the logits in memory: attention over the vocabulary.

    loss = mean over i of  lse_i - x_i · w_{t_i},     lse_i = logsumexp_j(x_i · w_j)
    d loss / d x_i = (Σ_j softmax_j(x_i Wᵀ) w_j - w_{t_i}) / n          i = 1 … n: supervised positions

The sum is what an attention head computes for a query x_i whose keys and values are both the rows
of W. So the online softmax of FlashAttention (2205.14135 §3.1) applies: one pass over the
vocabulary in chunks gives loss and gradient, rescaled as larger maxima come, and no (N, V) matrix
ever exists. A frozen head costs two matmuls (logits, dx), not three. A trained head costs two more
in backward, dW = softmaxᵀ x, since its logits are computed again.

Only supervised positions (target not -100) take part. They are selected inside one operator, so
that torch.compile does not compile again when their number changes. First derivatives only:
anything else raises Error. (torch 2.13's linear_cross_entropy has chunks too; by its documentation
torch.compile leaves them to run eagerly.)
"""

import math

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .checks import Error, described
from .fused import accumulate
from .runtime.matmul import matmul_dtype, product

DISTILLED_AT_ONCE = 128  # positions whose distributions over the vocabulary are in memory at once, in distillation
VOCABULARY_CHUNK = 2048  # rows of the vocabulary at a time: few enough for their logits to stay in the CPU's cache


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the logits x Wᵀ over supervised positions, a scalar.

    x (N, C), weight (V, C), targets (N,) int64, -100 = not supervised. Returns float32 or above;
    nan where nothing is supervised. Matmuls run in the weight's dtype, or autocast's. Raises Error
    for targets that do not fit x or, on a CPU, lie outside the vocabulary. A GPU would have to wait
    for that check: there the loss is nan, or CUDA stops with an assertion of its own.
    """
    if targets.dtype != torch.int64 or targets.shape != x.shape[:1]:
        raise Error(f"targets {described(targets)} must be ({len(x)},) int64, one for each position")
    if not torch.compiler.is_compiling() and any(unpack_dual(y).tangent is not None for y in (x, weight)):
        _refuse()
    loss, _, _ = _head_loss(x, weight, targets, matmul_dtype(weight), x.requires_grad)
    return loss


def distillation_loss(x: Tensor, teacher: Tensor, weight: Tensor, chosen: Tensor,
                      top_k: int | None = None) -> Tensor:
    """Mean KL(p ‖ q) over the chosen positions, a scalar: p of the teacher, q of the student.

    x, teacher (N, C): last states of both on the same tokens, weight (V, C) frozen, chosen (N,)
    bool. top_k: p is the teacher's k most likely tokens alone, scaled to 1. As above no (N, V)
    matrix exists: d/dx_i = Wᵀ(q_i - p_i) / n is computed with the loss, some positions at a
    time. Raises Error for a trained head.
    """
    if weight.requires_grad:
        raise Error("distillation needs a frozen base: its head is the teacher's too")
    return _Distillation.apply(x, teacher, weight, chosen, top_k)


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, teacher, weight, chosen, top_k):
        n, found, dx = int(chosen.sum()), [], torch.zeros_like(x)
        low = matmul_dtype(weight)
        with torch.autocast(x.device.type, enabled=False):
            for rows in chosen.nonzero()[:, 0].split(DISTILLED_AT_ONCE):
                log_p, log_q = (accumulate(product(y[rows].to(low), weight.to(low))).log_softmax(-1)
                                for y in (teacher, x))
                difference = log_q.exp()
                if top_k is None:
                    p = log_p.exp()
                    found.append((p * (log_p - log_q)).sum())
                    difference -= p
                else:
                    kept, ids = log_p.topk(min(top_k, log_p.size(-1)), dim=-1)
                    kept = kept.log_softmax(-1)
                    found.append((kept.exp() * (kept - log_q.gather(1, ids))).sum())
                    difference.scatter_add_(1, ids, -kept.exp())
                dx[rows] = product(difference.to(low), weight.to(low).T).to(x.dtype)
        ctx.save_for_backward(dx)
        ctx.n = n  # dx / n, in float16, would be rounded to zero before the loss scale is in it
        return torch.stack(found).sum() / n if found else x.new_full((), math.nan)

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled():
            _refuse()
        return ctx.saved_tensors[0] * (upstream / max(ctx.n, 1)), None, None, None, None


@torch.library.custom_op("minipeft::head_loss", mutates_args=())
def _head_loss(x: Tensor, weight: Tensor, targets: Tensor, low: torch.dtype,
               with_dx: bool) -> tuple[Tensor, Tensor, Tensor]:
    """-> loss (), its gradient in x (N, C), zero where not supervised, and lse (N,). Matmuls in dtype `low`."""
    chosen = targets != -100
    rows, t = x[chosen].to(low), targets[chosen].unsqueeze(1)  # (n, C), (n, 1)
    if x.device.type == "cpu" and len(t) and not 0 <= int(t.min()) <= int(t.max()) < len(weight):
        raise Error(f"targets must lie in 0 … {len(weight) - 1}, or be -100 where not supervised, "
                    f"but they span {int(t.min())} … {int(t.max())}")
    wide = torch.promote_types(low, torch.float32)
    m = rows.new_full((len(rows), 1), -math.inf, dtype=wide)
    total, target_scores = torch.zeros_like(m), torch.full_like(m, math.nan)
    weighted_w = rows.new_zeros(rows.shape if with_dx else (0,), dtype=wide)
    with torch.autocast(x.device.type, enabled=False):
        for first, w in chunks(weight, low):
            scores = product(rows, w).to(wide)  # (n, VOCABULARY_CHUNK)
            here = (t >= first) & (t < first + len(w))
            found = scores.gather(1, (t - first).clamp(0, len(w) - 1))  # rounded like all scores
            target_scores = torch.where(here, found, target_scores)
            larger = torch.maximum(m, scores.amax(-1, keepdim=True))
            shrink, m = (m - larger).exp(), larger
            weights = scores.sub_(m).exp_()
            total = total * shrink + weights.sum(-1, keepdim=True)
            if with_dx:
                weighted_w.mul_(shrink).add_(product(weights.to(low), w.T))
    lse = m + total.log()
    dx = torch.zeros_like(x)
    if with_dx:
        dx[chosen] = ((weighted_w / total - weight[t[:, 0]].to(low).to(wide)) / len(rows)).to(x.dtype)
    all_lse = lse.new_zeros(len(x))
    all_lse[chosen] = lse[:, 0]
    return (lse - target_scores).mean(), dx, all_lse


@torch.library.custom_op("minipeft::head_loss_dweight", mutates_args=())
def _dweight(x: Tensor, weight: Tensor, targets: Tensor, low: torch.dtype, lse: Tensor,
             upstream: Tensor) -> Tensor:
    """The gradient of the loss in the weight (V, C), times the upstream gradient ()."""
    chosen = targets != -100
    rows, t, lse = x[chosen].to(low), targets[chosen], lse[chosen, None]
    scale = upstream.to(lse.dtype) / len(rows)
    dweight = torch.empty_like(weight)
    with torch.autocast(x.device.type, enabled=False):
        for first, w in chunks(weight, low):
            weights = product(rows, w).to(lse.dtype).sub_(lse).exp_()
            at = ((t >= first) & (t < first + len(w))).nonzero().squeeze(1)
            weights[at, t[at] - first] -= 1  # before anything is rounded again
            dweight[first : first + len(w)] = product(weights.mul_(scale).to(low).T, rows.T)
    return dweight


def chunks(weight: Tensor, low: torch.dtype):
    """Yield (index of the first row, rows in dtype `low`), VOCABULARY_CHUNK rows at a time."""
    for first in range(0, len(weight), VOCABULARY_CHUNK):
        yield first, weight[first : first + VOCABULARY_CHUNK].to(low)


@_head_loss.register_fake
def _(x, weight, targets, low, with_dx):
    wide = torch.promote_types(low, torch.float32)
    return x.new_empty((), dtype=wide), torch.empty_like(x), x.new_empty(len(x), dtype=wide)


@_dweight.register_fake
def _(x, weight, targets, low, lse, upstream):
    return torch.empty_like(weight)


def _save_for_backward(ctx, inputs, output):
    x, weight, targets, ctx.low, _ = inputs
    _, dx, lse = output
    ctx.set_materialize_grads(False)
    ctx.trained_head = weight.requires_grad
    ctx.save_for_backward(dx, *((x, weight, targets, lse) if ctx.trained_head else ()))


def _backward(ctx, upstream, ddx, dlse):
    if ddx is not None or dlse is not None:  # a gradient of the gradient that was saved
        _refuse()
    dx, *head = ctx.saved_tensors
    dweight = None
    if ctx.trained_head:
        x, weight, targets, lse = head
        dweight = _dweight(x, weight, targets, ctx.low, lse, upstream)
    return dx * upstream, dweight, None, None, None


def _refuse(*_):
    raise Error("the loss has first derivatives in backward mode only: for others take "
                "F.cross_entropy of the logits")


_head_loss.register_autograd(_backward, setup_context=_save_for_backward)
_dweight.register_autograd(_refuse)
