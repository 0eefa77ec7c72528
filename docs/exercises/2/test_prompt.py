"""Tests of prompt.py."""

import torch

from docs.exercises.harness import check, expect, random, small
from minipeft import prompt_from_tokens

IDX = torch.tensor([[3, 14, 15, 9], [26, 5, 35, 8]])


def run(base, x, places, kept):
    """Logits of the rows `kept` of embeddings x (B, S, C) at these places."""
    x = x + base.wpe(torch.tensor(places))
    for block in base.h:
        x = block(x)
    return base.ln_f(x[:, kept]) @ base.head.T


def test_logits_of_the_real_tokens(answer):
    base, prompt = small(), random(1, 3, 32)
    words, rows = base.wte(IDX), prompt.expand(2, -1, -1)
    before, behind = torch.cat([rows, words], dim=1), torch.cat([words, rows], dim=1)
    unplaced = torch.cat([rows - base.wpe(torch.arange(3)), words], dim=1)
    got = answer.logits_with_prompt(base, IDX, prompt)
    check(getattr(got, "shape", ()) != (2, 7, 50), "logits: P + T rows came out; drop the rows of the virtual tokens")
    expect("logits", got, base(IDX, prompt=prompt), {
        "the last rows were dropped, not the virtual tokens': they stand first":
            run(base, before, [*range(7)], slice(0, 4)),
        "the prompt stands behind the text, where causal attention hides it":
            run(base, behind, [*range(7)], slice(0, 4)),
        "positions were added before the prompt: real tokens stand at P, P + 1, …, not at 0":
            run(base, before, [0, 1, 2, 0, 1, 2, 3], slice(3, 7)),
        "the prompt has no positions, and real tokens start at 0: add positions to all P + T rows":
            run(base, unplaced, [0, 1, 2, 0, 1, 2, 3], slice(3, 7)),
        "the last norm is missing: base.ln_f before the head": hidden_without_norm(base, before) @ base.head.T,
    })


def hidden_without_norm(base, x):
    x = x + base.wpe(torch.arange(7))
    for block in base.h:
        x = block(x)
    return x[:, 3:]


def test_a_prompt_of_embeddings_is_the_text(answer):
    base, words = small(), torch.tensor([7, 8, 9])
    text = base(torch.cat([words.expand(2, -1), IDX], dim=1))[:, 3:]
    expect("logits with the embeddings of three tokens as prompt (they should be those of the tokens as text)",
           answer.logits_with_prompt(base, IDX, prompt_from_tokens(base, words)), text)


def test_the_prompt_gets_a_gradient(answer):
    prompt = random(1, 3, 32).requires_grad_()
    logits = answer.logits_with_prompt(small(), IDX, prompt)
    check(logits.requires_grad, "no gradient reaches the prompt: no detach() and no torch.no_grad() on the way")
