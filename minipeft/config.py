"""The sizes and choices that make up a GPT, the linears of one of its blocks, and published shapes."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from .checks import Error, at_least_one, one_of, positive, shown


class RopeScaling(NamedTuple):
    """Llama 3's stretching of rotary positions (2407.21783 §3.4.3; transformers' rope_type "llama3").

    Angles that turn once in more than original / low_freq_factor positions are slowed by `factor`;
    those within original / high_freq_factor are left as they are, with a slope in between.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original: int  # positions that the model was first trained on


CHOICES = {  # the first of each is GPT-2's
    "position": ("learned", "rotary"),
    "norm": ("layer", "rms"),
    "mlp": ("gelu", "swiglu"),
    "projections": ("joined", "apart"),
    "bias": ("all", "qkv", "none"),
    "tied": (True, False),
}


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and choices of a GPT. The defaults are GPT-2 124M (Radford et al. 2019).

    Raises Error when the sizes do not fit together.
    """

    vocab_size: int = 50257  # V
    block_size: int = 1024  # positions the model may see at once, virtual tokens included
    n_layer: int = 12  # L
    n_head: int = 12  # nh
    n_embd: int = 768  # C
    n_kv_head: int | None = None  # key-value heads, shared by nh / n_kv queries (2305.13245); None: nh
    n_inner: int | None = None  # M, width of the MLP; None: 4C
    position: str = "learned"  # "learned" (GPT-2: a table added to the input) or "rotary" (RoPE)
    rope_theta: float = 10000.0  # base of the rotary wavelengths; unused by "learned"
    rope_scaling: RopeScaling | None = None
    norm: str = "layer"  # "layer" (LayerNorm) or "rms" (RMSNorm, 1910.07467)
    layer_norm_epsilon: float = 1e-5  # of either norm
    mlp: str = "gelu"  # "gelu" (two linears) or "swiglu" (three, one gates another; 2002.05202)
    projections: str = "joined"  # q, k and v from one matrix ("joined") or one each ("apart")
    bias: str = "all"  # linears with a bias: "all", "qkv" (only q, k and v: Qwen2) or "none"
    tied: bool = True  # the output head is the embedding table

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            at_least_one(name, getattr(self, name))
        for name in ("n_kv_head", "n_inner"):
            if getattr(self, name) is not None:
                at_least_one(name, getattr(self, name))
        for name in ("rope_theta", "layer_norm_epsilon"):
            positive(name, getattr(self, name))
        for name, choices in CHOICES.items():
            one_of(name, getattr(self, name), choices)
        if self.n_embd % self.n_head:
            raise Error(f"n_embd {self.n_embd} does not divide into n_head {self.n_head} heads of equal size")
        if self.n_head % self.n_kv:
            raise Error(f"n_head {self.n_head} does not divide into groups over n_kv_head {self.n_kv} key heads")
        if self.position == "rotary" and self.head_size % 2:
            raise Error(f"rotary positions turn pairs of channels: head size {self.head_size} must be even")
        if (scaling := self.rope_scaling) is not None:
            if not isinstance(scaling, RopeScaling):
                raise Error(f"rope_scaling must be a RopeScaling or None, not {shown(scaling)}")
            for name, value in scaling._asdict().items():
                positive(f"rope_scaling's {name}", value)
            if not scaling.low_freq_factor < scaling.high_freq_factor:
                raise Error("rope_scaling's low_freq_factor must be below its high_freq_factor")

    @property
    def head_size(self) -> int:
        """hs: channels of one head."""
        return self.n_embd // self.n_head

    @property
    def n_kv(self) -> int:
        """Key-value heads."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def inner(self) -> int:
        """M: width of the MLP."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def resolved(self) -> "GPTConfig":
        """The same config without None: two configs describe one model when these are equal."""
        return replace(self, n_kv_head=self.n_kv, n_inner=self.inner)


def linears(c: GPTConfig) -> dict[str, tuple[int, int]]:
    """The linears of a block, in the order they are applied: {module name: (in, out) channels}."""
    C, kv, M = c.n_embd, c.n_kv * c.head_size, c.inner
    attention = {
        "joined": {"attn.c_attn": (C, C + 2 * kv), "attn.c_proj": (C, C)},
        "apart": {"attn.q_proj": (C, C), "attn.k_proj": (C, kv), "attn.v_proj": (C, kv), "attn.o_proj": (C, C)},
    }
    mlp = {
        "gelu": {"mlp.c_fc": (C, M), "mlp.c_proj": (M, C)},
        "swiglu": {"mlp.gate_proj": (C, M), "mlp.up_proj": (C, M), "mlp.down_proj": (M, C)},
    }
    return attention[c.projections] | mlp[c.mlp]


def linears_named(c: GPTConfig, names: "str | list[str] | tuple[str, ...]") -> list[str]:
    """The linears of a block with these names: whole ("mlp.c_proj") or their end ("c_proj": every such).

    Raises Error for a name that matches none.
    """
    known = list(linears(c))
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple, set)) or not names:
        raise Error(f"target modules must be names of linears: there are {', '.join(known)}; not {shown(names)}")

    def matches(linear: str, name: str) -> bool:
        return linear == name or linear.endswith(f".{name}")

    for name in names:
        if not any(matches(linear, name) for linear in known):
            raise Error(f"target module {shown(name)} matches nothing: there are {', '.join(known)} "
                        f"(or their ends, such as {known[-1][4:]})")
    return [linear for linear in known if any(matches(linear, name) for name in names)]


# Published shapes: GPT-2 (Radford et al. 2019, table 2), LLaMA (2302.13971, table 2, where "30B" is
# 32.5B; MLP widths from the released files), and the config.json files of the models named behind them.
GPT2 = GPTConfig()
LLAMA = dict(position="rotary", norm="rms", mlp="swiglu", projections="apart", bias="none")
LLAMA_7B = GPTConfig(32000, 2048, n_layer=32, n_head=32, n_embd=4096, n_inner=11008,
                     layer_norm_epsilon=1e-6, tied=False, **LLAMA)
PRESETS = {
    "nano": GPTConfig(257, 512, n_layer=4, n_head=4, n_embd=128, position="rotary"),  # shipped: text as bytes
    "gpt2": GPT2,
    "gpt2-medium": replace(GPT2, n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": replace(GPT2, n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": replace(GPT2, n_layer=48, n_head=25, n_embd=1600),
    "llama-7b": LLAMA_7B,
    "llama-13b": replace(LLAMA_7B, n_layer=40, n_head=40, n_embd=5120, n_inner=13824),
    "llama-30b": replace(LLAMA_7B, n_layer=60, n_head=52, n_embd=6656, n_inner=17920),
    "llama-65b": replace(LLAMA_7B, n_layer=80, n_head=64, n_embd=8192, n_inner=22016, layer_norm_epsilon=1e-5),
    # HuggingFaceTB/SmolLM2-135M
    "smollm2-135m": GPTConfig(49152, 8192, n_layer=30, n_head=9, n_embd=576, n_kv_head=3, n_inner=1536,
                              rope_theta=100_000.0, **LLAMA),
    # TinyLlama/TinyLlama-1.1B-Chat-v1.0
    "tinyllama-1.1b": GPTConfig(32000, 2048, n_layer=22, n_head=32, n_embd=2048, n_kv_head=4, n_inner=5632,
                                tied=False, **LLAMA),
    # meta-llama/Llama-3.2-1B
    "llama-3.2-1b": GPTConfig(128256, 131072, n_layer=16, n_head=32, n_embd=2048, n_kv_head=8, n_inner=8192,
                              rope_theta=500_000.0, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192), **LLAMA),
    # Qwen/Qwen2.5-0.5B
    "qwen2.5-0.5b": GPTConfig(151936, 32768, n_layer=24, n_head=14, n_embd=896, n_kv_head=2, n_inner=4864,
                              rope_theta=1_000_000.0, layer_norm_epsilon=1e-6, **LLAMA | {"bias": "qkv"}),
}

# The bases that ship with the package, pretrained alike, from 34 thousand to 1.9 million parameters.
EMBEDDED = {
    "tiny": replace(PRESETS["nano"], n_layer=2, n_head=2, n_embd=32),
    "small": replace(PRESETS["nano"], n_embd=64),
    "nano": PRESETS["nano"],
    "medium": replace(PRESETS["nano"], n_layer=6, n_head=5, n_embd=160),
}
