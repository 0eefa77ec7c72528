"""Every closed form against the tensors it counts."""

import pytest
import torch
from conftest import SHAPES as BASES
from conftest import in_shape
from torch.utils.flop_counter import FlopCounterMode

from minipeft import GPT, PRESETS, Error, GPTConfig, accounting, adapt, model
from minipeft.config import LLAMA, linears

SHAPES = [
    GPTConfig(vocab_size=97, block_size=48, n_layer=3, n_head=4, n_embd=32),
    GPTConfig(vocab_size=50, block_size=16, n_layer=1, n_head=1, n_embd=8, position="rotary"),
    GPTConfig(vocab_size=257, block_size=64, n_layer=5, n_head=6, n_embd=48),
    GPTConfig(vocab_size=97, block_size=48, n_layer=3, n_head=4, n_embd=32, **BASES["llama"]),
    GPTConfig(vocab_size=50, block_size=16, n_layer=2, n_head=6, n_embd=48, n_kv_head=3, n_inner=56,
              **LLAMA | {"bias": "qkv"}),  # Qwen2's
]
SETTINGS = [
    ("full", {}),
    ("prompt", dict(num_virtual_tokens=5)),
    ("prefix", dict(num_virtual_tokens=5)),
    ("prefix", dict(num_virtual_tokens=1, space="hidden")),
    ("prefix", dict(num_virtual_tokens=5, prefix_projection=True)),
    ("prefix", dict(num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=11, space="hidden")),
    ("lora", dict(r=3)),
    ("lora", dict(r=2, target_modules=("c_proj", "mlp.c_fc"))),
    ("adapter", dict(bottleneck_size=3)),
    ("adapter", dict(bottleneck_size=5, placement="pfeiffer")),
    ("llama-adapter", dict(adapter_len=4)),
    ("llama-adapter", dict(adapter_len=4, adapter_layers=1)),
]
DEFAULTS = [(method, {}) for method in ("prompt", "prefix", "lora", "adapter", "llama-adapter")]


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("method, h", SETTINGS + DEFAULTS)
def test_trained_and_stored_are_what_the_tensors_hold(config, method, h):
    base, h = GPT(config), in_shape(config, h)
    total = sum(p.numel() for p in base.parameters())
    assert accounting.base_parameters(config) == total
    model = adapt(base, method, **h)
    trained = sum(p.numel() for p in model.trainable_parameters())
    stored = total if method == "full" else sum(t.numel() for t in model.method.tensors().values())
    assert accounting.count(config, method, **h) == (trained, stored)


def test_a_hard_prompt_trains_nothing_and_stores_its_tokens():
    model = adapt(GPT(SHAPES[0]), "hard-prompt", tokens=torch.tensor([1, 2, 3]))
    stored = sum(t.numel() for t in model.method.tensors().values())
    assert accounting.count(SHAPES[0], "hard-prompt", num_virtual_tokens=3) == (0, stored)
    with pytest.raises(Error, match="no training step"):
        accounting.step_flops(SHAPES[0], "hard-prompt", 2, 9)


PUBLISHED = [  # totals of the released checkpoints
    ("gpt2", 124_439_808),
    ("gpt2-medium", 354_823_168),
    ("gpt2-large", 774_030_080),
    ("gpt2-xl", 1_557_611_200),
    ("smollm2-135m", 134_515_008),
    ("tinyllama-1.1b", 1_100_048_384),
    ("llama-3.2-1b", 1_235_814_400),
    ("qwen2.5-0.5b", 494_032_768),
]


@pytest.mark.parametrize("preset, published", PUBLISHED)
def test_published_totals(preset, published):
    assert accounting.base_parameters(PRESETS[preset]) == published
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT(PRESETS[preset]).parameters()) == published


def test_counts_that_peft_prints_for_gpt2():
    assert accounting.count(PRESETS["gpt2"], "prefix", num_virtual_tokens=20).stored == 368_640
    assert accounting.count(PRESETS["gpt2"], "prompt", num_virtual_tokens=20).stored == 15_360
    assert accounting.count(PRESETS["gpt2"], "lora", r=8, target_modules=("c_attn",)).stored == 294_912


@pytest.mark.parametrize("target_modules", [["c_attn"], ["c_attn", "c_proj", "c_fc"]])
@pytest.mark.parametrize("method", ["prompt", "prefix", "lora"])
def test_counts_are_those_of_pefts_own_models_of_gpt2(method, target_modules):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    kinds = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig, "lora": peft.LoraConfig}
    h = dict(r=8, target_modules=target_modules) if method == "lora" else dict(num_virtual_tokens=20)
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    extra = dict(fan_in_fan_out=True) if method == "lora" else {}
    model = peft.get_peft_model(theirs, kinds[method](task_type="CAUSAL_LM", **h, **extra))
    assert accounting.count(PRESETS["gpt2"], method, **h).trained == model.get_nb_trainable_parameters()[0]


def test_the_articles_arithmetic():
    """Five virtual tokens of 4,096 numbers."""
    wide = GPTConfig(n_embd=4096, n_head=64)
    assert accounting.count(wide, "prompt", num_virtual_tokens=5) == (20_480, 20_480)


@pytest.mark.parametrize(
    "method, h, message",
    [
        ("magic", {}, "full, hard-prompt, prompt, prefix"),
        ("lora", dict(target_modules=("q_proj",)), "'q_proj' matches nothing: there are attn.c_attn"),
        ("llama-adapter", dict(adapter_layers=13), "adapter_layers 13 is more than the base's n_layer, 12"),
        ("adapter", dict(placement="before"), "'houlsby' or 'pfeiffer'"),
        ("prompt", dict(length=3), "depends on num_virtual_tokens, not on 'length'"),
        ("full", dict(r=3), "the shape alone"),
        ("prompt", dict(num_virtual_tokens=-5), "at least 1, not -5"),
        ("prompt", dict(num_virtual_tokens="8"), "at least 1, not '8'"),
        ("prefix", dict(space="keys"), "'kv' or 'hidden'"),
    ],
)
def test_what_cannot_be_counted_is_refused(method, h, message):
    with pytest.raises(Error, match=message):
        accounting.count(PRESETS["gpt2"], method, **h)


def test_what_is_no_shape_is_refused():
    for wrong in (GPT(GPTConfig(50, 8, 1, 2, 8)), "gpt2", None):
        with pytest.raises(Error, match="a shape must be a GPTConfig, such as base.config or PRESETS"):
            accounting.count(wrong, "prompt")


def test_none_is_the_default_as_in_adapt():
    c = PRESETS["gpt2"]
    assert accounting.count(c, "prompt", num_virtual_tokens=None) == accounting.count(c, "prompt", num_virtual_tokens=8)
    layers = accounting.count(c, "llama-adapter", adapter_layers=None)
    assert layers == accounting.count(c, "llama-adapter", adapter_layers=11)


def attention_flops(c, method, B, T, h):
    """FLOPs of a step's attention, by the docstring of step_flops.

    Of the first block's four backward matmuls LoRA needs only those that lead to a hook: with separate
    projections it hooks queries and values by default, so not the one of the keys.
    """
    P = h.get("num_virtual_tokens", h.get("adapter_len", 0))
    S = T + P if method == "prompt" else T
    causal = 4 * c.n_embd * B * S * (S + 1) // 2
    if method in ("prefix", "llama-adapter"):
        n, prefix = h.get("adapter_layers", c.n_layer), 4 * c.n_embd * B * T * P
        return 3 * c.n_layer * causal + 3 * n * prefix - (c.n_layer - n) * 2 * causal - 2 * causal - prefix // 2
    spared = 4 if method == "adapter" or (method == "lora" and "target_modules" in h) else 0
    if method == "lora" and "target_modules" not in h and "attn.c_attn" not in linears(c):
        spared = 1
    return 3 * c.n_layer * causal - spared * causal // 2


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("method, h", [s for s in SETTINGS if "space" not in s[1]])
def test_the_products_of_a_step_are_those_torch_counts(config, method, h):
    """Every mm of weights, hooks and head, as torch counts it. Attention is left out: torch counts its masked half."""
    B, T, h = 2, 9, in_shape(config, h)
    if method == "llama-adapter":
        h = {"adapter_layers": config.n_layer} | h
    model = adapt(GPT(config), method, **h)
    with torch.no_grad():
        for p in model.trainable_parameters():
            p.add_(0.1)
    idx = torch.randint(config.vocab_size, (B, T))
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.cross_entropy(model(idx).flatten(0, 1), idx.flatten()).backward()
    aten, counts = torch.ops.aten, counter.get_flop_counts()["Global"]
    counted = sum(n for op, n in counts.items() if op in (aten.mm, aten.addmm))
    flops = accounting.step_flops(config, method, B, T, **h) - attention_flops(config, method, B, T, h)
    if method == "llama-adapter":  # unused queries of the prompts; joined projections also have their gradient
        unused = h["adapter_layers"] * 2 * h["adapter_len"] * config.n_embd**2
        counted -= unused * (2 if "attn.c_attn" in linears(config) else 1)
    assert flops == counted


@pytest.mark.parametrize("names", ["q", "k", "v", "q k", "k v", "q v", "q k v", "o", "v o", "gate", "up", "gate up",
                                   "down", "q down"])
@pytest.mark.parametrize("config", SHAPES[3:])
def test_lora_apart_spares_the_products_that_lead_to_no_edit(config, names, monkeypatch):
    """Matmuls of weights as torch counts them; those of the attention, written out, each as a causal half."""

    def written_out(q, k, v, *_):
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
        future = torch.ones(q.size(2), q.size(2), dtype=torch.bool).triu(1)
        return (q @ k.mT / q.size(3) ** 0.5).masked_fill(future, -torch.inf).softmax(-1) @ v

    monkeypatch.setattr(model, "prefix_attention", written_out)
    B, T, C = 2, 9, config.n_embd
    h = dict(r=3, target_modules=[f"{name}_proj" for name in names.split()])
    adapted = adapt(GPT(config), "lora", **h)
    with torch.no_grad():
        for p in adapted.trainable_parameters():
            p.add_(0.1)
    idx = torch.randint(config.vocab_size, (B, T))
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.cross_entropy(adapted(idx).flatten(0, 1), idx.flatten()).backward()
    counts = counter.get_flop_counts()["Global"]
    weights = counts[torch.ops.aten.mm] + counts.get(torch.ops.aten.addmm, 0)
    squares, rest = divmod(counts[torch.ops.aten.bmm], 2 * C * B * T * T)
    assert rest == 0
    assert accounting.step_flops(config, "lora", B, T, **h) == weights + squares * 2 * C * B * (T * (T + 1) // 2)


def test_fewer_supervised_tokens_spare_the_head():
    c = SHAPES[0]
    whole, part = (accounting.step_flops(c, "prefix", 2, 10, supervised=s, num_virtual_tokens=5) for s in (1.0, 0.25))
    assert whole - part == 2 * (2 * 20 * c.vocab_size * c.n_embd) * 3 // 4
    with pytest.raises(Error, match="not on 'rank'"):
        accounting.step_flops(c, "prefix", 2, 10, rank=4)
