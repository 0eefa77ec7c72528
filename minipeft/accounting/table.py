"""The whole ledger of one method on one shape, flat, for tables."""

from ..config import GPTConfig
from .communication import wire_bytes
from .decoding import inference
from .matmuls import flops, step_flops
from .parameters import base_parameters, count
from .step_memory import train_bytes
from .storage import adapter_bytes, storage_bytes


def ledger(c: GPTConfig, method: str, batch_size: int, seq_len: int, **hyperparameters) -> dict[str, int]:
    """{name: whole number}: what the other closed forms say, each under its own name, or its part's where it has several.

    train_checkpointed_activations: with gradient checkpointing; wire_N: handed to collectives in a step of N processes, all kinds
    together; storage_N: N tasks. step_flops is 0 where nothing is trained. Raises Error as `count` does.
    """
    of = (c, method, batch_size, seq_len)
    again = train_bytes(*of, checkpointing=True, **hyperparameters).activations
    named = {
        "": count(c, method, **hyperparameters),
        "train_": train_bytes(*of, **hyperparameters),
        "flops_": flops(*of, **hyperparameters),
        "inference_": inference(*of, **hyperparameters),
    }
    return {
        "base_parameters": base_parameters(c),
        **{f"{part}{name}": value for part, values in named.items() for name, value in values._asdict().items()},
        "train_checkpointed_activations": again,
        "step_flops": 0 if method == "hard-prompt" else step_flops(*of, **hyperparameters),
        **{f"wire_{n}": sum(wire_bytes(c, method, n, **hyperparameters)) for n in (2, 8)},
        "adapter_bytes": adapter_bytes(c, method, **hyperparameters),
        **{f"storage_{n}": storage_bytes(c, method, n, **hyperparameters) for n in (1, 10, 100, 1000)},
    }
