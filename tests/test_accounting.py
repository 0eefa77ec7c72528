"""Every closed form against the tensors it counts."""

import pytest

from minipeft import GPT, PRESETS, Error, GPTConfig, accounting, adapt

SHAPES = [
    GPTConfig(vocab_size=97, block_size=48, n_layer=3, n_head=4, n_embd=32),
    GPTConfig(vocab_size=50, block_size=16, n_layer=1, n_head=1, n_embd=8, position="rotary"),
    GPTConfig(vocab_size=257, block_size=64, n_layer=5, n_head=6, n_embd=48),
]
SETTINGS = [
    ("full", {}),
    ("prompt", dict(num_virtual_tokens=5)),
    ("prefix", dict(num_virtual_tokens=5)),
    ("prefix", dict(num_virtual_tokens=1, space="hidden")),
    ("prefix", dict(num_virtual_tokens=5, prefix_projection=True)),
    ("prefix", dict(num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=11, space="hidden")),
]


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("method, h", SETTINGS)
def test_trained_and_stored_are_what_the_tensors_hold(config, method, h):
    base = GPT(config)
    total = sum(p.numel() for p in base.parameters())
    assert accounting.base_parameters(config) == total
    model = adapt(base, method, **h)
    trained = sum(p.numel() for p in model.trainable_parameters())
    stored = total if method == "full" else sum(t.numel() for t in model.method.tensors().values())
    assert accounting.count(config, method, **h) == (trained, stored)


@pytest.mark.parametrize(
    "preset, published",
    [  # totals of the released checkpoints
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_gpt2s_published_totals(preset, published):
    assert accounting.base_parameters(PRESETS[preset]) == published


def test_counts_that_peft_prints_for_gpt2():
    assert accounting.count(PRESETS["gpt2"], "prefix", num_virtual_tokens=20).stored == 368_640
    assert accounting.count(PRESETS["gpt2"], "prompt", num_virtual_tokens=20).stored == 15_360


def test_the_articles_arithmetic():
    """Five virtual tokens of 4,096 numbers."""
    wide = GPTConfig(n_embd=4096, n_head=64)
    assert accounting.count(wide, "prompt", num_virtual_tokens=5) == (20_480, 20_480)


@pytest.mark.parametrize(
    "method, h, message",
    [
        ("magic", {}, "full, prompt, prefix"),
        ("prompt", dict(length=3), "depends on num_virtual_tokens, not on 'length'"),
        ("full", dict(r=3), "the shape alone"),
        ("prompt", dict(num_virtual_tokens=-5), "at least 1, not -5"),
        ("prefix", dict(space="keys"), "'kv' or 'hidden'"),
    ],
)
def test_what_cannot_be_counted_is_refused(method, h, message):
    with pytest.raises(Error, match=message):
        accounting.count(PRESETS["gpt2"], method, **h)
