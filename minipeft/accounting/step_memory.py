"""The bytes that one process holds to train."""

from typing import NamedTuple

from ..config import GPTConfig
from ..files.huggingface import block_tensors, rest_tensors
from .activations import activations
from .parameters import base_parameters, count, settings


class TrainBytes(NamedTuple):
    """Bytes, whose sum is what training holds: see `train_bytes`."""

    weights: int
    gradients: int
    optimizer: int
    activations: int


def train_bytes(
    c: GPTConfig, method: str, batch_size: int, seq_len: int, checkpointing: bool = False, base_bytes: int = 4, **hyperparameters
) -> TrainBytes:
    """Bytes of one training process, with b = base_bytes a number of the base and n = trained:

        weights        b·base + 4·n              the base, and what is trained beside it, which is float32 (a hard prompt: 8 a token)
        gradients      4·n        full: b·n      one for each number that is trained, none for a frozen one
        optimizer      twice that, + 4·tensors   AdamW's two moments of every trained number; of every trained tensor its step
        activations    see `activations`         what autograd keeps from the forward pass for the backward pass

    Of full fine-tuning's four numbers a weight (itself, gradient, two moments) a frozen weight keeps one; activations shrink less.
    Raises Error as `count` does, or for a size that is none.
    """
    trained, stored = count(c, method, **hyperparameters)
    base, full = base_bytes * base_parameters(c), method == "full"
    beside = 0 if full else 8 * stored if method == "hard-prompt" else 4 * trained
    gradients = base if full else 4 * trained
    kept = activations(c, method, batch_size, seq_len, checkpointing, base_bytes, **hyperparameters)
    optimizer = 2 * gradients + 4 * trained_tensors(c, method, **hyperparameters)
    return TrainBytes(base + beside, gradients, optimizer, sum(t.numbers * t.each for t in kept))


def trained_tensors(c: GPTConfig, method: str, **hyperparameters) -> int:
    """How many tensors a method trains. prompt and prefix: 1, through the MLP 5; lora: A and B of every edited linear; adapter: two
    matrices and two biases at every place; llama-adapter: all prompts, and all gates."""
    h = settings(c, method, hyperparameters)
    if method == "full":
        return len(rest_tensors(c)) + c.n_layer * len(block_tensors(c))
    if method == "lora":
        return c.n_layer * 2 * len(h["places"])
    if method == "adapter":
        return c.n_layer * 4 * (2 if h["placement"] == "houlsby" else 1)
    return {"hard-prompt": 0, "prompt": 1, "prefix": 5 if h.get("prefix_projection") else 1, "llama-adapter": 2}[method]
