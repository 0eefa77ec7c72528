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
    "norm": ("layer", "rms", "rms1p"),
    "sandwich_norm": (False, True),
    "qk_norm": (False, True),
    "mlp": ("gelu", "swiglu", "geglu"),
    "projections": ("joined", "apart"),
    "bias": ("all", "qkv", "none"),
    "tied": (True, False),
    "scale_embeddings": (False, True),
}
BY_LAYER = ("sliding_window", "sliding_window_pattern", "rope_local_base_freq", "no_rope_layer_interval")


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
    n_kv_head: int | None = None  # each shared by nh / n_kv query heads (GQA, 2305.13245); None: nh
    head_dim: int | None = None  # hs apart from C / nh (Qwen3, Gemma 3); None: C / nh
    n_inner: int | None = None  # M, width of the MLP; None: 4C
    position: str = "learned"  # "learned" (GPT-2: a table added to the input) or "rotary" (RoPE)
    rope_theta: float = 10000.0  # base of the rotary wavelengths; unused by "learned"
    rope_scaling: RopeScaling | None = None
    norm: str = "layer"  # "layer" (LayerNorm), "rms" (RMSNorm, 1910.07467) or "rms1p" (with weight 1 + w)
    layer_norm_epsilon: float = 1e-5  # of every norm
    sandwich_norm: bool = False  # a norm behind attention and MLP too, before they are added (Gemma 3)
    qk_norm: bool = False  # a norm of each head's queries and keys, before the rotation (Qwen3, Gemma 3)
    mlp: str = "gelu"  # "gelu" (two linears), "swiglu" or "geglu" (three, one gates another; 2002.05202)
    projections: str = "joined"  # q, k, v by one matrix ("joined": fused QKV) or three ("apart")
    bias: str = "all"  # linears with a bias: "all", "qkv" (only q, k and v: Qwen2) or "none"
    tied: bool = True  # the output head is the embedding table
    scale_embeddings: bool = False  # token embeddings times sqrt(C) (Gemma 3)
    # by layer, each unused where None
    sliding_window: int | None = None  # real tokens that a token sees: itself and those before (Mistral)
    sliding_window_pattern: int | None = None  # every so many-th layer has no window (Gemma 3: 6)
    rope_local_base_freq: float | None = None  # rope_theta of layers with a window, without rope_scaling (Gemma 3)
    no_rope_layer_interval: int | None = None  # every so many-th layer has no rotation (SmolLM3: 4)

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            at_least_one(name, getattr(self, name))
        for name in ("n_kv_head", "head_dim", "n_inner", *BY_LAYER):
            if getattr(self, name) is not None:
                (positive if name == "rope_local_base_freq" else at_least_one)(name, getattr(self, name))
        for name in ("rope_theta", "layer_norm_epsilon"):
            positive(name, getattr(self, name))
        for name, choices in CHOICES.items():
            one_of(name, getattr(self, name), choices)
        if self.head_dim is None and not self.heads_divide:
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
        if self.sliding_window is None and (self.sliding_window_pattern or self.rope_local_base_freq):
            raise Error("sliding_window_pattern and rope_local_base_freq need a sliding_window")
        if self.sliding_window is not None and self.no_rope_layer_interval is not None:
            raise Error("sliding_window and no_rope_layer_interval cannot be combined: layers are of two kinds at most")

    @property
    def head_size(self) -> int:
        """hs: channels of one head."""
        return self.n_embd // self.n_head if self.head_dim is None else self.head_dim

    @property
    def heads_divide(self) -> bool:
        """True where C divides into heads of equal size."""
        return self.n_embd % self.n_head == 0

    @property
    def q(self) -> int:
        """Channels of the queries, and of the heads' outputs: nh·hs, C where head_dim is None."""
        return self.n_embd if self.head_dim is None else self.n_head * self.head_dim

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

    def window(self, i: int) -> int | None:
        """Real tokens that a token of layer i sees, with itself; None: all before it."""
        every = self.sliding_window_pattern
        return None if every and (i + 1) % every == 0 else self.sliding_window

    def rope(self, i: int) -> tuple[float, RopeScaling | None] | None:
        """Base and scaling of the rotary wavelengths of layer i; None: it has no rotation."""
        every = self.no_rope_layer_interval
        if self.position != "rotary" or (every and (i + 1) % every == 0):
            return None
        if self.rope_local_base_freq is not None and self.window(i) is not None:
            return self.rope_local_base_freq, None
        return self.rope_theta, self.rope_scaling

    def by_layer(self, every: int | None, nth, others) -> list:
        """A value a layer: `nth` at layers `every`, 2·`every`, … (from 1), else `others`."""
        return [nth if every and i % every == 0 else others for i in range(1, self.n_layer + 1)]

    def resolved(self) -> "GPTConfig":
        """Canonical form: two configs describe the same model when their resolved() are equal."""
        L, by_layer = self.n_layer, {name: getattr(self, name) for name in BY_LAYER}
        for name in ("sliding_window_pattern", "no_rope_layer_interval"):
            if by_layer[name] is not None and by_layer[name] > L:
                by_layer[name] = None  # there is no such layer
        if all(self.window(i) is None for i in range(L)):
            by_layer |= dict.fromkeys(BY_LAYER[:3])
        elif self.rope_local_base_freq == self.rope_theta and self.rope_scaling is None:
            by_layer["rope_local_base_freq"] = None
        head_dim = None if self.q == self.n_embd else self.head_dim
        if self.position != "rotary":
            by_layer |= {"rope_theta": GPTConfig.rope_theta, "rope_scaling": None}  # which nothing reads
        return replace(self, n_kv_head=self.n_kv, head_dim=head_dim, n_inner=self.inner, **by_layer)


def linears(c: GPTConfig) -> dict[str, tuple[int, int]]:
    """The linears of a block, in the order they are applied: {module name: (in, out) channels}."""
    C, q, kv, M = c.n_embd, c.q, c.kv, c.inner
    attention = {
        "joined": {"attn.c_attn": (C, q + 2 * kv), "attn.c_proj": (q, C)},
        "apart": {"attn.q_proj": (C, q), "attn.k_proj": (C, kv), "attn.v_proj": (C, kv), "attn.o_proj": (q, C)},
    }
    mlp = {"mlp.gate_proj": (C, M), "mlp.up_proj": (C, M), "mlp.down_proj": (M, C)}
    if c.mlp == "gelu":
        mlp = {"mlp.c_fc": (C, M), "mlp.c_proj": (M, C)}
    return attention[c.projections] | mlp


def linears_by_role(c: GPTConfig) -> tuple[list[str], str, list[str], str]:
    """A block's linears: into q, k and v; attention's output; the MLP's inputs; its output."""
    *into_qkv, attn_out = (name for name in linears(c) if name.startswith("attn."))
    *mlp_in, mlp_out = (name for name in linears(c) if name.startswith("mlp."))
    return into_qkv, attn_out, mlp_in, mlp_out


def hookable_modules(c: GPTConfig) -> list[str]:
    """Places of a block whose output a hook may replace, in the order they are reached: its
    linears, "attn.heads" (queries -> the heads' outputs), "mlp.act" (behind the activation), "attn"
    and "mlp"."""
    into_qkv, attn_out, mlp_in, mlp_out = linears_by_role(c)
    return [*into_qkv, "attn.heads", attn_out, "attn", *mlp_in, "mlp.act", mlp_out, "mlp"]


GPT2 = GPTConfig()
LLAMA = dict(position="rotary", norm="rms", mlp="swiglu", projections="apart", bias="none")
QWEN3 = LLAMA | dict(qk_norm=True)
GEMMA3 = QWEN3 | dict(norm="rms1p", sandwich_norm=True, mlp="geglu", scale_embeddings=True)
