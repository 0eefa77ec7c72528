"""Memory of one training process, in bytes."""

from typing import NamedTuple

from ..checks import Error, at_least_one, one_of, shown
from ..config import GPTConfig
from ..formulas.terms import Size, Term, total
from ..parts.quantised import QUANTISED
from .activations import saved_terms
from .base_weights import base_terms
from .parameters import Declared, base_parameters, declared, elements, repeats


class TrainBytes(NamedTuple):
    """Bytes of one training process; their sum is its memory: see `train_bytes`."""

    weights: int
    gradients: int
    optimizer: int
    activations: int


def train_bytes(c: GPTConfig, method: str, batch_size: int, seq_len: int, checkpointing: bool = False,
                base_bytes: int | None = None, quantised: str | None = None, **hyperparameters) -> TrainBytes:
    """Bytes of a training process; b = base_bytes per parameter of the base (None: 4), n = trained:

        weights        b·base + 4·n + frozen    the base, the method's float32 parameters (full: none), and
                                                its frozen tensors (the tokens of a hard prompt: 8 bytes each)
        gradients      4·n; full: b·n           one per trained parameter (adapt makes full's base float32: b = 4)
        optimizer      2·gradients + 4·tensors  AdamW's two moments; the step count of each tensor
        activations    see `activations`        tensors saved for backward

    A frozen weight takes one of full fine-tuning's four values per weight (weight, gradient, two
    moments). Activations shrink less.

    quantised: "int8" or "nf4", of the matrices of the blocks (base_weights.py); b is that of all
    else (None: 2). A quantised base saves for backward what one in bfloat16 does. Not counted:
    tensors that live for a moment, such as the piece of a matrix that is dequantised at the time.
    """
    at_least_one("batch_size", batch_size), at_least_one("seq_len", seq_len)
    if base_bytes is not None:
        at_least_one("base_bytes", base_bytes)
    d = declared(c, method, hyperparameters)
    if quantised is not None:
        one_of("quantised", quantised, QUANTISED)
    if quantised is not None and not d.method.freezes_base:
        raise Error(f"{method} trains every weight: its base cannot be in {shown(quantised)}")
    b = base_bytes or (4 if quantised is None else 2)
    trained, tensors = elements(c, d.shapes, d.shapes.trained), total(trained_tensors(c, d))
    states = state_terms(c, d, base_parameters(c), trained, tensors, b, quantised)
    saved = saved_terms(c, d, batch_size, seq_len, checkpointing, b)
    return TrainBytes(*map(total, states.values()), total(saved))


def state_terms(c: GPTConfig, d: Declared, base: Size, trained: Size, tensors: Size,
                b: int = 4, quantised: str | None = None) -> dict[str, list[Term]]:
    """Bytes of weights, gradients and optimizer. base, trained: parameters; tensors: trained
    tensors; b, quantised: as in base_terms."""
    weights, gradients, optimizer = base_terms(c, base, b, quantised), [], []
    if not d.method.freezes_base:
        gradients = [Term("one for each weight", b * base)]
    elif d.shapes.trained:
        weights.append(Term("trained parameters", 4 * trained))
        gradients = [Term("one for each trained parameter", 4 * trained)]
    if d.shapes.frozen:
        weights.append(Term("frozen tensors of the method",
                            d.shapes.each * elements(c, d.shapes, d.shapes.frozen)))
    if gradients:
        optimizer = [Term("AdamW's two moments", 2 * total(gradients)),
                     Term("AdamW's step of each tensor", 4 * tensors)]
    return {"weights": weights, "gradients": gradients, "optimizer": optimizer}


def trained_tensors(c: GPTConfig, d: Declared) -> list[Term]:
    """The number of trained tensors."""
    return [Term(name, 1, repeats(c, d.shapes, name)) for name in d.shapes.trained]
