#!/usr/bin/env python3
"""The ladder in one sitting: a frozen GPT, and four ways to tune it, each containing the one before.

    hard prompt      P tokens of the vocabulary                          P choices of V, found by search
    soft prompt      P vectors before the token embeddings               P·C parameters     2104.08691
    hidden prefix    P vectors before the input of every block           L·P·C
    prefix           P keys and P values in the attention of every block 2·L·P·C            2101.00190

    python docs/ladder_from_scratch.py           under two minutes on two CPU cores; needs torch alone

Nothing is imported from minipeft; only the weights of its smallest base, nano, are read. nano knows
eight skills on strings of digits when their name stands before the input ("reverse: 58213764 -> ").
The examples here never name the skill, so the base cannot know what is wanted. Tuning has to say it.

Sizes: B rows, T real tokens, P virtual tokens, C channels, L layers, NH heads, HS = C / NH, V vocabulary.
"""

import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

L, NH, C, V = 4, 4, 128, 257  # nano: 826,240 parameters
HS, END = C // NH, 256  # ids 0-255 are the bytes of the text, 256 ends an answer
NANO = Path(__file__).resolve().parent.parent / "minipeft" / "data" / "nano" / "pytorch_model.bin"


# 1. A GPT. Its weights w are a dictionary of tensors; the file stores linears as (in, out).


def linear(w: dict, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def norm(w: dict, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (C,), w[f"{name}.weight"], w[f"{name}.bias"])


def rotate(x: Tensor, first: int) -> Tensor:
    """Rotary positions first, first + 1, …: turn channels i and i + HS/2 of x (B, NH, T, HS) by an angle."""
    frequency = 10000.0 ** (-torch.arange(0, HS, 2) / HS)  # (HS/2,)
    angle = torch.arange(first, first + x.size(2))[:, None] * frequency  # (T, HS/2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def qkv(w: dict, layer: int, x: Tensor, first: int) -> list[Tensor]:
    """x (B, T, C) -> queries, keys, values, each (B, NH, T, HS)."""
    y = linear(w, f"h.{layer}.attn.c_attn", norm(w, f"h.{layer}.ln_1", x))
    q, k, v = (z.view(*x.shape[:2], NH, HS).transpose(1, 2) for z in y.chunk(3, dim=-1))
    return [rotate(q, first), rotate(k, first), v]


def block(w: dict, layer: int, x: Tensor, prefix: Tensor | None = None) -> Tensor:
    """x (B, T, C) -> (B, T, C). prefix (2, 1, NH, P, HS): keys, already rotated, and values from outside."""
    B, T, _ = x.shape
    P = 0 if prefix is None else prefix.size(3)
    q, k, v = qkv(w, layer, x, first=P)
    if prefix is not None:  # PREFIX TUNING IS THIS LINE: keys and values that no token made
        k = torch.cat([prefix[0].expand(B, -1, -1, -1), k], dim=2)  # (B, NH, P + T, HS)
        v = torch.cat([prefix[1].expand(B, -1, -1, -1), v], dim=2)
    scores = q @ k.mT / math.sqrt(HS)  # (B, NH, T, P + T)
    sees = torch.ones(T, P + T, dtype=torch.bool).tril(P)  # P columns are open to every query, then causal
    heads = scores.masked_fill(~sees, -math.inf).softmax(dim=-1) @ v  # (B, NH, T, HS)
    x = x + linear(w, f"h.{layer}.attn.c_proj", heads.transpose(1, 2).reshape(B, T, C))
    inner = F.gelu(linear(w, f"h.{layer}.mlp.c_fc", norm(w, f"h.{layer}.ln_2", x)), approximate="tanh")
    return x + linear(w, f"h.{layer}.mlp.c_proj", inner)


def gpt(w: dict, idx: Tensor, prompt: Tensor | None = None, hidden: Tensor | None = None,
        prefix: Tensor | None = None) -> Tensor:
    """idx (B, T) -> logits of the real tokens (B, T, V). Before them, at positions 0 … P-1, at most one of

    prompt (1, P, C)      hidden (L, 1, P, C)      prefix (L, 2, 1, NH, P, HS)
    """
    B, T = idx.shape
    x = w["wte.weight"][idx]  # (B, T, C)
    if prompt is not None:  # PROMPT TUNING IS THIS LINE: vectors that no token has
        x = torch.cat([prompt.expand(B, -1, -1), x], dim=1)  # (B, P + T, C)
    for layer in range(L):
        if hidden is not None:  # the same again at every block; what came out at these places is dropped
            x = torch.cat([hidden[layer].expand(B, -1, -1), x[:, -T:]], dim=1)
        x = block(w, layer, x, None if prefix is None else prefix[layer])
    return norm(w, "ln_f", x[:, -T:]) @ w["wte.weight"].T  # the head is the table of embeddings


# 2. The ladder: each level rewritten as the next one.


def prompt_from_tokens(w: dict, tokens: Tensor) -> Tensor:
    """Hard -> soft: tokens (P,) -> their embeddings (1, P, C)."""
    return w["wte.weight"][tokens][None]


def hidden_from_prompt(w: dict, prompt: Tensor) -> Tensor:
    """Soft -> hidden: what the prompt has become at the input of every block, (L, 1, P, C).

    Attention is causal and virtual tokens stand first, so this does not depend on the text behind them.
    """
    inputs = [prompt]
    for layer in range(L - 1):
        inputs.append(block(w, layer, inputs[-1]))
    return torch.stack(inputs)


def prefix_from_hidden(w: dict, hidden: Tensor) -> Tensor:
    """Hidden -> prefix: the keys and values that each block makes of its vectors, (L, 2, 1, NH, P, HS).

    Real tokens see the virtual ones only as keys and values, so nothing else need be stored.
    """
    return torch.stack([torch.stack(qkv(w, layer, hidden[layer], first=0)[1:]) for layer in range(L)])


@torch.no_grad()
def check_the_ladder(w: dict) -> None:
    """Assert that each level contains the one before it, and that no level contains the next."""
    idx = torch.tensor([list(b"58213764 -> ")])  # (1, T)
    words = torch.tensor(list(b"reverse: "))  # (P,)
    prompt = prompt_from_tokens(w, words)
    hidden = hidden_from_prompt(w, prompt)
    prefix = prefix_from_hidden(w, hidden)
    as_text = gpt(w, torch.cat([words[None], idx], dim=1))[:, -idx.size(1) :]
    for name, logits in (("soft prompt", gpt(w, idx, prompt=prompt)),
                         ("hidden prefix", gpt(w, idx, hidden=hidden)),
                         ("prefix", gpt(w, idx, prefix=prefix))):
        difference = float((logits - as_text).abs().max())
        assert difference < 1e-3, f"{name}: the logits moved by {difference}"
        print(f"  the words 'reverse: ' as a {name:<14} largest difference of a logit {difference:.0e}")
    # No way down. Hidden: any vectors at block 1, where a prompt gives those that block 0 made of it.
    free = torch.randn_like(hidden)
    assert (hidden_from_prompt(w, free[0])[1] - free[1]).norm() > 0.5 * free[1].norm()
    # Prefix: a key and a value are 2·C channels; a vector with C channels reaches half of the directions.
    to_key_and_value = w["h.0.attn.c_attn.weight"][:, C:].T  # (2C, C)
    target = torch.randn(2 * C, 1)
    nearest = to_key_and_value @ torch.linalg.lstsq(to_key_and_value, target).solution
    assert (target - nearest).norm() > 0.5 * target.norm()
    print("  no way down: most hidden prefixes come from no prompt, most prefixes from no hidden prefix")


# 3. The task, and tuning.


def examples(seed: str, rows: int) -> tuple[Tensor, Tensor]:
    """58213764 -> 46731285: idx (B, T) and targets (B, T), the next token in the answer and -100 elsewhere."""
    rng = random.Random(seed)
    idx, targets = [], []
    for _ in range(rows):
        digits = "".join(rng.choice("0123456789") for _ in range(8))
        question, answer = list(f"{digits} -> ".encode()), [*digits[::-1].encode(), END]
        idx.append((question + answer)[:-1])
        targets.append([-100] * (len(question) - 1) + answer)
    return torch.tensor(idx), torch.tensor(targets)


def loss_of(w: dict, batch: tuple[Tensor, Tensor], **tuned: Tensor) -> Tensor:
    """Mean cross-entropy of the answers, in nats per token."""
    idx, targets = batch
    return F.cross_entropy(gpt(w, idx, **tuned).flatten(0, 1), targets.flatten(), ignore_index=-100)


@torch.no_grad()
def exact_match(w: dict, **tuned: Tensor) -> float:
    """Share of 200 held-out answers that are right to the last token."""
    idx, targets = examples("held out", 200)
    right = gpt(w, idx, **tuned).argmax(dim=-1) == targets
    return float((right | (targets == -100)).all(dim=1).float().mean())


def search_tokens(w: dict, P: int, steps: int, seconds: float) -> Tensor:
    """Hard prompt: swap one token at a time, tokens being chosen by the gradient (1712.06751, 2010.15980).

    To first order, token v at place i changes the loss by (e_v - e_i) · ∂loss/∂e_i. The most promising
    eight are tried on another batch. Only letters are tried, so that the result can be read.
    """
    letters = torch.tensor(list(b"abcdefghijklmnopqrstuvwxyz"))
    tokens = torch.cat([letters[torch.randint(26, (P - 2,))], torch.tensor(list(b": "))])  # "kqxwvz: "
    begin = time.monotonic()
    for step in range(steps):
        if time.monotonic() - begin > seconds:
            break
        prompt = prompt_from_tokens(w, tokens).requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(w, examples(f"a{step}", 16), prompt=prompt), prompt)
        i = step % (P - 2)
        promise = w["wte.weight"][letters] @ gradient[0, i]  # (26,)
        tries = tokens.repeat(9, 1)
        tries[1:, i] = letters[promise.topk(8, largest=False).indices]
        with torch.no_grad():
            check = examples(f"b{step}", 16)
            losses = [loss_of(w, check, prompt=prompt_from_tokens(w, t)) for t in tries]
        tokens = tries[int(torch.stack(losses).argmin())]
    return tokens


def tune(w: dict, kind: str, start: Tensor, steps: int, seconds: float, lr: float = 0.1) -> Tensor:
    """Backpropagation through the frozen blocks to the one tensor that is trained."""
    x = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([x], lr=lr, weight_decay=0.0)
    step, begin = 0, time.monotonic()
    while (done := max(step / steps, (time.monotonic() - begin) / seconds)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - done)
        loss = loss_of(w, examples(f"a{step}", 16), **{kind: x})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    return x.detach()


def main(steps: int = 300, seconds: float = 20.0, P: int = 8) -> list[tuple[str, int, float]]:
    """Print the ladder and the table; return its rows (what, parameters, exact match)."""
    torch.set_num_threads(1)  # tensors this small gain nothing from a second one
    torch.manual_seed(0)
    stored = torch.load(NANO, weights_only=True)
    w = {name.removeprefix("transformer."): x for name, x in stored.items()}  # frozen: none requires grad
    print(f"nano: {sum(x.numel() for x in w.values()):,} parameters, all frozen\n")
    print("The ladder")
    check_the_ladder(w)

    print(f"\nTuning on reverse, its name never shown: at most {steps} steps or {seconds:.0f} s each")
    rows = [("base alone", 0, exact_match(w))]
    begin = time.monotonic()
    tokens = search_tokens(w, P, steps // 4, seconds)
    wording = bytes(tokens.tolist()).decode()
    rows.append((f"hard prompt {wording!r}", 0, exact_match(w, prompt=prompt_from_tokens(w, tokens))))
    print(f"  hard prompt    {time.monotonic() - begin:4.1f} s, it reads {wording!r}")
    std = float(w["wte.weight"].std())
    for name, kind, shape in (("soft prompt", "prompt", (1, P, C)),
                              ("hidden prefix", "hidden", (L, 1, P, C)),
                              ("prefix", "prefix", (L, 2, 1, NH, P, HS))):
        begin = time.monotonic()
        x = tune(w, kind, std * torch.randn(shape), steps, seconds)
        rows.append((name, x.numel(), exact_match(w, **{kind: x})))
        print(f"  {name:<14} {time.monotonic() - begin:4.1f} s")

    adds = ("", "tokens before the text", "vectors that no token has", "vectors of its own for every block",
            "keys and values that no vector gives")
    print(f"\n{'P = ' + str(P):<24}{'parameters':>12}{'exact match':>14}   the level adds")
    for (what, parameters, exact), new in zip(rows, adds, strict=True):
        print(f"{what:<24}{parameters:>12,}{exact:>14.2f}   {new}".rstrip())
    print("\nA level can do what the levels above it in the table do. Here each says which of nano's skills is wanted.")
    return rows


if __name__ == "__main__":
    main()
