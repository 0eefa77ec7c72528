"""Bases of every family of Hugging Face models: ours and transformers' own, small, with random weights."""

import pytest
import torch

from minipeft import GPT, GPTConfig
from minipeft.config import GEMMA3, LLAMA, QWEN3, RopeScaling

SMALL = dict(vocab_size=97, block_size=64, n_layer=3, n_head=4, n_embd=32)
GROUPED = SMALL | LLAMA | dict(n_kv_head=2, n_inner=40)
SHAPES = {
    "gpt2": GPTConfig(**SMALL),
    "gpt2-inner": GPTConfig(**SMALL, n_inner=40, layer_norm_epsilon=1e-3),
    "llama": GPTConfig(**GROUPED, tied=False, rope_theta=500.0),
    "llama-tied": GPTConfig(**GROUPED | dict(n_kv_head=None), layer_norm_epsilon=1e-3),
    "llama3": GPTConfig(**GROUPED, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16)),  # 64 positions, from 16
    "qwen2": GPTConfig(**GROUPED | dict(bias="qkv")),
    "qwen2-untied": GPTConfig(**GROUPED | dict(bias="qkv", n_kv_head=1), tied=False),
    "llama-heads": GPTConfig(**GROUPED, head_dim=16),
    "mistral": GPTConfig(**GROUPED, sliding_window=6, tied=False),
    "mistral-heads": GPTConfig(**GROUPED | dict(n_head=6), sliding_window=80, head_dim=8),  # 32 / 6 is no size
    "mistral-wide": GPTConfig(**GROUPED, sliding_window=80, rope_theta=500.0),
    "qwen3": GPTConfig(**GROUPED | QWEN3, head_dim=16, rope_theta=1e6),
    "qwen3-untied": GPTConfig(**GROUPED | QWEN3, tied=False, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16)),
    "smollm3": GPTConfig(**GROUPED, no_rope_layer_interval=2),
    "smollm3-first": GPTConfig(**GROUPED, no_rope_layer_interval=1, tied=False),  # no layer is rotated
    "gemma3": GPTConfig(**GROUPED | GEMMA3, head_dim=16, sliding_window=6, sliding_window_pattern=2,
                        rope_theta=1e6, rope_local_base_freq=100.0),
    "gemma3-windows": GPTConfig(**GROUPED | GEMMA3, sliding_window=5, tied=False),  # in every layer
    "gemma3-wide": GPTConfig(**GROUPED | GEMMA3 | dict(n_kv_head=1), sliding_window=80, sliding_window_pattern=3,
                             rope_local_base_freq=100.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16)),
    "gemma3-full": GPTConfig(**GROUPED | GEMMA3, head_dim=4),
}
WIDE = {  # family: shape for PEFT; all but GPT-2 with grouped heads, and windows wider than the texts
    "gpt2": "gpt2", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "smollm3": "smollm3",
    "gemma3": "gemma3-wide", "mistral": "mistral-wide"}


def random_(model, std=0.2):
    """The model with weights large enough that all of them matter, biases and norms too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=std) if p.dim() == 2 else p.add_(std * torch.randn_like(p))
    return model.eval()


def base_of(shape: str) -> GPT:
    return random_(GPT(SHAPES[shape]))


def theirs_of(shape: str):
    """transformers' own model of one of SHAPES."""
    transformers = pytest.importorskip("transformers")
    c = SHAPES[shape]
    shared = dict(vocab_size=c.vocab_size, tie_word_embeddings=c.tied, bos_token_id=None, eos_token_id=None)
    if shape.startswith("gpt2"):
        sizes = dict(n_positions=c.block_size, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, n_inner=c.n_inner)
        config = transformers.GPT2Config(**sizes, layer_norm_epsilon=c.layer_norm_epsilon, **shared)
        return random_(transformers.GPT2LMHeadModel(config))
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    if s := c.rope_scaling:
        rope |= {"rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low_freq_factor}
        rope |= {"high_freq_factor": s.high_freq_factor, "original_max_position_embeddings": s.original}
    kind, more = kind_of(shape), {"pad_token_id": None}
    if kind in ("llama", "mistral", "qwen3", "gemma3_text"):
        more["head_dim"] = c.head_size
    if kind == "mistral":
        more["sliding_window"] = c.sliding_window
    if kind == "smollm3":
        more["no_rope_layers"] = [int((i + 1) % c.no_rope_layer_interval != 0) for i in range(c.n_layer)]
    if kind == "gemma3_text":
        every, full = c.sliding_window_pattern or (99 if c.sliding_window else 1), {"rope_type": "default"}
        more |= {"query_pre_attn_scalar": c.head_size, "sliding_window": c.sliding_window or 7,
                 "layer_types": ["sliding_attention" if i % every else "full_attention" for i in (1, 2, 3)]}
        local = {"rope_type": "default", "rope_theta": c.rope_local_base_freq or c.rope_theta}
        rope = {"full_attention": full | rope, "sliding_attention": local}
    name = dict(llama="Llama", mistral="Mistral", qwen2="Qwen2", qwen3="Qwen3", smollm3="SmolLM3")
    config = getattr(transformers, name.get(kind, "Gemma3Text") + "Config")(
        max_position_embeddings=c.block_size, num_hidden_layers=c.n_layer, num_attention_heads=c.n_head,
        num_key_value_heads=c.n_kv, hidden_size=c.n_embd, intermediate_size=c.inner,
        rms_norm_eps=c.layer_norm_epsilon, rope_parameters=rope, **more, **shared)
    return random_(getattr(transformers, name.get(kind, "Gemma3") + "ForCausalLM")(config))


def kind_of(shape: str) -> str:
    """The model_type of one of SHAPES."""
    return {"llama3": "llama", "gemma3": "gemma3_text"}.get(kind := shape.partition("-")[0], kind)


def opened_by_transformers(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


