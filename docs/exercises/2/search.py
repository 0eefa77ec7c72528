"""Search for a hard prompt: let the gradient propose tokens, and try the best few (1712.06751, 2010.15980)."""

from collections.abc import Callable

from torch import Tensor


def promising(wte: Tensor, gradient: Tensor, i: int, k: int) -> Tensor:
    """The k tokens that would lower the loss most at place i, to first order, best first: (k,) int64.

    wte (V, C), gradient (P, C): of the loss in the prompt's embeddings.

        L(e_i → e_w) - L ≈ (e_w - e_i) · gradient_i
    """
    raise NotImplementedError("one number for each token of the vocabulary; which of them are wanted?")


def search_step(loss: Callable[[Tensor], float], wte: Tensor, tokens: Tensor, gradient: Tensor, i: int,
                k: int) -> Tensor:
    """Try the k promising tokens at place i -> the best prompt (P,): one of those k, or `tokens` if none is better.

    loss(tokens) is the loss of a prompt. The estimate is only first order, so it proposes and `loss` decides.
    `tokens` itself is not changed.
    """
    raise NotImplementedError("make k prompts that differ at place i, and keep the one with the smallest loss")
