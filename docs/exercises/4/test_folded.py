"""Tests of folded.py."""

import torch

from docs.exercises.harness import check, expect, random
from minipeft import GPT, GPTConfig, adapt

SHAPES = [(5, 8), (3, 8), (3,), (48, 3), (48,)]
E, W1, B1, W2, B2 = (random(*shape, seed=i).requires_grad_() for i, shape in enumerate(SHAPES))


def shaped(rows):
    return rows.detach().view(5, 3, 2, 2, 4).permute(1, 2, 3, 0, 4).unsqueeze(2)


def test_the_prefix_is_the_output_of_the_mlp(answer):
    got = answer.fold(E, W1, B1, W2, B2, 3, 2)
    inner = E @ W1.T + B1
    rows = inner.tanh() @ W2.T + B2
    tangled = rows.detach().reshape(3, 2, 2, 5, 4).unsqueeze(2)
    expect("the prefix", got, shaped(rows), {
        "there is no tanh between the two layers": shaped(inner @ W2.T + B2),
        "a relu stands between the two layers: the code has tanh": shaped(inner.relu() @ W2.T + B2),
        "a second tanh: the last layer is linear": shaped(rows.tanh()),
        "the biases are missing": shaped((E @ W1.T).tanh() @ W2.T),
        "the biases are missing in the last layer": shaped(inner.tanh() @ W2.T),
        "tokens and layers are mixed up: a row is one token, so view as (P, L, 2, nh, hs) first, then permute": tangled,
        "keys and values of all layers in turn were expected: a row has layer 0's key, its value, layer 1's key, …":
            rows.detach().view(5, 2, 3, 2, 4).permute(2, 1, 3, 0, 4).unsqueeze(2),
    })
    check(not got.requires_grad, "the prefix needs a gradient still: what is stored is cut off from the MLP")


def test_it_is_what_minipeft_stores(answer):
    torch.manual_seed(0)
    base = GPT(GPTConfig(vocab_size=11, block_size=32, n_layer=3, n_head=2, n_embd=8)).double()
    model = adapt(base, "prefix", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=3)
    m = model.method
    first, _, second = m.transform
    got = answer.fold(m.embedding, first.weight, first.bias, second.weight, second.bias, 3, 2)
    expect("the prefix of a model with prefix_projection=True", got, m.ladder_value().detach())
