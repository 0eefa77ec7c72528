"""Memory of one training process, in bytes."""

from typing import NamedTuple

from ..config import GPTConfig
from ..formulas.terms import Size
from .activations import activations
from .parameters import Declared, base_parameters, declared, elements, repeats


class TrainBytes(NamedTuple):
    """Bytes of one training process; their sum is its memory: see `train_bytes`."""

    weights: int
    gradients: int
    optimizer: int
    activations: int


def train_bytes(c: GPTConfig, method: str, batch_size: int, seq_len: int, checkpointing: bool = False,
                base_bytes: int = 4, **hyperparameters) -> TrainBytes:
    """Bytes of one training process, with b = base_bytes per parameter of the base, n = trained:

        weights        b·base + 4·n + frozen    the base, the method's float32 parameters (full: none), and
                                                its frozen tensors (the tokens of a hard prompt: 8 bytes each)
        gradients      4·n; full: b·n           one per trained parameter
        optimizer      2·gradients + 4·tensors  AdamW's two moments; the step count of each tensor
        activations    see `activations`        tensors saved for backward

    A frozen weight takes one of full fine-tuning's four values per weight (weight, gradient, two
    moments). Activations shrink less.
    """
    d = declared(c, method, hyperparameters)
    saved = activations(c, method, batch_size, seq_len, checkpointing, base_bytes, **hyperparameters)
    state = state_bytes(c, d, base_parameters(c), base_bytes)
    return TrainBytes(*state, sum(t.elements * t.each * t.times for t in saved))


def state_bytes(c: GPTConfig, d: Declared, base: Size, b: int = 4) -> tuple[Size, Size, Size]:
    """Bytes of weights, gradients and optimizer; base: its parameters, b: bytes of each."""
    shapes, full = d.shapes, not d.method.freezes_base
    trained = elements(c, shapes, shapes.trained)
    gradients = b * base if full else 4 * trained
    weights = b * base + (0 if full else 4 * trained) + shapes.each * elements(c, shapes, shapes.frozen)
    return weights, gradients, 2 * gradients + 4 * sum(repeats(c, shapes, name) for name in shapes.trained)
