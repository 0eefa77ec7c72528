"""Tests of hidden.py."""

import torch

from docs.exercises.harness import expect, random, small
from minipeft import hidden_from_prompt, prompt_from_tokens

HIDDEN = random(1, 5, 32)


def heads(x):
    return x.unflatten(-1, (4, 8)).transpose(1, 2)


def test_keys_and_values_of_a_block(answer):
    block = small().h[1]
    k, v = answer.keys_and_values(block, HIDDEN, 4)
    q_, k_, v_ = (heads(x) for x in block.attn.c_attn(block.ln_1(HIDDEN)).chunk(3, dim=-1))
    unbiased = heads((block.ln_1(HIDDEN) @ block.attn.c_attn.weight.T).chunk(3, dim=-1)[1])
    _, raw, raw_v = (heads(x) for x in block.attn.c_attn(HIDDEN).chunk(3, dim=-1))
    _, other, _ = (heads(x) for x in block.attn.c_attn(block.ln_2(HIDDEN)).chunk(3, dim=-1))
    tangled = k_.transpose(1, 2).reshape(1, 4, 5, 8)
    expect("keys", k, k_, {
        "they are the queries: of the three parts take the second": q_,
        "they are the values: the order is queries, keys, values": v_,
        "ln_1 is missing: a block normalises before it projects": raw,
        "the bias of c_attn is missing: call block.attn.c_attn(x), or add its bias": unbiased,
        "ln_2 was taken: that is the MLP's norm, attention's is ln_1": other,
        "heads and tokens are mixed up: view as (1, P, nh, hs) first, then transpose": tangled,
    })
    expect("values", v, v_, {"ln_1 is missing: a block normalises before it projects": raw_v,
                             "they are the keys: the order is queries, keys, values": k_})


def test_a_hidden_prefix_made_of_words_answers_as_the_words(answer):
    base, words, idx = small(), torch.tensor([3, 1, 4]), torch.tensor([[7, 8]])
    hidden = hidden_from_prompt(base, prompt_from_tokens(base, words))
    pairs = [answer.keys_and_values(block, x, 4) for block, x in zip(base.h, hidden, strict=True)]
    prefix = torch.stack([torch.stack(pair) for pair in pairs])
    text = base(torch.cat([words[None], idx], dim=1))[:, 3:]
    expect("logits with the words as a prefix (they should be those of the words as text)",
           base(idx, prefix=prefix), text)
