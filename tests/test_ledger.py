"""Every closed form of the ledger against tensors, autograd, torch's FLOP counter, and files."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import FROZEN, TRAINED, TYPICAL, attached, quick, sizes_for
from conftest import SHAPES as BASES
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from minipeft import GPT, METHODS, PRESETS, Error, GPTConfig, accounting
from minipeft.accounting.activations import in_block
from minipeft.accounting.gradients import gradient_flow
from minipeft.accounting.parameters import declared
from minipeft.accounting.shapes import SHAPES as COUNTED
from minipeft.config import LLAMA, linears
from minipeft.inference.generation import allocate_cache
from minipeft.runtime.profiling import saved_bytes

SHAPES = {  # shape, B, T; the last four are of no published model
    "gpt2": (GPTConfig(vocab_size=97, block_size=48, n_layer=2, n_head=4, n_embd=32), 2, 7),
    "nano": (GPTConfig(vocab_size=257, block_size=64, n_layer=3, n_head=6, n_embd=48, position="rotary"), 3, 9),
    "llama": (GPTConfig(vocab_size=97, block_size=48, n_layer=2, n_head=4, n_embd=32, **BASES["llama"]), 2, 7),
    "qwen2": (GPTConfig(50, 48, n_layer=2, n_head=6, n_embd=48, n_kv_head=3, n_inner=56,
                        **LLAMA | {"bias": "qkv"}), 4, 3),
    "joined": (GPTConfig(61, 40, n_layer=2, n_head=2, n_embd=24, n_kv_head=1, mlp="swiglu", norm="rms",
                         bias="none", tied=False), 2, 6),
    "apart": (GPTConfig(61, 40, n_layer=1, n_head=2, n_embd=24, projections="apart", bias="qkv", tied=False), 1, 8),
    "qwen3": (GPTConfig(97, 48, n_layer=3, n_head=4, n_embd=32, **BASES["qwen3"]), 2, 7),
    "smollm3": (GPTConfig(97, 48, n_layer=5, n_head=4, n_embd=32, **BASES["smollm3"]), 2, 7),
    "gemma3": (GPTConfig(97, 48, n_layer=5, n_head=4, n_embd=32, **BASES["gemma3"]), 2, 7),
    "mistral": (GPTConfig(97, 48, n_layer=2, n_head=6, n_embd=32, head_dim=8, sliding_window=4, n_inner=40,
                          **LLAMA), 2, 9),
    "one token": (GPTConfig(61, 40, n_layer=2, n_head=2, n_embd=24), 3, 1),
    "one token, apart": (GPTConfig(61, 40, n_layer=2, n_head=2, n_embd=24, **LLAMA), 3, 1),
}
T5 = COUNTED["t5-small"]
QUICK = ("gpt2", "llama")  # by default; every shape with the slow tests
SETTINGS = [*TYPICAL, ("prefix", {"num_virtual_tokens": 3, "key_bias": True, "prefix_projection": True})]
EVERY = [pytest.param(shape, *setting, marks=[] if shape in QUICK else pytest.mark.slow)
         for shape in SHAPES for setting in SETTINGS]
every = pytest.mark.parametrize("shape, method, h", EVERY)


def adapted(shape: str, method: str, h: dict):
    """-> the shape, B, T, the hyper-parameters in its names, and the model, moved so that no gradient is zero."""
    config, B, T = SHAPES[shape]
    h = sizes_for(config, method, h)
    torch.manual_seed(0)
    model = attached(GPT(config), method, h)
    with torch.no_grad():
        for p in model.trainable_parameters():
            p.add_(0.1)
    return config, B, T, h, model


def counter() -> FlopCounterMode:
    """torch's counter, with its formulas of the GPU's attention for the CPU's too.

    Grouped heads are repeated for them, as older versions need; the matmuls are the same.
    """

    def spread(q, k):
        return (*q[:2], *k[2:])

    def forward(q, k, v, *_, out_shape=None, **__):
        return sdpa_flop_count(q, spread(q, k), spread(q, v))

    def backward(do, q, k, v, *_, out_shape=None, **__):
        return sdpa_backward_flop_count(do, q, spread(q, k), spread(q, v))

    aten = torch.ops.aten
    ours = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=ours)


@every
def test_operations_are_those_torch_counts(shape, method, h):
    config, B, T, h, model = adapted(shape, method, h)
    idx = torch.randint(config.vocab_size, (B, T))
    with counter() as counted:
        loss = F.cross_entropy(model(idx).flatten(0, 1), idx.flatten())
        forward = counted.get_total_flops()
        if loss.requires_grad:
            loss.backward()
    assert accounting.flops(config, method, B, T, **h) == (forward, counted.get_total_flops() - forward)


@every
def test_bytes_of_training_are_what_tensors_and_autograd_hold(shape, method, h):
    config, B, T, h, model = adapted(shape, method, h)
    idx, targets = torch.randint(config.vocab_size, (2, B, T)).unbind()
    held = [*model.parameters(), *model.buffers()]
    said = accounting.train_bytes(config, method, B, T, **h)
    assert said.weights == sum(t.nbytes for t in held)
    assert said.activations == saved_bytes(lambda: model.loss(idx.clone(), targets.clone()), held)
    model.gradient_checkpointing()
    again = accounting.train_bytes(config, method, B, T, checkpointing=True, **h)
    assert again.activations == saved_bytes(lambda: model.loss(idx.clone(), targets.clone()), held)
    assert again[:3] == said[:3]
    if METHODS[method].trains():
        model.loss(idx, targets).backward()
        optimizer = torch.optim.AdamW(model.trainable_parameters())
        optimizer.step()
        assert said.gradients == sum(t.grad.nbytes for t in held if t.grad is not None)
        assert said.optimizer == sum(t.nbytes for state in optimizer.state.values() for t in state.values())


@pytest.mark.parametrize("shape", quick(["gpt2", "llama", "qwen3", "smollm3", "gemma3"], "gpt2", "llama"))
@pytest.mark.parametrize("method, h", TRAINED)
def test_a_base_in_bfloat16_saves_what_it_should(shape, method, h):
    config, _, _, h, model = adapted(shape, method, h)
    model.base.to(torch.bfloat16)
    idx = torch.randint(config.vocab_size, (4, 40))
    held = [*model.parameters(), *model.buffers()]
    said = accounting.train_bytes(config, method, 4, 40, base_bytes=2, **h)
    assert said.weights == sum(t.nbytes for t in held)
    assert said.gradients == sum(t.nbytes for t in model.trainable_parameters())
    assert said.activations == pytest.approx(saved_bytes(lambda: model.loss(idx, idx.clone()), held), rel=0.02)


@every
def test_bytes_on_the_disk_are_those_of_the_files(shape, method, h, tmp_path):
    pytest.importorskip("safetensors")
    config, _, _, h, model = adapted(shape, method, h)
    model.save(tmp_path)
    one = sum(f.stat().st_size for f in tmp_path.iterdir())
    assert accounting.adapter_bytes(config, method, **h) == one
    base = accounting.adapter_bytes(config, "full")
    assert accounting.storage_bytes(config, method, 7, **h) == 7 * one + (base if METHODS[method].freezes_base else 0)


@pytest.mark.parametrize("rows", [None, 1])
@pytest.mark.parametrize("shape", quick(SHAPES, *QUICK))
@pytest.mark.parametrize("method, h", [x for x in TYPICAL if "prefix_projection" not in x[1]])  # folded
@torch.no_grad()
def test_inference_holds_and_computes_what_the_closed_form_says(shape, method, h, rows):
    config, B, T, h, model = adapted(shape, method, h)
    B = rows or B
    model.requires_grad_(False)
    idx = torch.randint(config.vocab_size, (B, T))
    with counter() as prefill:
        cache, slots = allocate_cache(model.base, model.slots(), B, T)
        F.linear(model.base.hidden(idx, *slots, cache=cache)[:, -1], model.base.head)
    prefix = slots.prefix
    shared = [t for t in (prefix.k, prefix.v, prefix.bias) if t is not None] if prefix is not None else []
    said = accounting.inference(config, method, B, T, **h)
    assert (said.cache_bytes, said.shared_bytes) == (cache.k.nbytes + cache.v.nbytes, sum(t.nbytes for t in shared))
    assert said.prefill_flops == prefill.get_total_flops()
    room, _ = allocate_cache(model.base, model.slots(), B, T + 1)
    read = room.after(cache.k.size(3) - room.read)
    slots = slots._replace(prompt=None)
    with counter() as token:
        F.linear(model.base.hidden(idx[:, :1], *slots, cache=read)[:, -1], model.base.head)
    assert B * said.token_flops == token.get_total_flops()
    if method == "prefix":
        assert said == accounting.inference(config, method, B, T, **h, prefix_projection=True)
    assert said.token_flops - said.extra_token_flops == accounting.inference(config, "full", 1, T).token_flops


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tensors_of_a_base_are_those_it_has(shape):
    """From which parameters, files and what is sent follow."""
    config, _, _ = SHAPES[shape]
    assert accounting.base_tensors(config) == {name: tuple(t.shape) for name, t in GPT(config).state_dict().items()}


@every
def test_a_row_of_the_ledger_is_what_its_parts_say(shape, method, h):
    config, B, T = SHAPES[shape]
    h = sizes_for(config, method, h)
    row = accounting.ledger(config, method, B, T, **h)
    assert all(type(value) is int for value in row.values())
    assert (row["trained"], row["stored"]) == accounting.count(config, method, **h)
    assert row["base_parameters"] == accounting.base_parameters(config)
    assert (row["flops_forward"], row["flops_backward"]) == accounting.flops(config, method, B, T, **h)
    trains = METHODS[method].trains()
    assert row["step_flops"] == (accounting.step_flops(config, method, B, T, **h) if trains else 0)
    for name, value in accounting.inference(config, method, B, T, **h)._asdict().items():
        assert row[f"inference_{name}"] == value
    for name, value in accounting.train_bytes(config, method, B, T, **h)._asdict().items():
        assert row[f"train_{name}"] == value
    checkpointed = accounting.train_bytes(config, method, B, T, checkpointing=True, **h)
    assert row["train_checkpointed_activations"] == checkpointed.activations
    assert row["adapter_bytes"] == accounting.adapter_bytes(config, method, **h)
    assert all(row[f"storage_{n}"] == accounting.storage_bytes(config, method, n, **h) for n in (1, 10, 100, 1000))
    assert all(row[f"wire_{n}"] == sum(accounting.wire_bytes(config, method, n, **h)) for n in (2, 8))


@every
def test_a_step_sends_every_gradient_or_gathers_every_weight(shape, method, h):
    """The case of bytes_per_step that a method is; test_distributed.py holds the case to real processes."""
    config = SHAPES[shape][0]
    h = sizes_for(config, method, h)
    trained = accounting.count(config, method, **h).trained
    for processes, how in ((1, {}), (3, {}), (4, dict(shard_base=True, base_bytes=2))):
        sent = accounting.wire_bytes(config, method, processes, **how, **h)
        full = not METHODS[method].freezes_base
        assert sent == accounting.bytes_per_step(config, trained, processes, full=full, **how)
    assert (sent.all_reduce == 4 * trained) == METHODS[method].freezes_base


@pytest.mark.parametrize("method", dict(FROZEN))
def test_a_frozen_weight_spares_one_pass_of_three(method):
    """Matmuls of GPT-2's linears: three each in full fine-tuning, two behind the first trained parameter."""
    gpt2 = PRESETS["gpt2"]
    passes = {}
    for name in ("full", method):
        of_weights = [p for p in accounting.products(gpt2, name, 1, 256) if p.name in linears(gpt2)]
        passes[name] = [p.forward + p.backward for p in of_weights for _ in range(p.times)]
        assert len(passes[name]) == gpt2.n_layer * len(linears(gpt2))
    assert set(passes["full"]) == {3} and max(passes[method]) == 2
    prefix = declared(gpt2, method, {}).cost(gpt2, 256).prefix
    bare = gpt2.n_layer - prefix.layers if prefix else 0  # lowest layers that it leaves as they are
    assert bare == (method == "llama-adapter")
    assert passes[method].count(1) <= (bare + 1) * len(linears(gpt2))
    ratio = sum(accounting.flops(gpt2, "full", 1, 256)) / sum(accounting.flops(gpt2, method, 1, 256))
    assert 1.4 < ratio < 3 / (2 - (bare + 1) / gpt2.n_layer)  # two passes of three, one in the lowest blocks


@pytest.mark.parametrize("T", [3, 4, 5, 9])
def test_a_window_spares_the_pairs_that_it_hides(T):
    """Two matmuls forward and four back, of every query and key further apart than the window, counted one by one."""
    c, B = SHAPES["mistral"][0], 2
    hidden = B * sum(key <= query - c.sliding_window for query in range(T) for key in range(T))
    every = replace(c, sliding_window=None)
    spared = accounting.step_flops(every, "full", B, T) - accounting.step_flops(c, "full", B, T)
    assert spared == c.n_layer * (2 + 4) * 2 * hidden * c.q


def test_a_frozen_block_of_gpt2_saves_10_of_16():
    """Tensors of whole positions, in units of B·S·C, in one layer."""
    gpt2, B, T = PRESETS["gpt2"], 2, 256

    def saved(method: str, layer: int, **h) -> float:
        d = declared(gpt2, method, h)
        S = T + d.cost(gpt2, B).prompt
        cost, unit = d.cost(gpt2, B * S), B * S * gpt2.n_embd
        blocks = [block for block in gradient_flow(gpt2, cost, True) for _ in range(block.times)]
        assert len(blocks) == gpt2.n_layer
        found = in_block(gpt2, cost, blocks[layer], B, S)
        return sum(tensor.elements for tensor in found if tensor.elements >= unit) / unit

    assert [saved("full", layer) for layer in (0, 5)] == [16, 16]
    assert saved("llama-adapter", 0) == 0 < saved("llama-adapter", 1)
    assert saved("prompt", 5, num_virtual_tokens=16) == 10


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda c: accounting.flops(c, "prompt", 0, 9), "batch_size must be a whole number of at least 1, not 0"),
        (lambda c: accounting.train_bytes(c, "prompt", 2, -1), "seq_len must be"),
        (lambda c: accounting.inference(c, "prompt", 2, 9.5), "seq_len must be"),
        (lambda c: accounting.step_flops(c, "prompt", 0, 9), "batch_size must be"),
        (lambda c: accounting.storage_bytes(c, "prompt", 0), "tasks must be"),
        (lambda c: accounting.wire_bytes(c, "prompt", 0), "processes must be"),
        (lambda c: accounting.bytes_per_step(c, 8, 0), "processes must be"),
        (lambda c: accounting.ledger(c, "prompt", 2, 9, r=3), "depends on num_virtual_tokens, not on 'r'"),
        (lambda c: accounting.adapter_bytes(c, "magic"), "method must be one of full, hard-prompt"),
        *((lambda _, f=f, sizes=sizes: f(T5, "prompt", *sizes), "encoder-decoder parameters alone") for f, *sizes in (
            (accounting.flops, 2, 9), (accounting.train_bytes, 2, 9), (accounting.inference, 2, 9),
            (accounting.ledger, 2, 9), (accounting.adapter_bytes,), (accounting.storage_bytes, 3))),
    ],
)
def test_what_has_no_answer_is_refused(ask, message):
    with pytest.raises(Error, match=message):
        ask(PRESETS["gpt2"])
