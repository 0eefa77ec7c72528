"""The head and the cross-entropy in one, without the logits: attention over the vocabulary.

    loss = mean over n of  lse_n - x_n · w_{t_n},     lse_n = logsumexp_j(x_n · w_j)
    d loss / d x_n = (Σ_j softmax_j(x_n Wᵀ) w_j - w_{t_n}) / N

The sum is what an attention head computes for a query x_n whose keys and values are both the rows of W. So the online softmax of
FlashAttention (2205.14135 §3.1) applies: one pass over the vocabulary in chunks gives the loss and the gradient, rescaling as
larger maxima come, and no (N, V) matrix ever exists. A frozen head costs two products (logits, dx), not three. A trained one takes
two more in the backward pass, dW = softmaxᵀ x, since its chunks of logits are made again instead of kept.

Only supervised positions (target not -100) take part. Chosen inside one operator, they may be others in every batch without
torch.compile noticing. torch.nn.functional.linear_cross_entropy (torch 2.13) is the same idea; it breaks the graph of torch.compile.
"""

import math

import torch
from torch import Tensor

CHUNK = 2048  # rows of the vocabulary at a time: few enough for their logits to stay in the cache


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the logits x Wᵀ over supervised positions: x (N, C), weight (V, C), targets (N,) int64, -100 = not
    supervised. A scalar, float32 or above; nan where nothing is supervised."""
    loss, _, _ = _head_loss(x.to(weight.dtype), weight, targets, x.requires_grad)
    return loss


@torch.library.custom_op("minipeft::head_loss", mutates_args=())
def _head_loss(x: Tensor, weight: Tensor, targets: Tensor, with_dx: bool) -> tuple[Tensor, Tensor, Tensor]:
    """-> loss (), its gradient in x (N, C) (zeros at what is not supervised), lse (N,)."""
    chosen = targets != -100
    rows, t = x[chosen], targets[chosen]  # (n, C), (n,)
    wide = torch.promote_types(x.dtype, torch.float32)
    m = rows.new_full((len(rows), 1), -math.inf, dtype=wide)
    total = torch.zeros_like(m)
    mean_w = rows.new_zeros(rows.shape if with_dx else (0,), dtype=wide)
    for w in weight.split(CHUNK):
        product = rows @ w.T  # (n, CHUNK), under autocast in its type
        scores = product.to(wide)
        larger = torch.maximum(m, scores.amax(-1, keepdim=True))
        shrink, m = (m - larger).exp(), larger
        weights = scores.sub_(m).exp_()
        total = total * shrink + weights.sum(-1, keepdim=True)
        if with_dx and product.dtype == wide:
            mean_w.mul_(shrink).addmm_(weights, w)
        elif with_dx:
            mean_w.mul_(shrink).add_(weights.to(product.dtype) @ w)
    own = weight[t].to(wide)  # (n, C)
    lse = m + total.log()
    loss = (lse.squeeze(-1) - (rows.to(wide) * own).sum(-1)).mean()
    dx = torch.zeros_like(x)
    if with_dx:
        dx[chosen] = ((mean_w / total - own) / len(rows)).to(x.dtype)
    all_lse = lse.new_zeros(len(x))
    all_lse[chosen] = lse.squeeze(-1)
    return loss, dx, all_lse


@torch.library.custom_op("minipeft::head_loss_dweight", mutates_args=())
def _dweight(x: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, upstream: Tensor) -> Tensor:
    """The gradient of the loss in the weight, (V, C), times the gradient that comes from above, ()."""
    chosen = targets != -100
    rows, t, lse = x[chosen], targets[chosen], lse[chosen, None]
    share = (upstream / len(rows)).to(lse.dtype)
    dweight = torch.empty_like(weight)
    for w, dw in zip(weight.split(CHUNK), dweight.split(CHUNK), strict=True):
        weights = (rows @ w.T).to(lse.dtype).sub_(lse).exp_().mul_(share)
        torch.mm(weights.to(rows.dtype).T, rows, out=dw)
    return dweight.index_add_(0, t, rows * -share.to(rows.dtype))


@_head_loss.register_fake
def _(x, weight, targets, with_dx):
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((), dtype=wide), torch.empty_like(x), x.new_empty(len(x), dtype=wide)


@_dweight.register_fake
def _(x, weight, targets, lse, upstream):
    return torch.empty_like(weight)


def _keep(ctx, inputs, output):
    x, weight, targets, _ = inputs
    _, dx, lse = output
    ctx.mark_non_differentiable(dx, lse)
    ctx.trained_head = weight.requires_grad
    ctx.save_for_backward(dx, *((x, weight, targets, lse) if ctx.trained_head else ()))


def _backward(ctx, upstream, _, __):
    dx, *rest = ctx.saved_tensors
    dweight = _dweight(*rest, upstream) if ctx.trained_head else None
    return dx * upstream, dweight, None, None


_head_loss.register_autograd(_backward, setup_context=_keep)
