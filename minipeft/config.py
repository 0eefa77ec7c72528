"""The shape of a GPT, the presets, and the one error this package raises. Everything else imports from here."""

import reprlib
import sys
from dataclasses import dataclass, fields, replace
from typing import NamedTuple


class Error(ValueError):
    """Every refusal in minipeft is one of these: a message of one line that names what was wrong and what would be right."""


class _Shown(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80
        self.maxlist = self.maxtuple = self.maxdict = 8

    def repr_int(self, x, level):
        return repr(x) if abs(x) < 10**24 else f"a number of {x.bit_length()} bits"

    def repr_instance(self, x, level):
        return repr(x)[:80] if isinstance(x, (float, bytes, bool, type(None))) else f"<{type(x).__name__}>"


def shown(value) -> str:
    """A value out of a file as it stands in a message: its repr, which is one line, cut where it is long or deep."""
    text = _Shown().repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


LIMIT = 2**31  # of every size: far above any model's, and products of several of them are still numbers that print


def at_least_one(name: str, value: int) -> int:
    """The value of this size. Raises Error unless it is a whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise Error(f"{name} must be a whole number of at least 1, not {shown(value)}")
    if value >= LIMIT:
        raise Error(f"{name} must be below {LIMIT:,}, not {shown(value)}")
    return value


class RopeScaling(NamedTuple):
    """Llama 3's stretching of rotary positions (2407.21783 §3.4.3; transformers' rope_type "llama3"): what turns once in more than
    original / low_freq_factor positions is slowed by `factor`, what turns within original / high_freq_factor is left, a slope between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original: int  # positions that the model was first trained on


CHOICES = {  # what a base may be made of; the first of each is GPT-2's
    "position": ("learned", "rotary"),
    "norm": ("layer", "rms"),
    "mlp": ("gelu", "swiglu"),
    "projections": ("joined", "apart"),
    "bias": ("all", "qkv", "none"),
    "tied": (True, False),
}


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The defaults are GPT-2 124M (Radford et al. 2019); LLAMA, below, holds what the Llama family chooses.

    Raises Error when the sizes do not fit together.
    """

    vocab_size: int = 50257  # V
    block_size: int = 1024  # the most positions the model may see at once, virtual tokens included
    n_layer: int = 12  # L
    n_head: int = 12  # nh
    n_embd: int = 768  # C
    n_kv_head: int | None = None  # heads of keys and values, each shared by nh / n_kv query heads (2305.13245); None: nh
    n_inner: int | None = None  # width of the MLP; None: 4C
    position: str = "learned"  # "learned" (GPT-2: a table added to the input) or "rotary" (RoPE: queries and keys turn)
    rope_theta: float = 10000.0  # base wavelength of the rotary positions; unused by "learned"
    rope_scaling: RopeScaling | None = None
    norm: str = "layer"  # "layer" (LayerNorm) or "rms" (RMSNorm, 1910.07467)
    layer_norm_epsilon: float = 1e-5  # of either norm
    mlp: str = "gelu"  # "gelu" (two linears) or "swiglu" (three: one gates another, 2002.05202)
    projections: str = "joined"  # queries, keys and values from one matrix ("joined") or one each ("apart")
    bias: str = "all"  # which linears have one: "all", "qkv" (queries, keys and values alone: Qwen2), "none"
    tied: bool = True  # the head is the embedding table

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_kv_head", "n_inner"):
            value = getattr(self, name)
            if value is None and name in ("n_kv_head", "n_inner"):
                continue
            at_least_one(name, value)
        for name in ("rope_theta", "layer_norm_epsilon"):
            _positive(name, getattr(self, name))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise Error(f"{name} must be {' or '.join(map(repr, choices))}, not {shown(getattr(self, name))}")
        if self.n_embd % self.n_head:
            raise Error(f"n_embd {self.n_embd} does not divide into n_head {self.n_head} heads of equal size")
        if self.n_head % self.n_kv:
            raise Error(f"n_head {self.n_head} does not divide into groups over n_kv_head {self.n_kv} key heads")
        if self.position == "rotary" and self.head_size % 2:
            raise Error(f"rotary positions turn pairs of channels: head size {self.head_size} must be even")
        if self.rope_scaling is not None:
            if not isinstance(self.rope_scaling, RopeScaling):
                raise Error(f"rope_scaling must be a RopeScaling or None, not {shown(self.rope_scaling)}")
            for name, value in self.rope_scaling._asdict().items():
                _positive(f"rope_scaling's {name}", value)
            if not self.rope_scaling.low_freq_factor < self.rope_scaling.high_freq_factor:
                raise Error("rope_scaling's low_freq_factor must be below its high_freq_factor")

    @property
    def head_size(self) -> int:
        """hs: channels of one head."""
        return self.n_embd // self.n_head

    @property
    def n_kv(self) -> int:
        """Heads of keys and values."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def inner(self) -> int:
        """Width of the MLP."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def resolved(self) -> "GPTConfig":
        """The same shape with nothing left to a default: two configs mean one shape when these are equal."""
        return replace(self, n_kv_head=self.n_kv, n_inner=self.inner)


def _positive(name: str, value) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
        raise Error(f"{name} must be a positive number, not {shown(value)}")


def linears(c: GPTConfig) -> dict[str, tuple[int, int]]:
    """The linears of a block, in the order they are applied: {place: (channels it reads, channels it puts out)}."""
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
    """The linears of a block that these names mean, each a whole name ("mlp.c_proj") or its end ("c_proj": all that end so).

    Raises Error for a name that means none, with those there are.
    """
    places = list(linears(c))
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple, set)) or not names:
        raise Error(f"target modules must be names of linears: there are {', '.join(places)}; not {shown(names)}")
    for name in names:
        if not any(place == name or place.endswith(f".{name}") for place in places):
            raise Error(
                f"target module {shown(name)} matches nothing: there are {', '.join(places)} (or their ends, such as {places[-1][4:]})"
            )
    return [place for place in places if any(place == name or place.endswith(f".{name}") for name in names)]


@dataclass(frozen=True)
class T5Shape:
    """The shape of a T5 v1.1 (Raffel et al. 2020, 1910.10683; gated MLPs as in 2002.05202), an encoder and a decoder: for the math alone.

    Its linears have no biases, embeddings and head are two tables, and heads need not fill C: nh·hs is C or less.
    Raises Error for a size that is none.
    """

    n_layer: int  # L: of the encoder, and as many of the decoder
    n_head: int  # nh
    n_embd: int  # C
    n_inner: int  # width of the MLP
    head_size: int = 64  # hs
    vocab_size: int = 32128  # V
    position_buckets: int = 32  # distances that the relative positions tell apart; encoder and decoder have a number a head for each

    def __post_init__(self):
        for field in fields(self):
            at_least_one(field.name, getattr(self, field.name))


GPT2 = GPTConfig()
LLAMA = dict(position="rotary", norm="rms", mlp="swiglu", projections="apart", bias="none")
LLAMA1 = GPTConfig(32000, 2048, n_layer=32, n_head=32, n_embd=4096, n_inner=11008, layer_norm_epsilon=1e-6, tied=False, **LLAMA)  # 7B

# nano is the shape of the base that ships with the package: byte-level text (256 bytes and one end mark), rotary positions.
# The others are published shapes: GPT-2 (Radford et al. 2019, table 2), LLaMA (Touvron et al. 2023, 2302.13971, table 2, which calls
# "30B" 32.5B; its MLP's widths are those of the released files), and the config.json files that came with the models.
PRESETS = {
    "nano": GPTConfig(vocab_size=257, block_size=512, n_layer=4, n_head=4, n_embd=128, position="rotary"),
    "gpt2": GPT2,
    "gpt2-medium": replace(GPT2, n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": replace(GPT2, n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": replace(GPT2, n_layer=48, n_head=25, n_embd=1600),
    "llama-7b": LLAMA1,
    "llama-13b": replace(LLAMA1, n_layer=40, n_head=40, n_embd=5120, n_inner=13824),
    "llama-30b": replace(LLAMA1, n_layer=60, n_head=52, n_embd=6656, n_inner=17920),
    "llama-65b": replace(LLAMA1, n_layer=80, n_head=64, n_embd=8192, n_inner=22016, layer_norm_epsilon=1e-5),
    "smollm2-135m": GPTConfig(
        49152, 8192, n_layer=30, n_head=9, n_embd=576, n_kv_head=3, n_inner=1536, rope_theta=100_000.0, **LLAMA
    ),  # HuggingFaceTB/SmolLM2-135M
    "tinyllama-1.1b": GPTConfig(
        32000, 2048, n_layer=22, n_head=32, n_embd=2048, n_kv_head=4, n_inner=5632, tied=False, **LLAMA
    ),  # TinyLlama/TinyLlama-1.1B-Chat-v1.0
    "llama-3.2-1b": GPTConfig(
        128256,
        131072,
        n_layer=16,
        n_head=32,
        n_embd=2048,
        n_kv_head=8,
        n_inner=8192,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
        **LLAMA,
    ),  # meta-llama/Llama-3.2-1B
    "qwen2.5-0.5b": GPTConfig(
        151936,
        32768,
        n_layer=24,
        n_head=14,
        n_embd=896,
        n_kv_head=2,
        n_inner=4864,
        rope_theta=1_000_000.0,
        layer_norm_epsilon=1e-6,
        **{**LLAMA, "bias": "qkv"},
    ),  # Qwen/Qwen2.5-0.5B
}

# The bases that ship with the package, pretrained alike (`python bench.py bases`), from 34 thousand parameters to 1.9 million.
EMBEDDED = {
    "tiny": replace(PRESETS["nano"], n_layer=2, n_head=2, n_embd=32),
    "small": replace(PRESETS["nano"], n_embd=64),
    "nano": PRESETS["nano"],
    "medium": replace(PRESETS["nano"], n_layer=6, n_head=5, n_embd=160),
}

# T5 v1.1, as Lester et al. 2021 tune it (github.com/google-research/text-to-text-transfer-transformer, released_checkpoints.md)
SHAPES = {
    "t5-small": T5Shape(n_layer=8, n_head=6, n_embd=512, n_inner=1024),
    "t5-base": T5Shape(n_layer=12, n_head=12, n_embd=768, n_inner=2048),
    "t5-large": T5Shape(n_layer=24, n_head=16, n_embd=1024, n_inner=2816),
    "t5-xl": T5Shape(n_layer=24, n_head=32, n_embd=2048, n_inner=5120),
    "t5-xxl": T5Shape(n_layer=24, n_head=64, n_embd=4096, n_inner=10240),
}
