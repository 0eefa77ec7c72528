"""Turning logits into text."""

import torch
from torch import Tensor


@torch.no_grad()
def generate(model, idx: Tensor, max_new_tokens: int, *, stop_token: int | None = None) -> Tensor:
    """Greedy decoding: idx (B, T) int64 -> (B, <= T + max_new_tokens), the most likely token appended each time.

    model is a base or an Adapted. Stops when every row has produced stop_token; rows that have are filled up with it.
    """
    done = torch.zeros(idx.size(0), dtype=torch.bool, device=idx.device)
    for _ in range(max_new_tokens):
        token = model(idx)[:, -1].argmax(dim=-1)  # (B,)
        if stop_token is not None:
            token = torch.where(done, stop_token, token)
            done = done | (token == stop_token)
        idx = torch.cat([idx, token[:, None]], dim=1)
        if done.all():
            break
    return idx
