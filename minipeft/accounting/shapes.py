"""Published shapes to count and to build: GPT-2, Llama, Mistral, Qwen, SmolLM, Gemma, the bases
that ship, and T5 (counted only)."""

from dataclasses import dataclass, fields, replace

from ..checks import at_least_one
from ..config import GEMMA3, GPT2, LLAMA, QWEN3, GPTConfig, RopeScaling

# Published shapes: GPT-2 (Radford et al. 2019, table 2), LLaMA (2302.13971, table 2, where "30B" is
# 32.5B; MLP widths from the released files), and the config.json files of the models named behind them.
LLAMA_7B = GPTConfig(32000, 2048, n_layer=32, n_head=32, n_embd=4096, n_inner=11008,
                     layer_norm_epsilon=1e-6, tied=False, **LLAMA)
GEMMA_3_270M = GPTConfig(262144, 32768, n_layer=18, n_head=4, n_embd=640, n_kv_head=1, head_dim=256, n_inner=2048,
                         rope_theta=1_000_000.0, layer_norm_epsilon=1e-6, sliding_window=512,
                         sliding_window_pattern=6, rope_local_base_freq=10_000.0, **GEMMA3)
PRESETS = {
    # shipped with the package: text as bytes
    "nano": GPTConfig(257, 512, n_layer=4, n_head=4, n_embd=128, position="rotary"),
    "gpt2": GPT2,
    "gpt2-medium": replace(GPT2, n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": replace(GPT2, n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": replace(GPT2, n_layer=48, n_head=25, n_embd=1600),
    "llama-7b": LLAMA_7B,
    "llama-13b": replace(LLAMA_7B, n_layer=40, n_head=40, n_embd=5120, n_inner=13824),
    "llama-30b": replace(LLAMA_7B, n_layer=60, n_head=52, n_embd=6656, n_inner=17920),
    "llama-65b": replace(LLAMA_7B, n_layer=80, n_head=64, n_embd=8192, n_inner=22016,
                         layer_norm_epsilon=1e-5),
    # HuggingFaceTB/SmolLM2-135M
    "smollm2-135m": GPTConfig(49152, 8192, n_layer=30, n_head=9, n_embd=576, n_kv_head=3,
                              n_inner=1536, rope_theta=100_000.0, **LLAMA),
    # TinyLlama/TinyLlama-1.1B-Chat-v1.0
    "tinyllama-1.1b": GPTConfig(32000, 2048, n_layer=22, n_head=32, n_embd=2048, n_kv_head=4,
                                n_inner=5632, tied=False, **LLAMA),
    # meta-llama/Llama-3.2-1B
    "llama-3.2-1b": GPTConfig(128256, 131072, n_layer=16, n_head=32, n_embd=2048, n_kv_head=8,
                              n_inner=8192, rope_theta=500_000.0,
                              rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192), **LLAMA),
    # Qwen/Qwen2.5-0.5B
    "qwen2.5-0.5b": GPTConfig(151936, 32768, n_layer=24, n_head=14, n_embd=896, n_kv_head=2,
                              n_inner=4864, rope_theta=1_000_000.0, layer_norm_epsilon=1e-6,
                              **LLAMA | {"bias": "qkv"}),
    # Qwen/Qwen3-0.6B
    "qwen3-0.6b": GPTConfig(151936, 40960, n_layer=28, n_head=16, n_embd=1024, n_kv_head=8,
                            head_dim=128, n_inner=3072, rope_theta=1_000_000.0,
                            layer_norm_epsilon=1e-6, **QWEN3),
    # HuggingFaceTB/SmolLM3-3B
    "smollm3-3b": GPTConfig(128256, 65536, n_layer=36, n_head=16, n_embd=2048, n_kv_head=4,
                            n_inner=11008, rope_theta=5_000_000.0, layer_norm_epsilon=1e-6,
                            no_rope_layer_interval=4, **LLAMA),
    # google/gemma-3-270m and gemma-3-1b-pt
    "gemma-3-270m": GEMMA_3_270M,
    "gemma-3-1b": replace(GEMMA_3_270M, n_layer=26, n_embd=1152, n_inner=6912),
    # mistralai/Mistral-7B-v0.1
    "mistral-7b": GPTConfig(32000, 32768, n_layer=32, n_head=32, n_embd=4096, n_kv_head=8,
                            n_inner=14336, sliding_window=4096, tied=False, **LLAMA),
}

# The bases that ship with the package: four sizes from 34 thousand to 1.9 million parameters and
# one in the shape of a Llama, which transformers and PEFT open, pretrained alike; and one that
# looks things up in its context.
SCALES = {
    "tiny": replace(PRESETS["nano"], n_layer=2, n_head=2, n_embd=32),
    "small": replace(PRESETS["nano"], n_embd=64),
    "nano": PRESETS["nano"],
    "medium": replace(PRESETS["nano"], n_layer=6, n_head=5, n_embd=160),
}
EMBEDDED = SCALES | {"small-llama": replace(SCALES["small"], n_inner=160, **LLAMA),
                     "lookup": replace(SCALES["small"], n_layer=2, n_head=2, no_rope_layer_interval=2)}


@dataclass(frozen=True)
class T5Shape:
    """The shape of a T5 v1.1 (Raffel et al. 2020, 1910.10683; gated MLPs as in 2002.05202). No
    biases; embeddings and head are two tables; nh·hs may be less than C. Raises Error for a size
    below 1."""

    n_layer: int  # L: of the encoder, and as many of the decoder
    n_head: int  # nh
    n_embd: int  # C
    n_inner: int  # M: width of the MLP
    head_size: int = 64  # hs
    vocab_size: int = 32128  # V
    position_buckets: int = 32  # relative distances; encoder and decoder hold a bias per head for each

    def __post_init__(self):
        for field in fields(self):
            at_least_one(field.name, getattr(self, field.name))

    @property
    def inner(self) -> int:
        """M, as GPTConfig has it."""
        return self.n_inner



# As tuned by Lester et al. 2021: released_checkpoints.md of google-research/text-to-text-transfer-transformer
SHAPES = {
    "t5-small": T5Shape(n_layer=8, n_head=6, n_embd=512, n_inner=1024),
    "t5-base": T5Shape(n_layer=12, n_head=12, n_embd=768, n_inner=2048),
    "t5-large": T5Shape(n_layer=24, n_head=16, n_embd=1024, n_inner=2816),
    "t5-xl": T5Shape(n_layer=24, n_head=32, n_embd=2048, n_inner=5120),
    "t5-xxl": T5Shape(n_layer=24, n_head=64, n_embd=4096, n_inner=10240),
}
