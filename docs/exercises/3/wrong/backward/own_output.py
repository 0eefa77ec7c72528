# D was made of the prefix
"""Custom backward of the prefix part: only the merged output and log-sum-exp are saved."""

from torch import Tensor


def prefix_gradients(do: Tensor, q: Tensor, pk: Tensor, pv: Tensor, o: Tensor,
                     lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The prefix part's share of the gradients of attention over [prefix ; text].

    do, q, o    (N, T, hs): N heads of the batch that share a prefix; o is the *merged* output
    lse         (N, T, 1): the *merged* log-sum-exp, over prefix and text
    pk, pv      (P, hs)
    returns     dq (N, T, hs): the text's part is added to it elsewhere;  dpk, dpv (P, hs): summed over N

        S = q pkᵀ / √hs      W = exp(S - lse)      D = rowsum(do ∘ o)      dS = W ∘ (do pvᵀ - D)
        (N, T, P)            (N, T, P)             (N, T, 1)               (N, T, P)
        dq = dS pk / √hs     dpk = dSᵀ q / √hs     dpv = Wᵀ do                (FlashAttention-2, 2307.08691 §2.3)
    """
    scale = q.size(-1) ** 0.5
    W = (q @ pk.T / scale - lse).exp()  # (N, T, P)
    D = (do * ((q @ pk.T / scale).softmax(dim=-1) @ pv)).sum(dim=-1, keepdim=True)  # (N, T, 1)
    dS = W * (do @ pv.T - D)
    return dS @ pk / scale, (dS.mT @ q).sum(dim=0) / scale, (W.mT @ do).sum(dim=0)
