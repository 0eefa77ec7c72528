"""The whole ledger of one method on one shape, as a flat row for tables."""

from ..config import GPTConfig
from .communication import wire_bytes
from .decoding import inference
from .matmuls import flops, step_flops
from .parameters import base_parameters, count
from .step_memory import train_bytes
from .storage import adapter_bytes, storage_bytes


def ledger(c: GPTConfig, method: str, batch_size: int, seq_len: int,
           **hyperparameters) -> dict[str, int]:
    """{name: integer}: every closed form under its own name, its parts as name_part.

    train_checkpointed_activations: with gradient checkpointing. wire_N: bytes handed to all
    collectives in a step of N processes. storage_N: bytes of N tasks. step_flops: 0 if nothing is
    trained.
    """
    of = (c, method, batch_size, seq_len)
    checkpointed = train_bytes(*of, checkpointing=True, **hyperparameters).activations
    parts = {"": count(c, method, **hyperparameters), "train_": train_bytes(*of, **hyperparameters),
             "flops_": flops(*of, **hyperparameters), "inference_": inference(*of, **hyperparameters)}
    return {
        "base_parameters": base_parameters(c),
        **{f"{part}{name}": value for part, values in parts.items() for name, value in values._asdict().items()},
        "train_checkpointed_activations": checkpointed,
        "step_flops": step_flops(*of, **hyperparameters) if parts[""].trained else 0,
        **{f"wire_{n}": sum(wire_bytes(c, method, n, **hyperparameters)) for n in (2, 8)},
        "adapter_bytes": adapter_bytes(c, method, **hyperparameters),
        **{f"storage_{n}": storage_bytes(c, method, n, **hyperparameters) for n in (1, 10, 100, 1000)},
    }
