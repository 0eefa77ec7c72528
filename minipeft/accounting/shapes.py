"""T5's shapes: encoder-decoders whose parameters are counted, never built here."""

from dataclasses import dataclass, fields

from ..checks import at_least_one


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


# T5 v1.1, as Lester et al. 2021 tune it (github.com/google-research/text-to-text-transfer-transformer, released_checkpoints.md)
SHAPES = {
    "t5-small": T5Shape(n_layer=8, n_head=6, n_embd=512, n_inner=1024),
    "t5-base": T5Shape(n_layer=12, n_head=12, n_embd=768, n_inner=2048),
    "t5-large": T5Shape(n_layer=24, n_head=16, n_embd=1024, n_inner=2816),
    "t5-xl": T5Shape(n_layer=24, n_head=32, n_embd=2048, n_inner=5120),
    "t5-xxl": T5Shape(n_layer=24, n_head=64, n_embd=4096, n_inner=10240),
}
