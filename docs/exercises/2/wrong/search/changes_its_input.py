# `tokens` itself was changed
"""Search for a hard prompt: let the gradient propose tokens, and try the best few (1712.06751, 2010.15980)."""

from collections.abc import Callable

from torch import Tensor


def promising(wte: Tensor, gradient: Tensor, i: int, k: int) -> Tensor:
    """The k tokens that would lower the loss most at place i, to first order, best first: (k,) int64.

    wte (V, C), gradient (P, C): of the loss in the prompt's embeddings.

        L(e_i → e_w) - L ≈ (e_w - e_i) · gradient_i
    """
    change = wte @ gradient[i]  # (V,); e_i · gradient_i is the same for all
    return change.topk(k, largest=False).indices


def search_step(loss: Callable[[Tensor], float], wte: Tensor, tokens: Tensor, gradient: Tensor, i: int,
                k: int) -> Tensor:
    """Try the k promising tokens at place i -> the best prompt (P,): one of those k, or `tokens` if none is better.

    loss(tokens) is the loss of a prompt. The estimate is only first order, so it proposes and `loss` decides.
    `tokens` itself is not changed.
    """
    best, lowest = tokens, loss(tokens)
    for w in promising(wte, gradient, i, k):
        tried = tokens
        tried[i] = w
        if (its := loss(tried)) < lowest:
            best, lowest = tried.clone(), its
    return best
