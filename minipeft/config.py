"""The shape of a GPT, the presets, and the one error this package raises. Everything else imports from here."""

import math
from dataclasses import dataclass, replace


class Error(ValueError):
    """Every refusal in minipeft is one of these: a message of one line that names what was wrong and what would be right."""


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The defaults are GPT-2 124M (Radford et al. 2019).

    Raises Error when the sizes do not fit together.
    """

    vocab_size: int = 50257  # V
    block_size: int = 1024  # the most positions the model may see at once, virtual tokens included
    n_layer: int = 12  # L
    n_head: int = 12  # nh
    n_embd: int = 768  # C
    position: str = "learned"  # "learned" (GPT-2: a table added to the input) or "rotary" (RoPE: queries and keys turn)
    rope_theta: float = 10000.0  # base wavelength of the rotary positions; unused by "learned"
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise Error(f"{name} must be a whole number of at least 1, not {value!r}")
        for name in ("rope_theta", "layer_norm_epsilon"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise Error(f"{name} must be a positive number, not {value!r}")
        if self.n_embd % self.n_head:
            raise Error(f"n_embd {self.n_embd} does not divide into n_head {self.n_head} heads of equal size")
        if self.position not in ("learned", "rotary"):
            raise Error(f"position must be 'learned' or 'rotary', not {self.position!r}")
        if self.position == "rotary" and self.head_size % 2:
            raise Error(f"rotary positions turn pairs of channels: head size {self.head_size} must be even")

    @property
    def head_size(self) -> int:
        """hs: channels of one head."""
        return self.n_embd // self.n_head


# The linears of a block: what they read and put out, in channels C.
LINEARS = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}


def linears_named(names: "str | list[str] | tuple[str, ...]") -> list[str]:
    """The linears of a block that these names mean, each a whole name ("mlp.c_proj") or its end ("c_proj": both of them).

    Raises Error for a name that means none, with those there are.
    """
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple, set)) or not names:
        raise Error(f"target modules must be names of linears: there are {', '.join(LINEARS)}; not {names!r}")
    for name in names:
        if not any(linear == name or linear.endswith(f".{name}") for linear in LINEARS):
            raise Error(f"target module {name!r} matches nothing: there are {', '.join(LINEARS)} (or their ends, such as c_proj)")
    return [linear for linear in LINEARS if any(linear == name or linear.endswith(f".{name}") for name in names)]


GPT2 = GPTConfig()

# nano is the shape of the base that ships with the package: byte-level text (256 bytes and one end mark), rotary positions.
# The others are the published GPT-2 shapes (Radford et al. 2019, table 2).
PRESETS = {
    "nano": GPTConfig(vocab_size=257, block_size=512, n_layer=4, n_head=4, n_embd=128, position="rotary"),
    "gpt2": GPT2,
    "gpt2-medium": replace(GPT2, n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": replace(GPT2, n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": replace(GPT2, n_layer=48, n_head=25, n_embd=1600),
}
