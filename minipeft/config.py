"""The sizes and choices that make up a GPT, and the linears of one of its blocks."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from .checks import Error, at_least_one, one_of, positive, shown


class RopeScaling(NamedTuple):
    """Llama 3's stretching of rotary positions (2407.21783 §3.4.3; transformers' rope_type
    "llama3").

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
    def kv(self) -> int:
        """Channels of the keys, and of the values: n_kv·hs."""
        return self.n_kv * self.head_size

    @property
    def inner(self) -> int:
        """M: width of the MLP."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def resolved(self) -> "GPTConfig":
        """The same config without None: two configs describe one model when these are equal."""
        return replace(self, n_kv_head=self.n_kv, n_inner=self.inner)


def linears(c: GPTConfig) -> dict[str, tuple[int, int]]:
    """The linears of a block, in the order they are applied: {module name: (in, out) channels}."""
    C, kv, M = c.n_embd, c.kv, c.inner
    attention = {
        "joined": {"attn.c_attn": (C, C + 2 * kv), "attn.c_proj": (C, C)},
        "apart": {"attn.q_proj": (C, C), "attn.k_proj": (C, kv), "attn.v_proj": (C, kv), "attn.o_proj": (C, C)},
    }
    mlp = {
        "gelu": {"mlp.c_fc": (C, M), "mlp.c_proj": (M, C)},
        "swiglu": {"mlp.gate_proj": (C, M), "mlp.up_proj": (C, M), "mlp.down_proj": (M, C)},
    }
    return attention[c.projections] | mlp[c.mlp]


def linears_by_role(c: GPTConfig) -> tuple[list[str], str, list[str], str]:
    """A block's linears: into q, k and v; attention's output; the MLP's inputs; its output."""
    *into_qkv, attn_out = (name for name in linears(c) if name.startswith("attn."))
    *mlp_in, mlp_out = (name for name in linears(c) if name.startswith("mlp."))
    return into_qkv, attn_out, mlp_in, mlp_out


def hookable_modules(c: GPTConfig) -> list[str]:
    """Places of a block whose output a hook may replace, in the order they are reached: its linears,
    "attn.heads" (queries -> the heads' outputs), "mlp.act" (behind the activation), "attn" and "mlp"."""
    into_qkv, attn_out, mlp_in, mlp_out = linears_by_role(c)
    return [*into_qkv, "attn.heads", attn_out, "attn", *mlp_in, "mlp.act", mlp_out, "mlp"]


GPT2 = GPTConfig()
LLAMA = dict(position="rotary", norm="rms", mlp="swiglu", projections="apart", bias="none")
