"""Defaults and starts of the methods: sizes of random starts, dropout's share, learning rates."""

import pytest
import torch
from conftest import tiny

from minipeft import GPT, METHODS, GPTConfig, adapt
from minipeft.methods.lora import LowRank


def test_dropout_takes_the_share_that_it_is_given():
    y = LowRank(torch.eye(64), torch.eye(64), 1.0, dropout=0.1)(torch.ones(2000, 64), torch.zeros(2000, 64))
    assert (y == 0).float().mean().item() == pytest.approx(0.1, abs=0.01)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.9))


def test_a_start_from_the_vocabulary_draws_from_all_of_it():
    base = tiny()
    rows = adapt(base, "prompt", num_virtual_tokens=40, init="vocab").method.prompt_embeddings
    ids = [(base.embed(torch.arange(97)) == row).all(dim=1).nonzero().item() for row in rows]
    assert len(set(ids)) > 20 and min(ids) < 20 and max(ids) > 77


def test_random_starts_have_the_spread_that_they_say():
    base = tiny("gemma3")  # which scales its embeddings, by sqrt(C)
    embedded = base.embed(torch.arange(97)).std().item()
    assert embedded > 1.5 * base.wte.weight.std().item()
    prompt = adapt(base, "prompt", num_virtual_tokens=40, init="random").method.prompt_embeddings
    prefix = adapt(base, "prefix", num_virtual_tokens=40).method.prompt_embeddings
    prompts = adapt(base, "llama-adapter", adapter_len=20).method.adaption_prompt
    for rows in (prompt, prefix, prompts):
        assert rows.std().item() == pytest.approx(embedded, rel=0.1)
    down = adapt(base, "adapter", bottleneck_size=64).method.layers[0]["mlp"].down
    assert down.std().item() == pytest.approx(32**-0.5, rel=0.1)  # of y it makes as large a sum
    mlp = adapt(base, "prefix", num_virtual_tokens=40, prefix_projection=True).method.embedding
    assert mlp.std().item() == pytest.approx(1, rel=0.1)


RATES = {  # narrow and wide bases
    "full": (1e-3, 1e-4), "prompt": (0.1, 3e-2), "prefix": (0.1, 3e-2), "lora": (2e-2, 2e-3), "adapter": (1e-2, 2e-3),
    "llama-adapter": (0.1, 3e-2), "bitfit": (0.1, 1e-3), "ia3": (0.1, 3e-3), "prefix-memory": (3e-2, 2e-3)}


def test_default_rates_are_those_that_were_chosen():
    assert {name: (METHODS[name].learning_rate, METHODS[name].learning_rate_wide) for name in RATES} == RATES
    wide = GPT(GPTConfig(vocab_size=11, block_size=16, n_layer=1, n_head=2, n_embd=512))
    rates = [adapt(base, "prefix", prefix_projection=True).parameter_groups()[0]["lr"] for base in (tiny(), wide)]
    assert rates == [0.01, 3e-3]
