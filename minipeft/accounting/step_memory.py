"""Memory of one training process, in bytes."""

from typing import NamedTuple

from ..config import GPTConfig
from ..files.huggingface import base_tensors
from .activations import activations
from .parameters import base_parameters, count, with_defaults


class TrainBytes(NamedTuple):
    """Bytes of one training process; their sum is its memory: see `train_bytes`."""

    weights: int
    gradients: int
    optimizer: int
    activations: int


def train_bytes(c: GPTConfig, method: str, batch_size: int, seq_len: int, checkpointing: bool = False,
                base_bytes: int = 4, **hyperparameters) -> TrainBytes:
    """Bytes of one training process, with b = base_bytes per parameter of the base, n = trained:

        weights        b·base + 4·n             the base, and the method's float32 parameters (full: none;
                                                a hard prompt: 8 bytes a token)
        gradients      4·n; full: b·n           one per trained parameter
        optimizer      2·gradients + 4·tensors  AdamW's two moments; the step count of each tensor
        activations    see `activations`        tensors saved for backward

    A frozen weight takes one of full fine-tuning's four values per weight (weight, gradient, two
    moments). Activations shrink less.
    """
    trained, stored = count(c, method, **hyperparameters)
    base, full = base_bytes * base_parameters(c), method == "full"
    added = 0 if full else 8 * stored if method == "hard-prompt" else 4 * trained
    gradients = base if full else 4 * trained
    optimizer = 2 * gradients + 4 * trained_tensors(c, method, **hyperparameters)
    saved = activations(c, method, batch_size, seq_len, checkpointing, base_bytes, **hyperparameters)
    return TrainBytes(base + added, gradients, optimizer, sum(t.numbers * t.each for t in saved))


def trained_tensors(c: GPTConfig, method: str, **hyperparameters) -> int:
    """Number of tensors that a method trains: A and B of every target linear, and so on."""
    h = with_defaults(c, method, hyperparameters)
    if method == "full":
        return len(base_tensors(c))
    if method == "lora":
        return c.n_layer * 2 * len(h["places"])
    if method == "adapter":
        return c.n_layer * 4 * (2 if h["placement"] == "houlsby" else 1)
    prefix = 5 if h.get("prefix_projection") else 1
    return {"hard-prompt": 0, "prompt": 1, "prefix": prefix, "llama-adapter": 2}[method]
