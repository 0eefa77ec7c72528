"""Each rung of the ladder contains the one before it: the same logits, to rounding."""

import re

import pytest
import torch
from conftest import one_shape, read_behind, tiny

from minipeft import (
    Error,
    Prefix,
    adapt,
    hidden_from_prompt,
    prefix_attention,
    prefix_from_hidden,
    prefix_from_prompt,
    prompt_from_tokens,
)

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("P", [1, 6])
def test_text_soft_prompt_hidden_prefix_and_prefix_give_the_same_logits(shape, dtype, P, idx):
    base = tiny(shape, dtype)
    tokens = torch.randint(97, (P,))
    prompt = prompt_from_tokens(base, tokens)
    hidden = hidden_from_prompt(base, prompt)
    assert prompt.shape == (1, P, 32) and hidden.shape == (3, 1, P, 32)
    prefix = prefix_from_hidden(base, hidden)
    assert prefix.shape == (3, 2, 1, base.config.n_kv, P, base.config.head_size)
    read = read_behind(base, tokens, idx)  # the text read aloud before the input
    close = dict(rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(base(idx, prompt=prompt), read, **close)
    torch.testing.assert_close(base(idx, prefix=prefix), read, **close)
    torch.testing.assert_close(prefix_from_prompt(base, prompt), prefix, rtol=0, atol=0)
    assert (base(idx) - read).abs().max() > 0.1  # and the prompt does matter


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_hidden_prefix_is_what_the_article_draws(shape, dtype, idx):
    """Vectors concatenated to every block's input, their outputs dropped, are their keys and values in the slot."""
    base, P, T = tiny(shape, dtype), 5, idx.size(1)
    hidden = torch.randn(3, 1, P, 32, dtype=dtype)
    x, _ = base.add_positions(base.embed(idx), first=P)
    _, ropes = base.add_positions(torch.zeros(1, P + T, 32, dtype=dtype))
    for block, rope, h in zip(base.h, ropes, hidden, strict=True):
        x = block(torch.cat([h.expand(3, -1, -1), x], dim=1), rope, virtual=P)[:, P:]
    literal = base.ln_f(x) @ base.head.T
    torch.testing.assert_close(
        base(idx, prefix=prefix_from_hidden(base, hidden)), literal, rtol=0, atol=TOLERANCE[dtype]
    )


def test_gradients_reach_a_hidden_prefix(base, idx):
    hidden = torch.randn(3, 1, 2, 32, requires_grad=True)
    base(idx, prefix=prefix_from_hidden(base, hidden)).sum().backward()
    assert (hidden.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_a_rung_starts_with_the_loss_of_the_one_below(base, idx):
    """Hard prompt -> soft prompt -> hidden prefix -> prefix, and every shortcut."""
    rungs = [adapt(base, "hard-prompt", tokens=torch.tensor([7, 8, 9]))]
    for name, h in (("prompt", {}), ("prefix", dict(space="hidden")), ("prefix", {})):
        above = [adapt(base, name, init=below.method.ladder_value().detach(), **h) for below in rungs]
        for model in above:
            torch.testing.assert_close(model.loss(idx, idx), rungs[0].loss(idx, idx), rtol=1e-5, atol=0)
            assert model.method.num_virtual_tokens == 3
        rungs.append(above[-1])


def test_the_way_through_with_edits(base, idx):
    """A prompt tuned together with LoRA climbs through the edited blocks."""
    model = adapt(base, ["prompt", "lora"])
    with torch.no_grad():
        for p in model.trainable_parameters():
            p.add_(0.2 * torch.randn_like(p))
    slots = model.slots()
    prefix = prefix_from_prompt(base, slots.prompt, slots.hooks)
    torch.testing.assert_close(base(idx, prefix=prefix, hooks=slots.hooks), model(idx), rtol=0, atol=2e-5)
    assert (prefix - prefix_from_prompt(base, slots.prompt)).abs().max() > 0.01


def test_a_zero_prefix_is_not_nothing(base, idx):
    """Keys of zeros score 0, so each takes exp(0): beside P of them a text of equal scores keeps T / (P + T)."""
    zero = torch.zeros(3, 2, 1, base.config.n_kv, 5, base.config.head_size)
    assert (base(idx, prefix=zero) - base(idx)).abs().max() > 0.1
    v = torch.randn(1, 1, 6, 8)
    q = k = torch.zeros(1, 1, 6, 8)  # all scores 0
    nothing = torch.zeros(1, 1, 3, 8)
    with_zeros, without = prefix_attention(q, k, v, nothing, nothing), prefix_attention(q, k, v)
    seen = torch.arange(1, 7).view(6, 1)
    torch.testing.assert_close(with_zeros, without * seen / (seen + 3))


@one_shape
def test_what_does_not_fit_is_refused(base):
    with pytest.raises(Error, match="0 … 96"):
        prompt_from_tokens(base, torch.tensor([97]))
    with pytest.raises(Error, match="int64"):
        prompt_from_tokens(base, torch.tensor([1.0]))
    with pytest.raises(Error, match=r"\(1, P, 32\)"):
        hidden_from_prompt(base, torch.zeros(1, 4, 31))
    with pytest.raises(Error, match=r"\(3, 1, P, 32\)"):
        prefix_from_hidden(base, torch.zeros(2, 1, 4, 32))
    with pytest.raises(Error, match="49 virtual tokens exceed the base's block size of 48"):
        prefix_from_prompt(base, torch.zeros(1, 49, 32))


@pytest.mark.parametrize("name, init, shape", [
    ("prefix", (3, 2, 1, 8, 5, 4), "(3, 2, 1, 4, P, 8)"),  # heads and head size exchanged
    ("prefix", (6, 2, 1, 4, 5, 4), "(3, 2, 1, 4, P, 8)"),  # as many elements, twice the layers
    ("prefix", (3, 2, 5, 4, 5, 8), "(3, 2, 1, 4, P, 8)"),  # of a batch of five
    ("prefix", (2, 1, 5, 32), "(3, 1, P, 32)"),
    ("prompt", (2, 5, 32), "(1, P, 32)"), ("prompt", (1, 5, 31), "(1, P, 32)"),
])
def test_a_start_of_another_shape_is_refused(name, init, shape):
    with pytest.raises(Error, match=re.escape(f"must be {shape}")):
        adapt(tiny(), name, init=torch.zeros(init))


@pytest.mark.parametrize("change, message", [
    (dict(v=torch.zeros(3, 1, 4, 4, 8)), "init's values"), (dict(bias=torch.zeros(3, 1, 4, 4)), "init's bias"),
    (dict(positions="x"), "positions of a prefix must be 0 … 47"),
])
def test_a_start_from_a_prefix_that_does_not_fit_is_refused(change, message):
    with pytest.raises(Error, match=message):
        adapt(tiny(), "prefix", init=Prefix(*torch.zeros(2, 3, 1, 4, 5, 8))._replace(**change))
